"""The portable file: what goes in comes out to the last byte, and nothing that was cut, altered or made up gets in."""

import base64
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.cli.faces import export_to, import_from
from service.errors import GalleryMismatch, OptionInvalid

Lines = list[dict[str, Any]]


@pytest.fixture
def filled(gallery: Any, face: Callable[..., Any]) -> Any:
    gallery.import_([face(1, "Anna"), face(2, "Anna"), face(3, "Jürgen\u2028 Ωmega 🙂"), face(4, "Anna", "Büro <2>")])
    return gallery


def exported(gallery: Any, collection: str | None = None) -> bytes:
    file = io.BytesIO()
    export_to(gallery, collection, file)
    return file.getvalue()


def rewritten(data: bytes, change: Callable[[list[bytes]], Any]) -> io.BytesIO:
    lines = gzip.decompress(data).splitlines(keepends=True)
    change(lines)
    return io.BytesIO(gzip.compress(b"".join(lines)))


def edited(number: int, **values: Any) -> Callable[[list[bytes]], None]:
    """Line `number` with other values."""

    def change(lines: list[bytes]) -> None:
        lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **values}).encode() + b"\n"

    return change


def test_a_round_trip_gives_the_same_file(filled: Any, new_gallery: Callable[..., Any]) -> None:
    data, other = exported(filled), new_gallery()
    assert import_from(other, None, io.BytesIO(data)) == (4, 4)
    assert exported(other) == data
    for (_, ours), (_, theirs) in zip(sorted(filled.faces), sorted(other.faces), strict=True):
        np.testing.assert_array_equal(ours.embedding, theirs.embedding)
        assert replace(ours, embedding=None) == replace(theirs, embedding=None)  # type: ignore[arg-type]


def test_importing_twice_adds_nothing(filled: Any) -> None:
    assert import_from(filled, None, io.BytesIO(exported(filled))) == (0, 4)


def test_the_first_line_says_what_it_is(filled: Any) -> None:
    header = json.loads(gzip.decompress(exported(filled)).splitlines()[0])
    assert header["format"] == "vision-service faces"
    assert header["version"] == 1
    assert header["model"] == vars(filled.model)
    assert (header["collections"], header["faces"]) == (["Büro <2>", "default"], 4)


def test_one_collection_goes_out_and_into_another(filled: Any, new_gallery: Callable[..., Any]) -> None:
    other = new_gallery()
    assert import_from(other, "moved", io.BytesIO(exported(filled, "default"))) == (3, 3)
    assert [(one.name, one.subjects, one.faces) for one in other.collections()] == [("moved", 2, 3)]


def test_several_collections_are_not_thrown_together(filled: Any, new_gallery: Callable[..., Any]) -> None:
    with pytest.raises(OptionInvalid, match="2 collections"):
        import_from(new_gallery(), "moved", io.BytesIO(exported(filled)))


def test_an_unknown_collection_is_not_exported_as_an_empty_one(filled: Any) -> None:
    with pytest.raises(OptionInvalid, match="no gallery 'nope'"):
        exported(filled, "nope")


def test_another_models_file_is_refused_by_both_names(filled: Any, new_gallery: Callable[..., Any]) -> None:
    other = new_gallery(model=replace(filled.model, name="arcface", digest="cd" * 32))
    with pytest.raises(GalleryMismatch, match=r"sface 1.0 \(abab.*arcface 1.0 \(cdcd.*faces reembed FOLDER"):
        import_from(other, None, io.BytesIO(exported(filled)))
    assert other.faces == []


def test_a_file_cut_anywhere_is_refused_and_nothing_is_added(filled: Any, new_gallery: Callable[..., Any]) -> None:
    data, other = exported(filled), new_gallery()
    for end in range(0, len(data), 7):
        with pytest.raises(OptionInvalid, match=r"cut short|was not written by"):
            import_from(other, None, io.BytesIO(data[:end]))
    assert other.faces == []


def test_a_flipped_bit_is_noticed(filled: Any, new_gallery: Callable[..., Any]) -> None:
    data, other = exported(filled), new_gallery()
    for at in range(20, len(data) - 8, 97):
        with pytest.raises(OptionInvalid, match="line "):
            import_from(other, None, io.BytesIO(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]))
    assert other.faces == []


NAN = base64.b64encode(np.full(16, np.nan, "<f4").tobytes()).decode()
LONG = base64.b64encode(np.full(16, 1.0, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda lines: lines.pop(2), "line 5: the file was altered: 3 faces", id="a line was taken out"),
        pytest.param(lambda lines: lines.pop(), "cut short: it ends after 4 of 4", id="no last line"),
        pytest.param(lambda lines: lines.append(lines[1]), "line 7: the file goes on", id="goes on"),
        pytest.param(edited(3, subject="Eve"), "line 6: the file was altered", id="altered"),
        pytest.param(edited(6, faces=9), "line 6: .*: 4 faces came .* tells of 9", id="another count"),
        pytest.param(edited(1, version=2), "line 1: the file has version 2", id="version"),
        pytest.param(edited(1, format="other"), "line 1: .*first line does not say", id="format"),
        pytest.param(edited(1, extra=1), "line 1: 'extra'", id="unknown key in the header"),
        pytest.param(edited(1, collections=["default"]), r"line 2: .*'Büro <2>'", id="a collection that was not announced"),
        pytest.param(edited(2, subject="\x07"), "line 2: subject is empty|line 2: subject .*U\\+0007", id="control character"),
        pytest.param(edited(2, subject="x" * 201), "line 2: subject has 201", id="long name"),
        pytest.param(edited(2, embedding="AAAA"), "line 2: embedding: it has 3 bytes", id="wrong dimension"),
        pytest.param(edited(2, embedding=NAN), "line 2: embedding: its length is nan", id="no number"),
        pytest.param(edited(2, embedding=LONG), "line 2: embedding: its length is 4", id="not of unit length"),
        pytest.param(edited(2, embedding="?"), "line 2: ", id="no base64"),
        pytest.param(edited(2, box=[1, 2, 3]), "line 2: 'box.3'", id="half a box"),
        pytest.param(edited(2, box=[1, 2, 3, float("inf")]), "line 2: 'box.3'", id="an endless box"),
        pytest.param(edited(2, quality={}), "line 2: 'quality.size'", id="no quality"),
        pytest.param(edited(2, enrolled_at="2025-01-01T00:00:00"), "line 2: 'enrolled_at'", id="a time of no zone"),
        pytest.param(edited(2, enrolled_at="0001-01-01T00:00:00+05:00"), "line 2: ", id="before all time"),
        pytest.param(lambda lines: lines.insert(1, b"[" * 9000 + b"\n"), "line 2: ", id="nested without end"),
        pytest.param(lambda lines: lines.insert(1, b" " * 300_000), "line 2: the line has more", id="a line without end"),
        pytest.param(lambda lines: lines.clear(), "line 1: ", id="empty"),
    ],
)
def test_what_is_wrong_is_told_by_its_line(
    filled: Any, new_gallery: Callable[..., Any], change: Callable[[list[bytes]], Any], message: str
) -> None:
    other = new_gallery()
    with pytest.raises(OptionInvalid, match=message):
        import_from(other, None, rewritten(exported(filled), change))
    assert other.faces == []


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x1f\x8b", b'{"format": "vision-service faces"}'])
def test_what_is_no_such_file_is_said_to_be_none(gallery: Any, data: bytes) -> None:
    with pytest.raises(OptionInvalid, match="line 1: the file"):
        import_from(gallery, None, io.BytesIO(data))
