"""The short walk over a JPEG's header sees what Pillow sees or nothing; reduced pixels are means that lie where they should."""

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.errors import ImageDamaged, ImageTooSmall, TooManyPixels
from service.imaging import Grid, jpeg
from service.imaging.codec import Limits, decode, decode_enough, enough
from service.imaging.jpeg import Header, more_scans_than, read_header, read_pixels

Array = NDArray[Any]
XMP = b"http://ns.adobe.com/xap/1.0/\0"


def save(picture: Image.Image | Array, **options: Any) -> bytes:
    file = BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))).save(file, "JPEG", **options)
    return file.getvalue()


def turned_by(orientation: int, **tags: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.update({int(tag, 16): value for tag, value in tags.items()})
    return exif


def seen_by_pillow(file: bytes) -> Header:
    with Image.open(BytesIO(file), formats=["JPEG"]) as picture:
        progressive = bool(picture.info.get("progressive"))
        return Header(picture.width, picture.height, progressive, picture.getexif().get(0x0112, 1))


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def with_segment(file: bytes, added: bytes) -> bytes:
    return file[:2] + added + file[2:]


def tiff(order: str, *entries: tuple[int, int, int, int], start: int = 8) -> bytes:
    """EXIF data of one directory: (tag, type, count, value as an unsigned short) each."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    body = b"".join(struct.pack(f"{order}HHIHxx", *entry) for entry in entries)
    return head.ljust(start, b"\0") + struct.pack(f"{order}H", len(entries)) + body + bytes(4)


def exif(*parts: bytes) -> bytes:
    return segment(0xE1, b"".join((b"Exif\0\0", *parts)))


PLAIN = save(np.zeros((24, 40, 3), np.uint8))
SIX, MAKER = (274, 3, 1, 6), (271, 2, 2, 65)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(0, 65535),
    st.sampled_from(["<", ">"]),
    st.lists(
        st.tuples(st.integers(0, 65535).filter(lambda tag: tag != 274), st.just(3), st.just(1), st.integers(0, 9)), max_size=4
    ),
    st.none() | st.integers(0, 9),
    st.binary(max_size=40),
)
def test_the_header_is_what_pillow_reads(
    width: int,
    height: int,
    grey: bool,
    progressive: bool,
    orientation: int | None,
    order: str,
    others: list[tuple[int, int, int, int]],
    xmp: int | None,
    comment: bytes,
) -> None:
    file = save(np.zeros((height, width) if grey else (height, width, 3), np.uint8), progressive=progressive, comment=comment)
    if orientation is not None or others:
        file = with_segment(
            file, exif(tiff(order, *sorted([*others, *([] if orientation is None else [(274, 3, 1, orientation)])])))
        )
    if xmp is not None:
        file = with_segment(file, segment(0xE1, XMP + b'<x tiff:Orientation="%d"/>' % xmp))
    assert read_header(file) == read_header(bytearray(file)) == read_header(memoryview(file)) == seen_by_pillow(file)


@pytest.mark.parametrize(
    ("added", "orientation"),
    [
        (exif(tiff("<", MAKER, SIX)), 6),
        (exif(tiff(">", SIX, (274, 3, 1, 8))), 6),
        (exif(tiff("<", SIX, start=30)), 6),
        (exif(tiff("<", MAKER)), 1),
        (exif(tiff("<", MAKER)) + segment(0xE1, XMP + b"<tiff:Orientation>3<"), 3),
        (exif(tiff("<", (274, 3, 1, 0))) + segment(0xE1, XMP + b"<tiff:Orientation>3<"), 0),
        (segment(0xE1, XMP + b"<tiff:Orientation>3<") + segment(0xE1, XMP + b"<tiff:Orientation>4<"), 4),
        (segment(0xE1, b"something else") + segment(0xE3, b"more") + segment(0xFE, b""), 1),
    ],
)
def test_orientations(added: bytes, orientation: int) -> None:
    file = with_segment(PLAIN, added)
    assert read_header(file) == seen_by_pillow(file) == Header(40, 24, False, orientation)


def replaced(file: bytes, find: bytes, at: int, value: bytes) -> bytes:
    start = file.index(find) + at
    return file[:start] + value + file[start + len(value) :]


SOF = b"\xff\xc0"


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\xff\xd8\xff",
        PLAIN[:20],
        PLAIN[: PLAIN.index(b"\xff\xda")],
        PLAIN[1:],
        PLAIN[:2] + b"\0" + PLAIN[2:],
        PLAIN[:2] + b"\xff" + PLAIN[2:],
        replaced(PLAIN, SOF, 1, b"\xc9"),
        replaced(PLAIN, SOF, 4, b"\x0c"),
        replaced(PLAIN, SOF, 5, b"\0\0"),
        replaced(PLAIN, SOF, 7, b"\0\0"),
        replaced(PLAIN, SOF, 9, b"\x04"),
        replaced(PLAIN, SOF, 0, segment(0xFE, bytes(15))),
        with_segment(PLAIN, PLAIN[PLAIN.index(SOF) :][:19]),
        with_segment(PLAIN, b"\xff\xe0\0\x01"),
        with_segment(PLAIN, segment(0xDC, b"\0\1")),
        with_segment(PLAIN, b"\xff\xd9"),
        with_segment(PLAIN, exif(b"")),
        with_segment(PLAIN, exif(b"Exif\0\0", tiff("<", SIX))),
        with_segment(PLAIN, exif(tiff("<", SIX)) * 2),
        with_segment(PLAIN, exif(tiff("<", (274, 4, 1, 6)))),
        with_segment(PLAIN, exif(tiff("<", (274, 3, 2, 6)))),
        with_segment(PLAIN, exif(tiff("<", SIX)[:-10])),
        with_segment(PLAIN, exif(tiff("<", SIX, start=4000)[:100])),
        with_segment(PLAIN, exif(b"II*\0\0\0\0\0\0\0\0\0\0\0")),
        with_segment(PLAIN, exif(b"II+\0", tiff("<", SIX)[4:])),
        save(Image.new("CMYK", (20, 20))),
    ],
)
def test_what_is_odd_is_left_to_others(file: bytes) -> None:
    assert read_header(file) is None


CHANGES = st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=6), st.booleans()), min_size=1, max_size=5)
SEEDS = [
    with_segment(PLAIN, exif(tiff(">", MAKER, SIX))),
    with_segment(save(np.zeros((16, 16), np.uint8), progressive=True), segment(0xE1, XMP + b"<tiff:Orientation>3<")),
]


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(SEEDS), CHANGES, st.integers(0, 900))
def test_mutated_headers_neither_raise_nor_differ_from_pillow(
    file: bytes, changes: list[tuple[int, bytes, bool]], cut: int
) -> None:
    for at, value, inserted in changes:
        file = file[:at] + value + file[at if inserted else at + len(value) :]
    file = file[: cut + 300]
    header = read_header(file)
    if header is None:
        return
    try:
        expected = seen_by_pillow(file)
    except Exception:  # noqa: BLE001
        return
    assert header == expected


def test_scans_are_counted_up_to_the_limit() -> None:
    file = b"\xff\xda" * 3 + b"\xff\0\xda"
    for data in (file, bytearray(file), memoryview(file)):
        assert more_scans_than(2, data)
        assert not more_scans_than(3, data)


# Reduced pixels.

RNG = np.random.default_rng(8)
ROWS, COLUMNS = 333, 501
SMOOTH = cv2.resize(RNG.integers(20, 236, (12, 18, 3)).astype(np.float32), (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC)
PICTURE = SMOOTH.clip(0, 255).astype(np.uint8)
STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.transpose(1, 0, 2),
    6: lambda u: np.rot90(u, 1),
    7: lambda u: np.rot90(u, 2).transpose(1, 0, 2),
    8: lambda u: np.rot90(u, -1),
}
FINE = {"quality": 98, "subsampling": 0}


@pytest.mark.parametrize("options", [FINE, {"quality": 90}, {"quality": 90, "progressive": True}], ids=str)
@pytest.mark.parametrize("step", jpeg.STEPS)
def test_reduced_pixels_are_means(step: int, options: dict[str, Any]) -> None:
    file = save(PICTURE[:320, :480], **options)
    whole, reduced = read_pixels(file, 320, 480), read_pixels(file, 320, 480, step)
    assert whole is not None
    assert reduced is not None
    means = whole.reshape(320 // step, step, 480 // step, step, 3).mean(axis=(1, 3))
    assert reduced.shape == means.shape
    assert np.abs(reduced - means).mean() < 0.6
    assert np.abs(reduced - means).max() < (2.6 if options is FINE else 6)


def test_a_size_that_the_file_does_not_have_is_refused() -> None:
    file = save(PICTURE)
    assert read_pixels(file, ROWS, COLUMNS) is not None
    for height, width in ((ROWS + 1, COLUMNS), (ROWS, COLUMNS + 1), (ROWS - 1, COLUMNS), (ROWS // 2, COLUMNS // 2)):
        assert read_pixels(file, height, width) is None
    assert read_pixels(file[:-200], ROWS, COLUMNS) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("step", jpeg.STEPS)
@pytest.mark.parametrize(("rows", "columns"), [(333, 501), (328, 499), (321, 487), (320, 496)])
def test_each_reduced_pixel_is_the_mean_of_what_its_grid_says(step: int, orientation: int, rows: int, columns: int) -> None:
    upright = PICTURE[:rows, :columns]
    file = save(STORED[orientation](upright), exif=turned_by(orientation), **FINE)
    pixels, grid = decode_enough(file, lambda *_: 1 / (2 * step))
    assert (grid.height, grid.width, grid.step) == (rows, columns, step)
    for start, side, count in ((grid.top, rows, pixels.shape[0]), (grid.left, columns, pixels.shape[1])):
        assert abs(start) <= step / 2
        assert abs(side - start - count * step) <= step / 2
    bordered = np.pad(upright, ((step, step), (step, step), (0, 0)), mode="edge")[step + grid.top :, step + grid.left :]
    means = bordered[: pixels.shape[0] * step, : pixels.shape[1] * step].reshape(pixels.shape[0], step, pixels.shape[1], step, 3)
    difference = np.abs(pixels - means.mean(axis=(1, 3)))
    assert difference.mean() < 1
    assert difference[1:-1, 1:-1].max() < 4
    assert difference.max() < 12  # at the edges an encoder fills its last block as it likes


def test_without_a_scale_every_pixel_is_decoded() -> None:
    file = save(PICTURE)
    pixels, grid = decode_enough(file, None)
    assert grid == Grid(ROWS, COLUMNS)
    assert np.array_equal(pixels, decode(file))


@pytest.mark.parametrize(
    ("scale", "step"), [(2, 1), (1, 1), (0.26, 1), (0.25, 2), (0.126, 2), (0.125, 4), (0.0626, 4), (0.0625, 8), (0.001, 8), (0, 8)]
)
def test_twice_what_the_model_sees_is_enough(scale: float, step: int) -> None:
    assert enough(lambda *_: scale, 100, 100) == step


@pytest.mark.parametrize(
    ("orientation", "upright"), [(1, (ROWS, COLUMNS)), (3, (ROWS, COLUMNS)), (6, (COLUMNS, ROWS)), (5, (COLUMNS, ROWS))]
)
def test_the_scale_is_asked_of_the_upright_picture(orientation: int, upright: tuple[int, int]) -> None:
    asked = []

    def scale(height: int, width: int) -> float:
        asked.append((height, width))
        return 1.0

    decode_enough(save(PICTURE, exif=turned_by(orientation)), scale)
    assert asked == [upright]


def test_only_jpeg_is_reduced_and_only_where_its_header_is_plain() -> None:
    png = BytesIO()
    Image.fromarray(PICTURE).save(png, "PNG")
    odd = PLAIN[:2] + b"\xff" + PLAIN[2:]
    for file in (png.getvalue(), odd, save(Image.fromarray(PICTURE).convert("CMYK"))):
        assert decode_enough(file, lambda *_: 0.01)[1].step == 1


def test_limits_and_damage_count_for_the_whole_picture() -> None:
    file = save(PICTURE)
    for limits, error in ((Limits(max_pixels=ROWS * COLUMNS - 1), TooManyPixels), (Limits(min_side=ROWS + 1), ImageTooSmall)):
        with pytest.raises(error, match=f"{COLUMNS} x {ROWS} pixels"):
            decode_enough(file, lambda *_: 0.01, limits)
    with pytest.raises(ImageDamaged):
        decode_enough(file[:-100], lambda *_: 0.01)
    progressive = save(PICTURE, progressive=True)
    with pytest.raises(ImageDamaged, match="scans"):
        decode_enough(progressive[:-2] + progressive[progressive.rindex(b"\xff\xda") : -2] * 201, lambda *_: 0.01)
