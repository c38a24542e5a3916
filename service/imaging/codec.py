"""Bytes -> upright RGB pixels within limits, and pixels -> bytes.

    sniff -> header -> limits -> pixels -> 8-bit RGB on white -> upright

Plain JPEGs go through service.imaging.jpeg, everything else through Pillow, which also decides on each JPEG that is odd or that
libjpeg-turbo refuses. Only the formats in `FORMATS` are ever opened, so that none of Pillow's rarer parsers can be reached by an
upload.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Final, Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from service.errors import ImageDamaged, ImageMissing, ImageTooSmall, InputError, NotAnImage, OptionInvalid, TooManyPixels
from service.imaging import Grid, Pixels
from service.imaging.jpeg import STEPS, Buffer, Header, more_scans_than, read_header, read_pixels

Format = Literal["png", "jpeg", "webp"]
"""What `encode` writes."""

Scale = Callable[[int, int], float]
"""Height and width of an upright photo -> how many pixels a model sees for each of its pixels, along an axis."""

FORMATS: Final = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")
MARGIN: Final = 2  # least pixels decoded for each one that the model sees, along an axis: with fewer, answers change measurably
MAX_SCANS: Final = 200  # a progressive JPEG of 64 million pixels spends some 20 ms on each scan, and one costs its sender 100 bytes

_MAGIC: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_SNIFFED: Final = 256  # bytes at the beginning that tell the format
_HEIC_BRANDS: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS: Final = {b"avif", b"avis"}
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags


@dataclass(frozen=True)
class Limits:
    """What a picture may measure, in pixels. `min_side` holds for the shorter side, `max_side` for the longer one."""

    max_pixels: int = 64_000_000
    max_side: int = 16_384
    min_side: int = 8


DEFAULT_LIMITS: Final = Limits()


def decode(data: Buffer, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """The picture in `data` as people see it: uint8 RGB [height, width, 3], C-contiguous and writable.

    EXIF orientation is applied, transparency is laid on white, CMYK, palettes and 16 bits per channel become 8-bit RGB (16-bit
    values over 257), and an animation gives its first frame. Colour profiles are ignored. The limits are checked on the header,
    before any pixel is decoded. Safe to call from several threads at once.

    Raises ImageMissing (no bytes), NotAnImage (none of FORMATS, or a kind of it without a fixed white, such as float TIFF),
    ImageDamaged, TooManyPixels, ImageTooSmall; nothing else.
    """
    return decode_enough(data, None, limits)[0]


def decode_enough(data: Buffer, scale: Scale | None, limits: Limits = DEFAULT_LIMITS) -> tuple[Pixels, Grid]:
    """The picture as `decode` gives it, or a plain JPEG at 1/2, 1/4 or 1/8 of its size where that is enough for `scale`: at least
    MARGIN pixels for each one that the model sees. Then its rows may not be contiguous.

    The limits count the pixels of the whole picture. Raises what `decode` raises.
    """
    if isinstance(data, memoryview):
        data = data.cast("B") if data.c_contiguous and data.nbytes else data.tobytes()
    if not data:
        raise ImageMissing("the image is empty (0 bytes); send the bytes of a picture")
    kind = _sniff(bytes(data[:_SNIFFED]))
    header = read_header(data) if kind == "JPEG" else None
    found = None if header is None else _plain_jpeg(data, header, scale, limits)
    if found is not None:
        return found
    with _pillow(kind):
        pixels = _decode(bytes(data), kind, limits, turbo=header is None)
    return pixels, Grid.of(pixels)


def enough(scale: Scale | None, height: int, width: int) -> int:
    """The largest step, 1 or one of jpeg.STEPS, that is enough for `scale` on a photo of height x width."""
    needed = 1.0 if scale is None else scale(height, width)
    return next((step for step in STEPS if step * MARGIN * needed <= 1), 1)


def to_rgb(picture: Image.Image, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """A Pillow picture, opened or in memory, as `decode` would give it.

    Raises NotAnImage, ImageDamaged, TooManyPixels, ImageTooSmall.
    """
    with _pillow(picture.format or "Pillow"):
        _check_size(picture.size, limits)
        pixels = _flatten(picture)
        return _upright(pixels, _orientation(picture))


def encode(pixels: Pixels, format: Format, quality: int = 90) -> bytes:  # noqa: A002
    """`pixels` (uint8 RGB [height, width, 3]) as a file. `quality` is 1..100; PNG is lossless and ignores it.

    PNG is packed at zlib's fastest level, JPEG at 4:2:0, WebP lossy with method 2: sizes stay within some percent of the
    defaults at half their time. Raises OptionInvalid when a side is longer than the format can hold (WebP 16,383, JPEG 65,500).
    """
    longest = max(pixels.shape[:2])
    most = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}[format]
    if longest > most:
        raise OptionInvalid("format", f"{format} holds at most {most} pixels a side, this picture has {longest}; use png")
    if format == "jpeg":
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420"))
    file = BytesIO()
    picture = Image.fromarray(pixels)
    if format == "png":
        picture.save(file, "PNG", compress_level=1)
    else:
        picture.save(file, "WEBP", quality=quality, method=2)
    return file.getvalue()


class _PillowGuard:
    """While any thread decodes, Pillow's warnings are off and its own pixel limit is lifted: `Limits` is checked instead.

    Both are process-wide. warnings.catch_warnings entered by two threads at once would restore one another's state, so the
    first thread in saves it and the last one out restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limit = Image.MAX_IMAGE_PIXELS
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pi_heif)\b")
                Image.MAX_IMAGE_PIXELS = None
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                Image.MAX_IMAGE_PIXELS = self._limit
                self._warnings.__exit__(None, None, None)


_GUARD: Final = _PillowGuard()


@contextmanager
def _pillow(kind: str) -> Iterator[None]:
    """Inside, Pillow is quiet and whatever it raises on the `kind` picture becomes ImageDamaged; our own errors pass."""
    with _GUARD:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # Pillow's parsers raise almost anything on hostile bytes
            known = isinstance(error, (OSError, ValueError)) and not isinstance(error, UnidentifiedImageError)
            reason = f" ({str(error).rstrip('.')})" if known and str(error) else ""
            raise ImageDamaged(
                f"the {kind} picture is cut short or damaged{reason}; send the whole file again, "
                "or open it in an image editor and save it anew"
            ) from error


def _sniff(data: bytes) -> str:
    """The name in FORMATS that the first bytes promise. Raises NotAnImage."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4]), _SNIFFED)
        brands = {data[8:12]} | {data[at : at + 4] for at in range(16, end, 4)}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            if not _heic_opens():
                raise NotAnImage("HEIC pictures can be read once pi-heif is installed where the service runs; or save it as JPEG")
            return "HEIC"
    known = ", ".join(name for name in FORMATS if name != "HEIC" or _heic_opens())
    raise NotAnImage(f"the bytes are not a picture that can be read; the formats are: {known}")


@cache
def _heic_opens() -> bool:
    """Teach Pillow to open HEIC, once. False when the extra `heic` is not installed."""
    try:
        import pi_heif
    except ImportError:
        return False
    pi_heif.register_heif_opener()
    return True


def _plain_jpeg(data: Buffer, header: Header, scale: Scale | None, limits: Limits) -> tuple[Pixels, Grid] | None:
    """None where libjpeg-turbo refuses it."""
    _check_size((header.width, header.height), limits)
    if header.progressive:
        _check_scans(data)
    turned = 5 <= header.orientation <= 8
    height, width = (header.width, header.height) if turned else (header.height, header.width)
    step = enough(scale, height, width)
    stored = read_pixels(data, header.height, header.width, step)
    if stored is None:
        return None
    pixels = _upright(_nearest(stored, header, step), header.orientation)
    rows, columns = pixels.shape[:2]
    left = width - step * columns if header.orientation in {2, 3, 6, 7} else 0  # turned around, the edge that was last comes first
    top = height - step * rows if header.orientation in {3, 4, 7, 8} else 0
    return pixels, Grid(height, width, step, left, top)


def _nearest(pixels: Pixels, header: Header, step: int) -> Pixels:
    """Without the last row or column where less than half of it shows the picture: so the edges are never far off."""
    return pixels[: max(1, (header.height + step // 2) // step), : max(1, (header.width + step // 2) // step)]


def _decode(data: bytes, kind: str, limits: Limits, turbo: bool) -> Pixels:
    if kind == "WebP":
        _check_size(_webp_size(data), limits)  # Pillow allocates the canvas while it opens the file
    with Image.open(BytesIO(data), formats=["HEIF" if kind == "HEIC" else kind.upper()]) as picture:
        _check_size(picture.size, limits)
        if kind == "TIFF":
            _check_tiles(picture, limits)
        pixels = _turbo(data, picture) if kind == "JPEG" and turbo else None
        if pixels is None:
            pixels = _flatten(picture)
        return _upright(pixels, _orientation(picture))  # read after loading: Pillow turns TIFFs itself and then drops the tag


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    found = f"the picture has {width} x {height} pixels"
    if max(size) > limits.max_side:
        raise TooManyPixels(f"{found}; its longest side may have {limits.max_side:,}; scale it down")
    if width * height > limits.max_pixels:
        raise TooManyPixels(f"{found}, {width * height:,} in all, where {limits.max_pixels:,} are allowed; scale it down")
    if min(size) < limits.min_side:
        raise ImageTooSmall(f"{found}; its shortest side must have at least {limits.min_side}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk (RFC 9649, sections 2.5 to 2.7). Raises ValueError when it is cut short."""
    if len(data) < 30:
        raise ValueError("the header is not complete")
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_tiles(picture: Image.Image, limits: Limits) -> None:
    """A TIFF of few pixels can ask for one huge tile, which libtiff would allocate and unpack whole."""
    tags = getattr(picture, "tag_v2", {})
    width, length = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if width * length > limits.max_pixels:
        raise TooManyPixels(f"the TIFF has tiles of {width} x {length} pixels; {limits.max_pixels:,} pixels are allowed")


def _turbo(data: bytes, header: Image.Image) -> Pixels | None:
    """A JPEG with an odd header decoded strictly by libjpeg-turbo, not yet upright; None where that is left to Pillow (CMYK,
    damage). Raises ImageDamaged on a progressive JPEG of very many scans, whatever would decode it."""
    if header.info.get("progressive"):
        _check_scans(data)
    return read_pixels(data, header.height, header.width) if header.mode in {"RGB", "L"} else None


def _check_scans(data: Buffer) -> None:
    if more_scans_than(MAX_SCANS, data):
        raise ImageDamaged(f"the JPEG has more than {MAX_SCANS} scans, where ten are usual; save it anew in an image editor")


def _flatten(picture: Image.Image) -> Pixels:
    """Any of Pillow's modes as 8-bit RGB: 16-bit grey over 257, transparency on white."""
    if picture.mode.startswith("I;16"):
        grey: NDArray[np.uint16] = np.asarray(picture).astype(np.uint16, copy=False)
        return np.asarray(cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=1 / 257), cv2.COLOR_GRAY2RGB), np.uint8)
    if picture.mode in {"I", "F", "LAB"}:
        what = "CIELAB colours" if picture.mode == "LAB" else "32-bit or signed values, which have no fixed white"
        raise NotAnImage(f"the {picture.format} picture holds {what}; save it with 8 or 16 bits per channel in RGB or grey")
    if not picture.has_transparency_data:
        return np.array(picture.convert("RGB"))
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(overlay := picture.convert("RGBA"), mask=overlay)
    return np.array(canvas)


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation (XMP's, where EXIF has none); 1 where it is missing or unreadable."""
    with suppress(Exception):  # a picture with damaged EXIF is still a picture
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (CIPA DC-008, tag 274); numbers that it does not know change nothing."""
    match orientation:
        case 2:
            turned = cv2.flip(pixels, 1)
        case 3:
            turned = cv2.rotate(pixels, cv2.ROTATE_180)
        case 4:
            turned = cv2.flip(pixels, 0)
        case 5:
            turned = cv2.transpose(pixels)
        case 6:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            turned = cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180)
        case 8:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case _:
            return pixels
    return np.asarray(turned, np.uint8)
