"""`vision-service faces reembed FOLDER`: the subjects of a gallery that another model made, embedded anew from their photos.

gallery's subjects + album -> every photo looked at, faces into a file that nobody else sees -> all there? -> replaced at once
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime

from service.cli.faces_album import Album, printable, read_album
from service.cli.faces_enroll import Task, describe, look
from service.cli.faces_file import read_faces, write_faces
from service.cli.pictures import bar
from service.cli.verbs import read_options
from service.engine import Engine
from service.errors import OptionInvalid
from service.gallery import open_gallery
from service.gallery.gallery import Entry, Gallery, Subject
from service.tasks.people import EnrollOptions, Refusal

NAMED = 20
"""How many subjects a message names."""


@dataclass
class Renewal:
    """What became of a collection. `problem`: why nothing was changed; `dropped`: subjects that had no usable photo; `left_out`:
    folders of nobody that it knows."""

    subjects: int = 0
    faces: int = 0
    refused: list[Refusal] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    problem: str = ""


def run(arguments: argparse.Namespace) -> int:
    """0: every photo's face is in the new gallery, 1: some photo was refused, or nothing was changed."""
    options = read_options(arguments, EnrollOptions)
    album = read_album(arguments.folder)
    with Engine() as engine, closing(open_gallery(engine.settings, engine.recognition.embedding_model)) as gallery:
        renewal = reembed(engine, gallery, album, options, arguments.drop_missing)
    _report(renewal, options.gallery, arguments.json)
    return 1 if renewal.refused or renewal.problem else 0


def subjects(gallery: Gallery, collection: str) -> Iterator[Subject]:
    """All subjects of a collection, page by page."""
    after = None
    while True:
        page = gallery.subjects(collection, after, 1000)
        yield from page.subjects
        after = page.after
        if after is None:
            return


def reembed(engine: Engine, gallery: Gallery, album: Album, options: EnrollOptions, drop_missing: bool = False) -> Renewal:
    """Replace all faces of a collection by those of the album's photos, in one transaction.

    Nothing is changed where a photo is refused (unless options.partial) or a subject has no usable photo (unless `drop_missing`).
    Raises OptionInvalid where there is no such collection, where the model here made it, or where subjects have no photo at all.
    """
    _check_model(gallery, options.gallery)
    wanted = [subject.name for subject in subjects(gallery, options.gallery)]
    known, usable = frozenset(wanted), set[str]()
    renewal = Renewal(left_out=[name for name in album.subjects if name not in known])
    tasks = [Task(name, picture) for name in wanted for picture in album.subjects.get(name, ())]
    problem = _missing([name for name in wanted if name not in album.subjects], drop_missing)
    if problem:  # known without hours of work
        raise OptionInvalid("--drop-missing", problem)

    def entries() -> Iterator[Entry]:
        with bar(len(tasks), as_json=False) as progress:
            for one in progress.track(look(engine, tasks, options), total=len(tasks), description="Embedding..."):
                if isinstance(one.face, Refusal):
                    renewal.refused.append(one.face)
                elif one.face is not None:
                    usable.add(one.task.subject)
                    new = one.face.new
                    yield Entry(options.gallery, one.task.subject, new.embedding, new.box, new.quality, datetime.now(UTC))

    with tempfile.TemporaryFile() as file:  # a large gallery need not fit into memory
        write_faces(file, gallery.model, [options.gallery], len(tasks), entries())
        renewal.dropped = [name for name in wanted if name not in usable]
        renewal.problem = _missing(renewal.dropped, drop_missing)
        if renewal.refused and not options.partial:
            refused = len(renewal.refused)
            renewal.problem = f"{refused} photos are refused, so nothing was changed; mend them, or go without them by --partial"
        if renewal.problem:
            return renewal
        file.seek(0)
        renewal.faces = gallery.replace(options.gallery, read_faces(file, gallery.model)[1])
        renewal.subjects = len(usable)
    return renewal


def _check_model(gallery: Gallery, name: str) -> None:
    for collection in gallery.collections():
        if collection.name == name:
            if collection.model == gallery.model:
                text = f"the gallery {name!r} was made by the model here, {gallery.model}; faces enroll adds to it"
                raise OptionInvalid("--gallery", text)
            return
    raise OptionInvalid("--gallery", f"there is no gallery {name!r}; faces list shows those that are, faces enroll makes one")


def _missing(names: Sequence[str], drop: bool) -> str:
    """What is wrong where these subjects have no usable photo; empty: nothing."""
    if not names or drop:
        return ""
    return (
        f"{len(names)} subjects of the gallery have no usable photo in the folder: {_named(names)}; nothing was changed. "
        "Add their photos, or give --drop-missing to forget them"
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _report(renewal: Renewal, collection: str, as_json: bool) -> None:
    if as_json:
        refused = [refusal.model_dump(exclude_none=True) for refusal in renewal.refused]
        print(json.dumps({"gallery": collection, **vars(renewal), "refused": refused}))
        return
    print("".join(map(describe, renewal.refused)), end="")
    if renewal.left_out:
        print(f"not in the gallery, so left out: {_named(renewal.left_out)} (faces enroll adds them)")
    if renewal.problem:
        print(f"vision-service: {renewal.problem}", file=sys.stderr)
        return
    if renewal.dropped:
        print(f"forgotten, without a usable photo: {_named(renewal.dropped)}")
    print(f"{renewal.subjects} subjects: {renewal.faces} faces in the gallery {collection!r}")
