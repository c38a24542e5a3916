"""One client of gallery_load.py: it changes subjects of its own by chance and believes no answer that its model does not expect."""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Final

from gallery_client import Client, Reply
from gallery_photos import APART, EXACT

Place = tuple[str, str]
"""Collection and subject."""
WEIGHTS: Final = {"enrol": 6, "identify": 6, "delete face": 2, "delete subject": 1, "rename": 2, "look": 2}
THRESHOLD: Final = (APART + EXACT) / 2  # only photos that are the same reach it
MOST_SUBJECTS: Final = 8  # of a client, in a collection


class Wrong(Exception):
    """An answer that cannot be true. `kind`: lost, foreign, gone (and yet answered), or unexpected."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


@dataclass
class Tally:
    """`seconds` of each answer by kind of request; what was `wrong`, in words."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)


@dataclass
class Believer:
    """`known`: the photo (its number in `photos`) of each face of each subject. Names in `shared` begin with the client's prefix;
    nobody else has `own`. `gone`: names that stand for nobody now."""

    number: int
    client: Client
    photos: Sequence[bytes]
    shared: str
    own: str
    chance: random.Random
    tally: Tally = field(default_factory=Tally)
    known: dict[Place, dict[str, int]] = field(default_factory=dict)
    gone: list[Place] = field(default_factory=list)
    _names: int = 0

    @property
    def prefix(self) -> str:
        return f"{self.number:03} "

    def work(self, until: float) -> None:
        """Until the clock (time.monotonic) says so, or something was wrong, which is in the tally then."""
        while time.monotonic() < until:
            (task,) = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
            try:
                changed = self._tasks()[task]()
                if changed is not None:
                    self._look(changed)
            except (Wrong, OSError, HTTPException, KeyError, TypeError) as error:
                self.tally.wrong.append(f"client {self.number}, {task}: {type(error).__name__} {error}"[:400])
                return  # what is true from here on, nobody knows

    def _tasks(self) -> dict[str, Callable[[], Place | None]]:
        return {
            "enrol": self._enrol,
            "identify": self._identify,
            "delete face": self._delete_face,
            "delete subject": self._delete_subject,
            "rename": self._rename,
            "look": self._look_anywhere,
        }

    def _enrol(self) -> Place:
        """One or two photos, of a new subject or one more of a known one."""
        place = self._some() if self.chance.random() < 0.5 else self._new()
        chosen = self.chance.sample(range(len(self.photos)), self.chance.choice((1, 1, 2)))
        reply = self._timed("enrol", lambda: self.client.enroll(*place, [self.photos[photo] for photo in chosen]))
        _expect(reply, 200, 201)
        faces = self.known.setdefault(place, {})
        if place in self.gone:
            self.gone.remove(place)
        for face, photo in zip(reply.body["faces"], chosen, strict=True):
            if face["known"] != (face["face_id"] in faces):
                raise Wrong("lost" if face["known"] is False else "gone", f"{face} of {place}, which has {faces}")
            faces[face["face_id"]] = photo
            also = {other["subject"] for other in face["also"]}
            if place[0] == self.own and not also <= {name for where, name in self.known if where == self.own}:
                raise Wrong(self._kind(set(), also), f"{also} in {self.own!r} are said to have the face of {place}")
        return place

    def _identify(self) -> None:
        self._find(self.chance.choice((self.shared, self.own)), self.chance.randrange(len(self.photos)))

    def _delete_face(self) -> Place | None:
        place = self._some()
        if not self.known.get(place):
            return None
        face_id = self.chance.choice(list(self.known[place]))
        reply = self._timed("delete face", lambda: self.client.delete_face(*place, face_id))
        _expect(reply, 200)
        photo = self.known[place].pop(face_id)
        if reply.body["faces"] != len(self.known[place]):
            raise Wrong("unexpected", f"{reply} where {place} has {self.known[place]}")
        if not self.known[place]:
            self._forget(place)
        self._find(place[0], photo)
        return place

    def _delete_subject(self) -> Place | None:
        place = self._some()
        if place not in self.known:
            return None
        reply = self._timed("delete subject", lambda: self.client.delete_subject(*place))
        _expect(reply, 200)
        if reply.body["faces"] != len(self.known[place]):
            raise Wrong("unexpected", f"{reply} where {place} has {self.known[place]}")
        photo = next(iter(self.known[place].values()))
        self._forget(place)
        self._find(place[0], photo)
        return place

    def _rename(self) -> Place | None:
        """To a new name; once in a while to one that is taken."""
        place = self._some()
        if place not in self.known:
            return None
        others = [other for other in self.known if other[0] == place[0] and other != place]
        if others and self.chance.random() < 0.2:
            taken = self.chance.choice(others)[1]
            _expect(self._timed("rename", lambda: self.client.rename(*place, taken)), 409)
            return place
        new = self._new(place[0])
        _expect(self._timed("rename", lambda: self.client.rename(*place, new[1])), 200)
        if new in self.gone:
            self.gone.remove(new)
        self.known[new] = self.known[place]
        self._forget(place)
        self._look(new)
        return place

    def _look_anywhere(self) -> Place:
        return self.chance.choice(self.gone) if self.gone and self.chance.random() < 0.3 else self._some()

    def _look(self, place: Place) -> None:
        """Does the very next answer show what the model says? By the subject's own page, or by its photos."""
        faces = self.known.get(place)
        if faces and self.chance.random() < 0.5:
            self._find(place[0], self.chance.choice(list(faces.values())))
            return
        reply = self._timed("look", lambda: self.client.subject(*place))
        if not faces:
            if reply.status != 404:
                raise Wrong("gone", f"{place} is still answered: {reply}")
            return
        _expect(reply, 200)
        found = {face["face_id"] for face in reply.body["faces"]}
        if found != set(faces):
            raise Wrong("lost" if set(faces) - found else "gone", f"{place} has {found}, not {set(faces)}")

    def _find(self, collection: str, photo: int) -> None:
        """The subjects of the collection that have this photo, no more and no fewer; of one's own collection, all are asked for."""
        alone = collection == self.own
        threshold = -1.0 if alone else THRESHOLD
        reply = self._timed("identify", lambda: self.client.identify(collection, self.photos[photo], 100, threshold))
        _expect(reply, 200)
        if len(reply.body["faces"]) != 1:
            raise Wrong("unexpected", f"{len(reply.body['faces'])} faces on a photo with one")
        candidates = reply.body["faces"][0]["candidates"]
        if alone:
            self._check_all(reply, candidates)
        same = {one["subject"]: one["face_id"] for one in candidates if one["similarity"] >= THRESHOLD}
        mine = {name: faces for (where, name), faces in self.known.items() if where == collection}
        expected = {name for name, faces in mine.items() if photo in faces.values()}
        if same.keys() != expected:
            raise Wrong(self._kind(expected, set(same)), f"photo {photo} in {collection!r} is {set(same)}, not {expected}")
        for name, face_id in same.items():
            if mine[name].get(face_id) != photo:
                raise Wrong("gone", f"{face_id} of {name!r} answers to photo {photo}; {name!r} has {mine[name]}")

    def _check_all(self, reply: Reply, candidates: Sequence[dict[str, Any]]) -> None:
        mine = {name: faces for (where, name), faces in self.known.items() if where == self.own}
        counted = reply.body["subjects"], reply.body["enrolled_faces"]
        found = {one["subject"] for one in candidates}
        if counted != (len(mine), sum(map(len, mine.values()))) or found != mine.keys():
            raise Wrong(self._kind(set(mine), found), f"{self.own!r} answers {counted}, {found}; it has {mine}")

    def _kind(self, expected: set[str], found: set[str]) -> str:
        """What is wrong with the subjects that were found."""
        if any(not name.startswith(self.prefix) for name in found - expected):
            return "foreign"
        return "lost" if expected - found else "gone"

    def _some(self) -> Place:
        """A subject that is there, where there is one."""
        return self.chance.choice(list(self.known)) if self.known else self._new()

    def _new(self, collection: str | None = None) -> Place:
        """A name that stands for nobody; old ones come back."""
        where = collection or self.chance.choice((self.shared, self.own))
        here = [place for place in self.known if place[0] == where]
        if collection is None and len(here) >= MOST_SUBJECTS:
            return self.chance.choice(here)
        back = [place for place in self.gone if place[0] == where]
        if back and self.chance.random() < 0.3:
            return self.chance.choice(back)
        self._names += 1
        return where, f"{self.prefix}Zoë/{self._names} 🙂"

    def _forget(self, place: Place) -> None:
        del self.known[place]
        self.gone = [*self.gone[-20:], place]

    def _timed(self, kind: str, call: Callable[[], Reply]) -> Reply:
        begun = time.perf_counter()
        reply = call()
        self.tally.seconds[kind].append(time.perf_counter() - begun)
        return reply


def _expect(reply: Reply, *statuses: int) -> None:
    if reply.status not in statuses:
        raise Wrong("unexpected", f"answered {reply}")
