"""A folder per subject into the gallery: what counts as what, going on after a crash, reports, and a new model's embeddings."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.cli.faces_album import read_album
from service.cli.faces_enroll import CHUNK, SubjectReport, enroll_album, report
from service.cli.faces_journal import Journal, journal_path
from service.cli.faces_reembed import Renewal, reembed
from service.errors import GalleryUnavailable, OptionInvalid
from service.gallery.gallery import EmbeddingModel
from service.tasks.people import EnrollOptions

OTHER = EmbeddingModel("arcface", "2", "cd" * 32, "aligned-1", 16)


def put(folder: Path, **photos: str) -> Path:
    """Photos as text; `anna_1="7"` is the photo anna/1.jpg of the face 7."""
    for name, text in photos.items():
        path = folder / f"{name.replace('_', '/')}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return put(tmp_path / "people", anna_1="1", anna_2="2", ben_1="3", ben_deeper_2="4")


@pytest.fixture
def enroll(reader: Any, tmp_path: Path) -> Callable[..., dict[str, SubjectReport]]:
    """Enroll a folder: the reports by subject."""

    def run(folder: Path, **options: Any) -> dict[str, SubjectReport]:
        reader.looked.clear()
        with Journal(tmp_path / "journal" / "one.jsonl") as journal:
            results = list(enroll_album(reader, read_album(folder), EnrollOptions(**options), journal))
        return {one.subject: one for one in results if one is not None}

    return run


Enroll = Callable[..., dict[str, SubjectReport]]


def counts(reports: dict[str, SubjectReport]) -> dict[str, tuple[int, int, int, int]]:
    return {name: (one.added, one.already, len(one.refused), one.withheld) for name, one in reports.items()}


def held(gallery: Any, collection: str = "default") -> dict[str, int]:
    names = {one.subject for _, one in gallery.faces if one.collection == collection}
    return {name: gallery.subject(collection, name)[0].faces for name in sorted(names)}


# what a folder holds


def test_nested_folders_count_to_their_subject_and_loose_photos_to_nobody(people: Path) -> None:
    put(people, loose="1", anna_note="1")
    (people / "anna" / "note.jpg").rename(people / "anna" / "note.txt")
    (people / "readme.txt").write_text("not a photo")
    (people / "nobody").mkdir()
    put(people, **{".hidden_1": "1", "anna_.DS": "1"})
    album = read_album(people)
    assert {name: [photo.name for photo in photos] for name, photos in album.subjects.items()} == {
        "anna": ["anna/1.jpg", "anna/2.jpg"],
        "ben": ["ben/1.jpg", "ben/deeper/2.jpg"],
    }
    assert [(one.photo, one.code) for one in album.refused] == [("loose.jpg", "subject_missing")]
    assert album.empty == ["nobody"]


def test_two_spellings_of_one_name_are_one_subject(tmp_path: Path) -> None:
    album = read_album(put(tmp_path, **{"Jürgen_1": "1", "Ju\u0308rgen_2": "2"}))
    assert {name: len(photos) for name, photos in album.subjects.items()} == {"Jürgen": 2}


@pytest.mark.parametrize(
    ("name", "shown", "detail"),
    [
        (os.fsdecode(b"caf\xe9"), "caf\\udce9/1.jpg", "U+DCE9"),
        ("a\x1b[2J", "a\\x1b[2J/1.jpg", "U+001B"),
        ("x" * 201, "x" * 201 + "/1.jpg", "201 characters"),
        (" ben", " ben/1.jpg", "white space"),
    ],
)
def test_a_name_that_cannot_be_kept_costs_its_own_photos_only(people: Path, name: str, shown: str, detail: str) -> None:
    put(people, **{f"{name}_1": "9"})
    album = read_album(people)
    assert [(one.photo, one.code) for one in album.refused] == [(shown, "option_invalid")]
    assert detail in album.refused[0].detail
    assert album.photos == 4


def test_linked_photos_count_and_linked_folders_do_not_go_round(people: Path) -> None:
    (people / "ben" / "linked.jpg").symlink_to(people / "anna" / "1.jpg")
    (people / "ben" / "round").symlink_to(people / "ben")
    (people / "ben" / "gone.jpg").symlink_to(people / "nowhere.jpg")
    names = [photo.name for photo in read_album(people).subjects["ben"]]
    assert names == ["ben/1.jpg", "ben/deeper/2.jpg", "ben/gone.jpg", "ben/linked.jpg"]


@pytest.mark.parametrize(("inside", "message"), [(None, "is not a folder"), ("note.txt", "holds no folders with photos")])
def test_a_folder_with_nothing_to_enroll_is_refused(tmp_path: Path, inside: str | None, message: str) -> None:
    if inside:
        (tmp_path / "people").mkdir()
        (tmp_path / "people" / inside).write_text("")
    with pytest.raises(OptionInvalid, match=message):
        read_album(tmp_path / "people")


# enrolling


def test_every_subject_is_enrolled(people: Path, enroll: Enroll, gallery: Any) -> None:
    reports = enroll(people, gallery="site")
    assert counts(reports) == {"anna": (2, 0, 0, 0), "ben": (2, 0, 0, 0)}
    assert held(gallery, "site") == {"anna": 2, "ben": 2}
    assert held(gallery) == {}


def test_a_refused_photo_keeps_its_subject_out_and_the_rest_go_on(people: Path, enroll: Enroll, gallery: Any) -> None:
    put(people, anna_3="blurred")
    (people / "ben" / "gone.jpg").symlink_to(people / "nowhere.jpg")
    put(people, cleo_1="5")
    reports = enroll(people)
    assert counts(reports) == {"anna": (0, 0, 1, 2), "ben": (0, 0, 1, 2), "cleo": (1, 0, 0, 0)}
    assert held(gallery) == {"cleo": 1}
    (refusal,) = reports["anna"].refused
    assert (refusal.photo, refusal.code, refusal.measured, refusal.limit) == ("anna/3.jpg", "face_blurred", 0.001, 0.005)
    assert [one.code for one in reports["ben"].refused] == ["file_unusable"]


def test_partial_enrolls_the_good_ones_in_small_parts(tmp_path: Path, enroll: Enroll, gallery: Any) -> None:
    put(tmp_path / "people", anna_000="none", **{f"anna_{n:03}": str(n) for n in range(1, 2 * CHUNK + 3)})
    gallery.lost = 2
    with pytest.raises(GalleryUnavailable):
        enroll(tmp_path / "people", partial=True)
    assert held(gallery) == {"anna": 2 * CHUNK}
    gallery.lost = 10
    assert counts(enroll(tmp_path / "people", partial=True)) == {"anna": (2, 2 * CHUNK, 1, 0)}


def test_the_same_photo_twice_is_one_face(people: Path, enroll: Enroll, gallery: Any) -> None:
    put(people, anna_copy="1")
    assert counts(enroll(people))["anna"] == (2, 1, 0, 0)
    assert held(gallery)["anna"] == 2


def test_the_same_face_under_two_names_is_warned_of(people: Path, enroll: Enroll) -> None:
    put(people, zoe_1="1")
    reports = enroll(people)
    assert "'anna'" in reports["zoe"].warnings[0]
    assert reports["anna"].warnings == []


# going on


def test_a_second_run_looks_at_nothing_again(people: Path, enroll: Enroll, reader: Any) -> None:
    enroll(people)
    assert counts(enroll(people)) == {"anna": (0, 2, 0, 0), "ben": (0, 2, 0, 0)}
    assert reader.looked == []


def test_cut_off_it_goes_on_where_it_stopped(people: Path, enroll: Enroll, reader: Any, gallery: Any) -> None:
    gallery.lost = 1
    with pytest.raises(GalleryUnavailable):
        enroll(people)
    gallery.lost = 9
    assert counts(enroll(people)) == {"anna": (0, 2, 0, 0), "ben": (2, 0, 0, 0)}
    assert reader.looked == ["ben/1.jpg", "ben/deeper/2.jpg"]


def test_a_journal_cut_anywhere_costs_at_most_another_look(people: Path, enroll: Enroll, tmp_path: Path, gallery: Any) -> None:
    path = tmp_path / "journal" / "one.jsonl"
    enroll(people)
    whole = path.read_bytes()
    for end in range(0, len(whole), 23):
        path.write_bytes(whole[:end])
        assert sum(one.already for one in enroll(people).values()) == 4
        assert len(gallery.faces) == 4
        with Journal(path) as journal:
            photos = [photo for subject in read_album(people).subjects.values() for photo in subject]
            assert all(journal.face_of(photo.fingerprint()) for photo in photos), end


def test_a_changed_photo_is_looked_at_again(people: Path, enroll: Enroll, reader: Any) -> None:
    enroll(people)
    path = people / "anna" / "2.jpg"
    before = path.stat()
    path.write_text("8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as copying with all times does
    assert counts(enroll(people))["anna"] == (1, 1, 0, 0)
    assert reader.looked == ["anna/2.jpg"]


def test_what_was_deleted_meanwhile_is_enrolled_again(people: Path, enroll: Enroll, reader: Any, gallery: Any) -> None:
    reports = enroll(people)
    gallery.delete_subject("default", "ben")
    gallery.delete_face("default", "anna", reports["anna"].faces[0].face_id)
    assert counts(enroll(people)) == {"anna": (1, 1, 0, 0), "ben": (2, 0, 0, 0)}
    assert reader.looked == ["anna/1.jpg", "ben/1.jpg", "ben/deeper/2.jpg"]


def test_the_journal_is_private_and_names_nobody(people: Path, enroll: Enroll, tmp_path: Path) -> None:
    enroll(people)
    path = tmp_path / "journal" / "one.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert b"anna" not in path.read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GalleryUnavailable("the database has gone")])
def test_who_is_cut_off_is_told_how_to_go_on(people: Path, capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    def results() -> Iterator[SubjectReport | None]:
        yield SubjectReport("anna", there=2)
        raise error

    with pytest.raises(type(error)):
        report(results(), read_album(people), as_json=False)
    out, err = capsys.readouterr()
    assert out == "anna: 2 there already\n"
    assert "the same command goes on" in err


def test_other_options_and_places_have_other_journals(tmp_path: Path) -> None:
    paths = {journal_path(tmp_path, tmp_path / name, *parts) for name in ("a", "b") for parts in (("only", 0.6), ("largest", 0.6))}
    assert len(paths) == 4
    assert journal_path(tmp_path, tmp_path / "a", "only") == journal_path(tmp_path, tmp_path / "b" / ".." / "a", "only")


# reports


def told(capsys: pytest.CaptureFixture[str], folder: Path, reports: dict[str, SubjectReport], as_json: bool) -> tuple[int, str]:
    return report(reports.values(), read_album(folder), as_json), capsys.readouterr().out


def test_the_report_in_words(people: Path, enroll: Enroll, capsys: pytest.CaptureFixture[str]) -> None:
    put(people, anna_3="blurred", loose="1", zoe_1="3")
    (people / "nobody").mkdir()
    status, out = told(capsys, people, enroll(people), as_json=False)
    assert status == 1
    assert "anna: 1 refused, 2 withheld\nben: 2 added\nzoe: 1 added\n  warning: the same face seems to stand under 'ben'" in out
    assert "2 subjects: 3 faces added, 0 there already, 2 photos refused" in out
    assert "refused: anna/3.jpg: face_blurred (measured 0.001, limit 0.005): the face in anna/3.jpg" in out
    assert "refused: loose.jpg: subject_missing" in out
    assert "no photos: nobody" in out
    assert "2 good photos were not enrolled" in out


def test_the_report_as_json(people: Path, enroll: Enroll, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = told(capsys, people, enroll(people), as_json=True)
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [(one["subject"], one["added"], len(one["faces"])) for one in records[:-1]] == [("anna", 2, 2), ("ben", 2, 2)]
    assert records[-1] == {"subjects": 2, "added": 4, "already_there": 0, "withheld": 0, "refused": 0, "empty": []}


# another model


@pytest.fixture
def renew(people: Path, enroll: Enroll, gallery: Any, reader: Any) -> Callable[..., Renewal]:
    """Embed anew what another model made: people, and "site", which is left alone."""
    enroll(people)
    enroll(people, gallery="site")
    gallery.models["default"] = OTHER

    def run(drop_missing: bool = False, **options: Any) -> Renewal:
        return reembed(reader, gallery, read_album(people), EnrollOptions(**options), drop_missing)

    return run


def test_reembed_puts_new_faces_in_place(renew: Callable[..., Renewal], people: Path, gallery: Any) -> None:
    put(people, anna_2="12", stranger_1="7")
    renewal = renew()
    assert (renewal.subjects, renewal.faces, renewal.left_out, renewal.problem) == (2, 4, ["stranger"], "")
    assert [(one.name, one.model, one.faces) for one in gallery.collections()] == [
        ("default", gallery.model, 4),
        ("site", gallery.model, 4),
    ]
    assert gallery.search("default", [reader_face(gallery, "anna", 1)]).matches[0][0].subject == "anna"


def reader_face(gallery: Any, subject: str, number: int) -> Any:
    return [one.embedding for _, one in gallery.faces if (one.collection, one.subject) == ("default", subject)][number]


def test_reembed_refuses_where_a_subject_has_no_photo(renew: Callable[..., Renewal], people: Path, gallery: Any) -> None:
    (people / "ben").rename(people / "benjamin")
    before = list(gallery.faces)
    with pytest.raises(OptionInvalid, match=r"1 subjects of the gallery .*: ben; nothing was changed.*--drop-missing"):
        renew()
    assert gallery.faces == before
    renewal = renew(drop_missing=True)
    assert (renewal.faces, renewal.dropped, renewal.left_out) == (2, ["ben"], ["benjamin"])
    assert held(gallery) == {"anna": 2}


@pytest.mark.parametrize(
    ("refused", "options", "problem", "left"),
    [
        (["anna"], {}, "1 photos are refused, so nothing was changed", None),
        (["anna"], {"drop_missing": True}, "1 photos are refused", None),
        (["anna"], {"partial": True}, "", {"anna": 1, "ben": 2}),
        (["anna", "ben"], {"partial": True}, "1 subjects of the gallery have no usable photo in the folder: ben", None),
        (["anna", "ben"], {"partial": True, "drop_missing": True}, "", {"anna": 1}),
    ],
)
def test_reembed_loses_nobody_unasked(
    renew: Callable[..., Renewal],
    people: Path,
    gallery: Any,
    refused: list[str],
    options: Any,
    problem: str,
    left: dict[str, int] | None,
) -> None:
    put(people, anna_2="blurred")
    if "ben" in refused:
        put(people, ben_1="none", ben_deeper_2="none")
    renewal = renew(**options)
    assert renewal.problem.startswith(problem)
    assert bool(renewal.problem) is bool(problem)
    assert renewal.refused[0].photo == "anna/2.jpg"
    assert held(gallery) == (left or {"anna": 2, "ben": 2})
    assert gallery._model("default") == (OTHER if left is None else gallery.model)


@pytest.mark.parametrize(("name", "message"), [("site", "made by the model here"), ("nope", "no gallery 'nope'")])
def test_reembed_is_for_galleries_of_another_model(renew: Callable[..., Renewal], name: str, message: str) -> None:
    with pytest.raises(OptionInvalid, match=message):
        renew(gallery=name)


def test_enrolling_after_it_adds_nothing(renew: Callable[..., Renewal], enroll: Enroll, people: Path, gallery: Any) -> None:
    renew()
    assert counts(enroll(people)) == {"anna": (0, 2, 0, 0), "ben": (0, 2, 0, 0)}
    assert held(gallery) == {"anna": 2, "ben": 2}
