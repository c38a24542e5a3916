"""What both databases promise, alike."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import FaceUnknown, GalleryMismatch, SubjectExists, SubjectUnknown
from service.gallery import check_models
from service.gallery.gallery import Entry, Gallery, NewFace

Vector = Callable[..., NDArray[np.float32]]
Face = Callable[..., NewFace]

NAMES = [
    "a/b",
    "..",
    "../x",
    "%",
    "_",
    "a_b",
    "a%",
    "it's",
    'say "hi"',
    "\\",
    ";--",
    "Ä",
    "Zoë",
    "z",
    "名前",
    "\U0001f600",
    "\uffff",
    "nul",
]


def names_of(gallery: Gallery, collection: str = "default") -> list[str]:
    return [subject.name for subject in gallery.subjects(collection, limit=1000).subjects]


def found(gallery: Gallery, query: NDArray[np.float32], collection: str = "default", **options: Any) -> Sequence[str]:
    (matches,) = gallery.search(collection, query[np.newaxis], **options).matches
    return [match.subject for match in matches]


def toward(vector: NDArray[np.float32], other: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """A vector of length 1 whose cosine with `vector` is `share`."""
    across = other.astype(np.float64) - float(other @ vector) * vector
    mixed = share * vector + np.sqrt(1 - share**2) * across / np.linalg.norm(across)
    return (mixed / np.linalg.norm(mixed)).astype(np.float32)


def test_an_enrolled_face_is_found(gallery: Gallery, face: Face, vector: Vector) -> None:
    stored = gallery.enroll("default", "Ada", [face(1), face(2)])
    assert [one.known for one in stored] == [False, False]
    assert stored[0].box == (1.0, 2.0, 30.5, 40.25)
    assert stored[1].quality == {"size": 82.0, "sharpness": 0.25}
    result = gallery.search("default", vector(2)[np.newaxis])
    (match,) = result.matches[0]
    assert (match.subject, match.face_id) == ("Ada", stored[1].face_id)
    assert match.similarity == pytest.approx(1, abs=1e-5)
    assert (result.faces, result.subjects) == (2, 1)


def test_enrolling_again_adds_nothing(gallery: Gallery, face: Face) -> None:
    first = gallery.enroll("default", "Ada", [face(1)])
    again = gallery.enroll("default", "Ada", [face(1), face(2), face(2)])
    assert [one.known for one in again] == [True, False, True]
    assert (again[0].face_id, again[0].enrolled_at) == (first[0].face_id, first[0].enrolled_at)
    subject, faces = gallery.subject("default", "Ada")
    assert subject.faces == len(faces) == 2


def test_the_same_face_under_another_subject_has_another_id(gallery: Gallery, face: Face) -> None:
    ids = {gallery.enroll(collection, name, [face(1)])[0].face_id for collection, name in [("a", "x"), ("a", "y"), ("b", "x")]}
    assert len(ids) == 3


def test_nothing_is_enrolled_that_is_no_embedding(gallery: Gallery, face: Face, vector: Vector) -> None:
    wrong = [vector(1) * 2, vector(1)[:8], vector(1).astype(np.float64), np.full_like(vector(1), np.nan), np.zeros_like(vector(1))]
    for embedding in wrong:
        with pytest.raises(ValueError, match="embedding"):
            gallery.enroll("default", "Ada", [face(1), face(embedding=embedding)])
    with pytest.raises(ValueError, match="no face"):
        gallery.enroll("default", "Ada", [])
    assert gallery.collections() == []


def test_search_gives_each_subject_once_best_first(gallery: Gallery, face: Face, vector: Vector) -> None:
    query = vector(0)
    shares = {"far": [0.1, 0.2], "near": [0.5, 0.9, 0.3], "middle": [0.6]}
    for name, some in shares.items():
        gallery.enroll("default", name, [face(embedding=toward(query, vector(n + 1), share)) for n, share in enumerate(some)])
    (matches,) = gallery.search("default", query[np.newaxis], top_k=10).matches
    assert [match.subject for match in matches] == ["near", "middle", "far"]
    assert [match.similarity for match in matches] == pytest.approx([0.9, 0.6, 0.2], abs=1e-5)
    assert found(gallery, query, top_k=2) == ["near", "middle"]
    assert found(gallery, query, top_k=10, threshold=0.55) == ["near", "middle"]
    assert found(gallery, query, top_k=10, threshold=0.95) == []
    assert found(gallery, -query, top_k=1) == ["far"]


def test_several_queries_are_answered_in_their_order(gallery: Gallery, face: Face, vector: Vector) -> None:
    for number in range(6):
        gallery.enroll("default", f"s{number}", [face(number)])
    queries = np.stack([vector(number) for number in (4, 0, 5)])
    assert [matches[0].subject for matches in gallery.search("default", queries).matches] == ["s4", "s0", "s5"]
    assert gallery.search("default", np.empty((0, 0), np.float32)).matches == []


def test_equals_are_in_the_order_of_their_names(gallery: Gallery, face: Face, vector: Vector) -> None:
    for name in ["c", "a", "d", "b"]:
        gallery.enroll("default", name, [face(1)])
    assert found(gallery, vector(1), top_k=3) == ["a", "b", "c"]


def test_an_unknown_collection_is_an_empty_one(gallery: Gallery, vector: Vector) -> None:
    result = gallery.search("nowhere", np.stack([vector(1), vector(2)]))
    assert ([list(matches) for matches in result.matches], result.faces, result.subjects) == ([[], []], 0, 0)
    page = gallery.subjects("nowhere")
    assert (list(page.subjects), page.after, page.subjects_total, page.faces_total) == ([], None, 0, 0)
    assert list(gallery.export("nowhere")) == []


def test_collections_know_nothing_of_each_other(gallery: Gallery, face: Face, vector: Vector) -> None:
    gallery.enroll("one", "Ada", [face(1)])
    gallery.enroll("two", "Bob", [face(2)])
    assert (found(gallery, vector(2), "one"), found(gallery, vector(1), "two")) == (["Ada"], ["Bob"])
    assert (names_of(gallery, "one"), names_of(gallery, "two")) == (["Ada"], ["Bob"])
    with pytest.raises(SubjectUnknown):
        gallery.delete_subject("two", "Ada")
    gallery.rename("one", "Ada", "Bob")
    gallery.delete_subject("one", "Bob")
    assert [(one.name, one.subjects, one.faces) for one in gallery.collections()] == [("two", 1, 1)]


def test_pages_follow_the_code_points_of_names(gallery: Gallery, face: Face) -> None:
    for number, name in enumerate(NAMES):
        gallery.enroll("default", name, [face(number)] * 1)
    names, after = list[str](), None
    while True:
        page = gallery.subjects("default", after, limit=5)
        assert (page.subjects_total, page.faces_total) == (len(NAMES), len(NAMES))
        names += [subject.name for subject in page.subjects]
        after = page.after
        if after is None:
            break
    assert names == sorted(NAMES)
    assert gallery.subjects("default", limit=len(NAMES)).after is None


@pytest.mark.parametrize("name", [*NAMES, "x" * 200, "\U0001f600" * 200])
def test_a_name_is_only_a_name(databases: Callable[[], Any], face: Face, vector: Vector, name: str) -> None:
    gallery = databases().open()
    gallery.enroll(name, name, [face(1)])
    gallery.enroll("default", "other", [face(2)])
    assert found(gallery, vector(1), name) == [name]
    assert gallery.subject(name, name)[0].name == name
    gallery.rename(name, name, name + "2")
    gallery.rename(name, name + "2", name)
    assert gallery.delete_subject(name, name) == 1
    assert [one.name for one in gallery.collections()] == ["default"]


def test_rename_keeps_everything_else(gallery: Gallery, face: Face, vector: Vector) -> None:
    gallery.enroll("default", "Ada", [face(1), face(2)])
    gallery.enroll("default", "Bob", [face(3)])
    before, faces = gallery.subject("default", "Ada")
    after = gallery.rename("default", "Ada", "Zoë")
    assert (after.name, after.faces, after.created_at) == ("Zoë", 2, before.created_at)
    assert gallery.subject("default", "Zoë")[1] == faces
    assert found(gallery, vector(1)) == ["Zoë"]
    with pytest.raises(SubjectExists):
        gallery.rename("default", "Zoë", "Bob")
    with pytest.raises(SubjectUnknown):
        gallery.rename("default", "Ada", "Eve")
    assert gallery.rename("default", "Bob", "Bob").name == "Bob"
    assert gallery.enroll("default", "Zoë", [face(1)])[0].known
    assert not gallery.enroll("default", "Ada", [face(1)])[0].known


def test_what_is_deleted_is_not_found(gallery: Gallery, face: Face, vector: Vector) -> None:
    gallery.enroll("default", "Ada", [face(1), face(2)])
    gallery.enroll("default", "Bob", [face(3)])
    assert found(gallery, vector(1)) == ["Ada"]
    assert gallery.delete_subject("default", "Ada") == 2
    assert found(gallery, vector(1), top_k=10) == ["Bob"]
    for call in (gallery.subject, gallery.delete_subject):
        with pytest.raises(SubjectUnknown):
            call("default", "Ada")
    assert not gallery.enroll("default", "Ada", [face(1)])[0].known


def test_a_face_is_found_by_its_id(gallery: Gallery, face: Face, vector: Vector) -> None:
    assert gallery.face("default", "0" * 32) is None
    gallery.enroll("default", "Ada", [face(1)])
    (stored,) = gallery.enroll("default", "Bob", [face(2)])
    found = gallery.face("default", stored.face_id)
    assert found is not None
    assert found[0] == "Bob"
    assert np.array_equal(found[1], vector(2))
    for collection, id_ in (("elsewhere", stored.face_id), ("default", "0" * 32), ("default", "no id"), ("default", "")):
        assert gallery.face(collection, id_) is None


def test_replaced_by_nothing_a_collection_is_gone(gallery: Gallery, face: Face) -> None:
    gallery.enroll("default", "Ada", [face(1)])
    gallery.enroll("other", "Bob", [face(2)])
    assert gallery.replace("default", []) == 0
    assert [collection.name for collection in gallery.collections()] == ["other"]
    assert gallery.replace("default", []) == 0


def test_a_subject_goes_with_its_last_face(gallery: Gallery, face: Face, vector: Vector) -> None:
    first, second = gallery.enroll("default", "Ada", [face(1), face(2)])
    with pytest.raises(FaceUnknown):
        gallery.delete_face("default", "Ada", "0" * 32)
    with pytest.raises(SubjectUnknown):
        gallery.delete_face("default", "Bob", first.face_id)
    assert gallery.delete_face("default", "Ada", first.face_id) == 1
    (match,) = gallery.search("default", vector(1)[np.newaxis]).matches[0]
    assert match.face_id == second.face_id
    assert gallery.delete_face("default", "Ada", second.face_id) == 0
    assert gallery.collections() == []
    with pytest.raises(SubjectUnknown):
        gallery.subject("default", "Ada")


def test_export_and_import_carry_everything(databases: Callable[[], Any], face: Face, vector: Vector) -> None:
    one, two = databases().open(), databases().open()
    for number, name in enumerate(NAMES[:6]):
        one.enroll("default", name, [face(number), face(number + 100)])
    one.enroll("second", "Ada", [face(50)])
    entries = list(one.export())
    assert [(entry.collection, entry.subject) for entry in entries] == sorted(
        (entry.collection, entry.subject) for entry in entries
    )
    assert two.import_(iter(entries)) == 13
    assert two.import_(entries) == 0
    for ours, theirs in zip(entries, two.export(), strict=True):
        assert (ours.collection, ours.subject, ours.box, ours.quality, ours.enrolled_at) == (
            theirs.collection, theirs.subject, theirs.box, theirs.quality, theirs.enrolled_at,
        )  # fmt: skip
        assert ours.embedding.tobytes() == theirs.embedding.tobytes()
    assert [entry.subject for entry in two.export("second")] == ["Ada"]
    assert found(two, vector(103)) == [NAMES[3]]


def broken(entries: Sequence[Entry]) -> Iterator[Entry]:
    yield from entries
    raise OSError("the file ends in the middle")


def test_import_and_replace_are_all_or_nothing(gallery: Gallery, face: Face, vector: Vector) -> None:
    gallery.enroll("default", "Ada", [face(1)])
    entries = list(gallery.export())
    more = [Entry("default", f"s{n}", vector(n), (0.0, 0.0, 1.0, 1.0), {}, entries[0].enrolled_at) for n in range(5, 9)]
    for call in (gallery.import_, lambda some: gallery.replace("default", some)):
        with pytest.raises(OSError, match="in the middle"):
            call(broken(more))
        assert names_of(gallery) == ["Ada"]
        assert found(gallery, vector(6), top_k=9) == ["Ada"]
    assert gallery.replace("default", more) == 4
    assert names_of(gallery) == ["s5", "s6", "s7", "s8"]
    assert found(gallery, vector(1), top_k=9, threshold=0.99) == []
    assert gallery.replace("default", []) == 0
    assert gallery.collections() == []


def test_a_collection_belongs_to_the_model_that_made_it(database: Any, face: Face, vector: Vector) -> None:
    ours, other = database.open(), database.open(database.other_model)
    stored = ours.enroll("default", "Ada", [face(1), face(2)])
    long = vector(1, database.other_model.dimension)
    entry = Entry("default", "Eve", long, (0.0, 0.0, 1.0, 1.0), {}, stored[0].enrolled_at)
    for call in (
        lambda: other.enroll("default", "Eve", [face(embedding=long)]),
        lambda: other.search("default", long[np.newaxis]),
        lambda: list(other.export("default")),
        lambda: list(other.export()),
        lambda: other.import_([entry]),
        lambda: check_models(other),
    ):
        with pytest.raises(GalleryMismatch, match=r"sface.*arcface"):
            call()
    assert other.enroll("second", "Eve", [face(embedding=long)])[0].known is False
    assert other.rename("default", "Ada", "Eve").faces == 2
    assert other.delete_face("default", "Eve", stored[0].face_id) == 1
    assert [(one.name, one.model) for one in ours.collections()] == [("default", ours.model), ("second", other.model)]
    assert other.replace("default", [entry]) == 1
    assert found(other, long) == ["Eve"]
    with pytest.raises(GalleryMismatch):
        ours.search("default", vector(1)[np.newaxis])
    other.delete_subject("default", "Eve")
    assert ours.enroll("default", "Ada", [face(1)])[0].known is False


def test_what_one_wrote_the_other_reads_at_once(database: Any, face: Face, vector: Vector) -> None:
    one, other = database.open(), database.open()
    one.warm()
    for number in range(20):
        one.enroll("default", f"s{number}", [face(number)])
        assert found(other, vector(number)) == [f"s{number}"]
    for number in range(19):
        other.delete_subject("default", f"s{number}")
        assert found(one, vector(number), threshold=0.999) == []
        assert other.search("default", vector(0)[np.newaxis]).faces == 19 - number


def test_many_threads_lose_nothing(database: Any, face: Face, vector: Vector) -> None:
    galleries = [database.open(), database.open()]
    failures = list[str]()

    def work(worker: int) -> None:
        gallery = galleries[worker % 2]
        for step in range(6):
            number = worker * 100 + step
            stored = gallery.enroll("default", f"s{number}", [face(number)])
            for reader in galleries:
                if found(reader, vector(number)) != [f"s{number}"]:
                    failures.append(f"{number} was not found")
            gallery.enroll("default", "everybody", [face(number + 50)])
            if step % 2:
                gallery.delete_face("default", f"s{number}", stored[0].face_id)
                if found(galleries[0], vector(number), threshold=0.999):
                    failures.append(f"{number} is still there")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert failures == []
    assert galleries[0].subject("default", "everybody")[0].faces == 48
    assert galleries[1].subjects("default").subjects_total == 25


def test_only_one_of_many_takes_a_name(database: Any, face: Face) -> None:
    gallery, start = database.open(), threading.Barrier(6)
    for number in range(6):
        gallery.enroll("default", f"s{number}", [face(number)])

    def rename(number: int) -> bool:
        start.wait()
        try:
            gallery.rename("default", f"s{number}", "taken")
        except SubjectExists:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(rename, range(6))) == 1
    assert len(names_of(gallery)) == 6


def test_closing_twice_is_no_error(database: Any, face: Face) -> None:
    gallery = database.open()
    gallery.enroll("default", "Ada", [face(1)])
    gallery.close()
    gallery.close()
    assert names_of(database.open()) == ["Ada"]
