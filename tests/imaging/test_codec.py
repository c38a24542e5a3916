"""Every format, mode and orientation decodes to what people see; limits hold before decoding; nothing else ever leaves."""

import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from skimage import data as photos

from service.errors import ImageDamaged, ImageMissing, ImageTooSmall, NotAnImage, OptionInvalid, TooManyPixels
from service.imaging import codec
from service.imaging.codec import Limits, decode, encode, to_rgb

Array = NDArray[Any]
QUADRANTS = np.zeros((48, 64, 3), np.uint8)
QUADRANTS[:24, :32] = 220, 40, 30
QUADRANTS[:24, 32:] = 30, 200, 60
QUADRANTS[24:, :32] = 40, 60, 210
QUADRANTS[24:, 32:] = 230, 220, 50

# What a file holds for an upright picture `u`, by the meaning of each EXIF orientation.
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
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_deflate"},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4", "speed": 8},
    "JPEG": {"quality": 98, "subsampling": 0},
}


def save(picture: Image.Image | Array, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))).save(file, kind, **options)
    return file.getvalue()


def worst(a: Array, b: Array) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_undone(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(STORED[orientation](QUADRANTS), kind, exif=exif, **LOSSLESS[kind])
    pixels = decode(file)
    assert worst(pixels, QUADRANTS) <= 6
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("value", [0, 9, 4711])
def test_a_nonsensical_orientation_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert worst(decode(save(QUADRANTS, "PNG", exif=exif)), QUADRANTS) == 0


def test_orientation_from_xmp_counts_where_exif_has_none() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert worst(decode(save(STORED[6](QUADRANTS), "WEBP", xmp=xmp, lossless=True)), QUADRANTS) == 0


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda file: memoryview(b"".join((b"x", file)))[1:]])
def test_any_buffer_will_do(wrap: Callable[[bytes], Any]) -> None:
    assert worst(decode(wrap(save(QUADRANTS, "PNG"))), QUADRANTS) == 0


def test_jpeg_is_what_pillow_decodes() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"keep_rgb": True}):
        file = save(photos.astronaut()[:301, :403], "JPEG", **options)
        assert worst(decode(file), np.asarray(Image.open(BytesIO(file)))) <= 1, options


def test_cmyk_jpeg_is_left_to_pillow() -> None:
    file = save(Image.fromarray(photos.astronaut()[:101, :103]).convert("CMYK"), "JPEG")
    assert worst(decode(file), np.asarray(Image.open(BytesIO(file)).convert("RGB"))) == 0


def test_a_real_jpeg_file() -> None:
    rocket = photos.rocket()
    assert worst(decode(encode(rocket, "png")), rocket) == 0


RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
GREY = QUADRANTS[:, :, 1]


def cv_file(suffix: str, array: Array) -> bytes:
    return cv2.imencode(suffix, array)[1].tobytes()


def in_grey(values: Array) -> Array:
    return np.repeat(values[:, :, None], 3, axis=2)


EIGHT_BITS = np.round(RAMP / 257).astype(np.uint8)
BINARY = GREY > 100


@pytest.mark.parametrize(
    ("name", "file", "expected", "tolerance"),
    [
        ("grey JPEG", lambda: save(GREY, "JPEG", quality=98), in_grey(GREY), 3),
        ("grey PNG", lambda: save(GREY, "PNG"), in_grey(GREY), 0),
        ("16-bit grey PNG", lambda: cv_file(".png", RAMP), in_grey(EIGHT_BITS), 0),
        ("16-bit grey TIFF", lambda: cv_file(".tiff", RAMP), in_grey(EIGHT_BITS), 0),
        ("16-bit big-endian TIFF", lambda: big_endian_tiff(RAMP), in_grey(EIGHT_BITS), 0),
        ("16-bit colour PNG", lambda: cv_file(".png", QUADRANTS[:, :, ::-1].astype(np.uint16) * 257), QUADRANTS, 0),
        ("1-bit PNG", lambda: save(Image.fromarray(BINARY), "PNG"), in_grey(BINARY * np.uint8(255)), 0),
        ("1-bit fax TIFF", lambda: save(Image.fromarray(BINARY), "TIFF", compression="group4"), in_grey(BINARY * np.uint8(255)), 0),
        ("palette PNG", lambda: save(Image.fromarray(QUADRANTS).quantize(4), "PNG"), QUADRANTS, 2),
        ("palette BMP", lambda: save(Image.fromarray(QUADRANTS).quantize(4), "BMP"), QUADRANTS, 2),
        ("GIF", lambda: save(Image.fromarray(QUADRANTS).quantize(4), "GIF"), QUADRANTS, 2),
        ("CMYK TIFF", lambda: save(Image.fromarray(QUADRANTS).convert("CMYK"), "TIFF"), QUADRANTS, 2),
        (
            "CMYK JPEG, inverted as Adobe does",
            lambda: save(Image.fromarray(QUADRANTS).convert("CMYK"), "JPEG", quality=98),
            QUADRANTS,
            8,
        ),
        ("LZW TIFF", lambda: save(QUADRANTS, "TIFF", compression="tiff_lzw"), QUADRANTS, 0),
        ("JPEG in TIFF", lambda: save(QUADRANTS, "TIFF", compression="jpeg", quality=98), QUADRANTS, 12),
        ("BigTIFF", lambda: save(QUADRANTS, "TIFF", big_tiff=True), QUADRANTS, 0),
        ("lossless WebP", lambda: save(QUADRANTS, "WEBP", lossless=True), QUADRANTS, 0),
        ("lossy WebP", lambda: save(GREY, "WEBP", quality=98), in_grey(GREY), 9),
        ("AVIF", lambda: save(QUADRANTS, "AVIF", **LOSSLESS["AVIF"]), QUADRANTS, 3),
        (
            "multi-picture JPEG",
            lambda: save(GREY, "MPO", save_all=True, append_images=[Image.new("L", (64, 48))], quality=98),
            in_grey(GREY),
            3,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_becomes_8_bit_rgb(name: str, file: Callable[[], bytes], expected: Array, tolerance: int) -> None:
    assert worst(decode(file()), expected) <= tolerance


def tiff(body: bytes, tags: dict[int, int], order: str) -> bytes:
    """A TIFF written by hand: `body` at offset 8, then one directory. `order` is "<" or ">"."""
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(body))
    return start + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def big_endian_tiff(values: Array) -> bytes:
    height, width = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: values.nbytes}
    return tiff(values.astype(">u2").tobytes(), tags, ">")


def one_tile_tiff(side: int) -> bytes:
    """64 x 48 grey pixels in one deflated tile of side x side."""
    body = zlib.compress(bytes(side * side), 1)
    tags = {256: 64, 257: 48, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(body)}
    return tiff(body, tags, "<")


def half_clear(kind: str) -> tuple[Image.Image, Array]:
    """A picture of one colour, clear on the left and opaque on the right; and what it is on white."""
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, 8:] = 255
    colour = np.full((16, 16, 3), (10, 120, 10) if kind != "LA" else (90, 90, 90), np.uint8)
    rgba = Image.fromarray(np.dstack([colour, alpha]))
    return rgba.convert(kind) if kind != "RGBA" else rgba, np.where(alpha[:, :, None] > 0, colour, np.uint8(255))


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "TIFF"), ("RGBA", "AVIF")]
)
def test_alpha_is_laid_on_white(mode: str, kind: str) -> None:
    picture, expected = half_clear(mode)
    assert worst(decode(save(picture, kind, **LOSSLESS[kind])), expected) <= 3


def test_half_transparent_is_mixed_with_white() -> None:
    picture = Image.fromarray(np.full((9, 9, 4), (0, 100, 200, 128), np.uint8))
    assert worst(decode(save(picture, "PNG")), np.full((9, 9, 3), (127, 177, 227), np.uint8)) <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.parametrize("clear", [1, bytes([255, 0, 255])])
def test_palette_transparency_is_laid_on_white(kind: str, clear: int | bytes) -> None:
    picture = Image.new("P", (12, 10))
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.paste(1, (4, 0, 8, 10))
    picture.paste(2, (8, 0, 12, 10))
    expected = np.empty((10, 12, 3), np.uint8)
    expected[:, :4], expected[:, 4:8], expected[:, 8:] = (200, 0, 0), 255, (0, 0, 200)
    if kind == "GIF" and isinstance(clear, bytes):
        clear = 1  # a GIF knows only one clear colour
    assert worst(decode(save(picture, kind, transparency=clear)), expected) == 0


@pytest.mark.parametrize(("mode", "clear", "other"), [("L", 7, 90), ("RGB", (1, 2, 3), (9, 8, 7))])
def test_one_clear_colour_is_laid_on_white(mode: str, clear: Any, other: Any) -> None:
    picture = Image.new(mode, (10, 10), clear)
    picture.paste(other, (5, 0, 10, 10))
    pixels = decode(save(picture, "PNG", transparency=clear))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 9].tolist() == np.broadcast_to(other, 3).tolist()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ((200, 30, 30), (30, 200, 30), (30, 30, 200))]
    pixels = decode(save(frames[0], kind, save_all=True, append_images=frames[1:], **LOSSLESS.get(kind, {})))
    assert worst(pixels, np.full((24, 32, 3), (200, 30, 30), np.uint8)) <= 3


def patched(file: bytes, find: bytes, at: int, value: bytes) -> bytes:
    """`value` written `at` bytes after the first `find`."""
    start = file.index(find) + at
    return file[:start] + value + file[start + len(value) :]


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"


def huge(kind: str, width: int, height: int) -> bytes:
    """A small file whose header claims width x height."""
    clear = Image.fromarray(np.dstack([QUADRANTS, GREY]))
    tags = {"PNG": lambda: png_header(width, height)}
    tags["JPEG"] = lambda: patched(save(QUADRANTS, "JPEG"), b"\xff\xc0", 5, struct.pack(">HH", height, width))
    tags["GIF"] = lambda: patched(
        patched(save(Image.new("L", (33, 44)), "GIF"), b"GIF8", 6, struct.pack("<HH", width, height)),
        struct.pack("<HH", 33, 44),
        0,
        bytes([1, 0, 1, 0]),
    )
    tags["BMP"] = lambda: patched(save(QUADRANTS, "BMP"), b"BM", 18, struct.pack("<II", width, height))
    tags["WEBP"] = lambda: patched(save(QUADRANTS, "WEBP"), b"\x9d\x01\x2a", 3, struct.pack("<HH", width, height))
    tags["WEBP lossless"] = lambda: patched(
        save(QUADRANTS, "WEBP", lossless=True), b"VP8L", 9, struct.pack("<I", (width - 1) | (height - 1) << 14)
    )
    tags["WEBP extended"] = lambda: patched(
        save(clear, "WEBP"), b"VP8X", 12, struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    )
    tags["TIFF"] = lambda: patched(
        patched(save(QUADRANTS, "TIFF"), struct.pack("<HHI", 256, 4, 1), 8, struct.pack("<I", width)),
        struct.pack("<HHI", 257, 4, 1),
        8,
        struct.pack("<I", height),
    )
    tags["AVIF"] = lambda: patched(save(QUADRANTS, "AVIF"), b"ispe", 8, struct.pack(">II", width, height))
    return tags[kind]()


KINDS = ["PNG", "JPEG", "GIF", "BMP", "WEBP", "WEBP lossless", "WEBP extended", "TIFF", "AVIF"]


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_pixels_are_refused_by_the_header(kind: str) -> None:
    with pytest.raises(TooManyPixels, match=r"16000 x 12000 pixels, 192,000,000 in all, where 64,000,000 are allowed"):
        decode(huge(kind, 16_000, 12_000))


@pytest.mark.parametrize("kind", KINDS)
def test_too_long_a_side_is_refused_by_the_header(kind: str) -> None:
    with pytest.raises(TooManyPixels, match=r"12001 x 9 pixels; its longest side may have 12,000"):
        decode(huge(kind, 12_001, 9), Limits(max_side=12_000))


@pytest.mark.parametrize("kind", KINDS)
def test_too_short_a_side_is_refused(kind: str) -> None:
    with pytest.raises(ImageTooSmall, match=r"300 x 7 pixels; its shortest side must have at least 8"):
        decode(huge(kind, 300, 7))


def test_limits_are_inclusive() -> None:
    file = save(QUADRANTS, "PNG")
    assert decode(file, Limits(max_pixels=64 * 48, max_side=64, min_side=48)).shape == (48, 64, 3)
    with pytest.raises(TooManyPixels):
        decode(file, Limits(max_pixels=64 * 48 - 1))
    with pytest.raises(TooManyPixels):
        decode(file, Limits(max_side=63))
    with pytest.raises(ImageTooSmall):
        decode(file, Limits(min_side=49))


@pytest.mark.parametrize("limit", [1000, None])
def test_pillows_own_pixel_limit_does_not_matter_and_is_left_alone(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert decode(save(QUADRANTS, "PNG")).shape == (48, 64, 3)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_small_tiff_with_one_huge_tile_is_refused() -> None:
    assert decode(one_tile_tiff(256)).shape == (48, 64, 3)
    with pytest.raises(TooManyPixels, match="tiles of 272 x 272"):
        decode(one_tile_tiff(272), Limits(max_pixels=65_536))


def test_a_progressive_jpeg_of_endless_scans_is_refused() -> None:
    file = save(QUADRANTS, "JPEG", progressive=True)
    scan = file[file.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageDamaged, match="scans"):
        decode(file[:-2] + scan * codec.MAX_SCANS + b"\xff\xd9")


def test_nothing_is_image_missing() -> None:
    for nothing in (b"", bytearray(), memoryview(b"")):
        with pytest.raises(ImageMissing):
            decode(nothing)


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"hello world, not a picture",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"8BPS\0\1" + bytes(40),
        b"<svg/>",
        bytes(64),
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\0\0\0\x20ftypisom\0\0\0\0mp42",
    ],
    ids=repr,
)
def test_anything_else_is_not_an_image_and_the_formats_are_named(data: bytes) -> None:
    with pytest.raises(NotAnImage, match="JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF"):
        decode(data)


def test_formats_that_pillow_knows_but_we_do_not_stay_closed() -> None:
    for kind in ("PPM", "ICO", "TGA", "PCX", "JPEG2000"):
        with pytest.raises(NotAnImage):
            decode(save(QUADRANTS, kind))


def test_float_and_lab_pictures_are_refused_in_words() -> None:
    with pytest.raises(NotAnImage, match="no fixed white"):
        decode(save(Image.new("F", (20, 20)), "TIFF"))
    with pytest.raises(NotAnImage, match="CIELAB"):
        decode(save(Image.new("LAB", (20, 20)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_cut_file_is_damaged_and_says_how_to_mend_it(kind: str, kept: float) -> None:
    file = save(photos.coffee()[:120, :160], kind)
    with pytest.raises(ImageDamaged, match=r"cut short or damaged.*send the whole file again"):
        decode(file[: int(len(file) * kept)])


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_lacks_its_last_bytes_is_damaged(options: dict[str, bool]) -> None:
    file = save(photos.coffee()[:120, :160], "JPEG", **options)
    for lost in (1, 2, 3, 40):
        with pytest.raises(ImageDamaged):
            decode(file[:-lost])


def test_bytes_after_the_picture_do_no_harm() -> None:
    file = save(QUADRANTS, "JPEG", quality=98, subsampling=0)
    assert worst(decode(file + b"\0trailing bytes of a motion photo" * 9), QUADRANTS) <= 6


def test_damaged_exif_neither_warns_nor_refuses() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a long description " * 4
    for kind in ("JPEG", "PNG", "WEBP"):
        file = save(QUADRANTS, kind, exif=exif)
        start = file.index(b"II*\0" if b"II*\0" in file else b"MM\0*")
        for at in range(4, 60):
            broken = file[: start + at] + b"\xff" + file[start + at + 1 :]
            if kind == "PNG":
                chunk = broken.index(b"eXIf")
                length = struct.unpack(">I", broken[chunk - 4 : chunk])[0]
                end = chunk + 4 + length
                broken = broken[:end] + struct.pack(">I", zlib.crc32(broken[chunk:end])) + broken[end + 4 :]
            assert set(decode(broken).shape) == {48, 64, 3}


def test_exif_that_cannot_be_parsed_at_all_is_ignored() -> None:
    broken = PngInfo()
    broken.add_text("Raw profile type exif", "\n\n\nnot hexadecimal")
    assert worst(decode(save(QUADRANTS, "PNG", pnginfo=broken)), QUADRANTS) == 0


def test_pillows_warnings_stay_inside() -> None:
    """An animation control chunk of no frames: Pillow warns and shows the picture."""
    file = save(QUADRANTS, "PNG")
    chunk = b"acTL" + bytes(8)
    file = file[:33] + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)) + file[33:]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Image.open(BytesIO(file))
        assert len(heard) == 1
        assert worst(decode(file), QUADRANTS) == 0
        assert len(heard) == 1
        warnings.warn("others are heard as before", UserWarning, stacklevel=1)
        assert len(heard) == 2


def test_pillow_is_restored_when_the_last_user_leaves() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with codec._GUARD:
        decode(save(QUADRANTS, "PNG"))
        assert Image.MAX_IMAGE_PIXELS is None
    assert before == Image.MAX_IMAGE_PIXELS


def test_threads_share_pillow_without_leaving_filters_behind() -> None:
    files = [save(QUADRANTS, kind, **LOSSLESS[kind]) for kind in LOSSLESS]
    before, failures = list(warnings.filters), []

    def work() -> None:
        failures.extend(file for file in files * 5 if worst(decode(file), QUADRANTS) > 6)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert warnings.filters == before


def test_heic_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)  # what import then finds is nothing
    codec._heic_opens.cache_clear()
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heix"):
        with pytest.raises(NotAnImage, match="once pi-heif is installed"):
            decode(struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(64))
    codec._heic_opens.cache_clear()


def test_heic_opens_once_the_extra_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pi_heif whose "HEIC" is a brand box before a PNG: registered once, on first need, within the limits."""
    brands = struct.pack(">I", 24) + b"ftypmif1\0\0\0\0mif1heic"
    registered = []

    def register() -> None:
        registered.append("HEIF")
        opener = (lambda fp, name: PngImageFile(BytesIO(fp.read()[len(brands) :])), lambda prefix: prefix[4:8] == b"ftyp")
        monkeypatch.setitem(Image.OPEN, "HEIF", opener)

    monkeypatch.setitem(sys.modules, "pi_heif", SimpleNamespace(register_heif_opener=register))
    codec._heic_opens.cache_clear()
    try:
        file = brands + save(QUADRANTS, "PNG")
        assert worst(decode(file), QUADRANTS) == 0
        assert worst(decode(file), QUADRANTS) == 0
        with pytest.raises(TooManyPixels):
            decode(file, Limits(max_side=63))
    finally:
        codec._heic_opens.cache_clear()
    assert registered == ["HEIF"]


def test_a_pillow_picture_is_taken_as_a_file_would_be() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = save(STORED[6](QUADRANTS), "PNG", exif=exif)
    assert worst(to_rgb(Image.open(BytesIO(file))), QUADRANTS) == 0
    assert worst(to_rgb(half_clear("LA")[0]), half_clear("LA")[1]) == 0
    with pytest.raises(TooManyPixels):
        to_rgb(Image.new("RGB", (100, 100)), Limits(max_side=99))
    with pytest.raises(ImageDamaged):
        to_rgb(Image.open(BytesIO(file[:-60])))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_encode_and_decode_again(kind: codec.Format) -> None:
    photo = np.ascontiguousarray(photos.chelsea())
    again = decode(encode(photo, kind, 95))
    assert np.abs(again.astype(int) - photo).mean() < (0.01 if kind == "png" else 3)
    assert encode(photo[:, ::-1], kind, 95)[:3] == {"png": b"\x89PN", "jpeg": b"\xff\xd8\xff", "webp": b"RIF"}[kind]


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_quality_changes_the_size(kind: codec.Format) -> None:
    photo = photos.chelsea()
    assert len(encode(photo, kind, 30)) < len(encode(photo, kind, 60)) < len(encode(photo, kind, 95))


@pytest.mark.parametrize(("kind", "side"), [("jpeg", 65_501), ("webp", 16_384)])
def test_a_side_too_long_for_the_format_is_an_option_error(kind: codec.Format, side: int) -> None:
    with pytest.raises(OptionInvalid, match="use png"):
        encode(np.zeros((1, side, 3), np.uint8), kind)


def seeds() -> list[bytes]:
    photo = Image.fromarray(photos.coffee()[100:124, 200:232])
    clear = photo.convert("RGBA")
    clear.putalpha(photo.convert("L"))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    files = [save(photo, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")]
    files += [save(photo, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")]
    files += [save(clear, kind) for kind in ("PNG", "WEBP", "TIFF", "AVIF")]
    files += [save(photo, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    files += [save(photo, "JPEG", progressive=True), save(photo.convert("CMYK"), "JPEG"), save(photo.convert("L"), "JPEG")]
    files += [save(photo.convert("P"), kind) for kind in ("PNG", "GIF", "BMP")]
    files += [save(photo, kind, save_all=True, append_images=[photo.rotate(9)]) for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO")]
    return files


def mutate(file: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    for how, place, length, value in changes:
        at = place % (len(file) + 1)
        match how:
            case "write":
                file = file[:at] + value + file[at + len(value) :]
            case "insert":
                file = file[:at] + value + file[at:]
            case "delete":
                file = file[:at] + file[at + length :]
            case "repeat":
                file = file[: at + length] + file[at:]
            case _:
                file = file[:at]
    return file


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["write"] * 6 + ["insert", "delete", "repeat", "cut"]),
        st.integers(0, 1 << 14) | st.integers(0, 80),
        st.integers(1, 64),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1000), CHANGES)
def test_no_other_error_leaves_on_mutated_files(index: int, changes: list[tuple[str, int, int, bytes]]) -> None:
    try:
        pixels = decode(mutate(SEEDS[index % len(SEEDS)], changes), Limits(max_pixels=4_000_000))
    except (ImageMissing, NotAnImage, ImageDamaged, TooManyPixels, ImageTooSmall):
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([magic for magic, _ in codec._MAGIC] + [b"", b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0\x1cftypavif"]),
    st.binary(max_size=200),
)
def test_no_other_error_leaves_on_random_bytes(start: bytes, rest: bytes) -> None:
    with pytest.raises((ImageMissing, NotAnImage, ImageDamaged, TooManyPixels, ImageTooSmall)):
        decode(start + rest)


SEEDS = seeds()
