"""What a plain JPEG says of itself before its first scan, and its pixels by libjpeg-turbo, at a fraction of the size if asked.

    segments (SOI, APPn, DQT, SOF ... SOS) -> Header        data, size, step -> pixels

Only what nearly every JPEG looks like is understood: baseline or progressive Huffman coding, 8 bits, grey or three components,
EXIF as cameras write it. For anything else the answer is None, and a more patient reader has to decide. ITU-T T.81, annex B.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import simplejpeg

from service.imaging import Pixels

Buffer = bytes | bytearray | memoryview

STEPS: Final = (8, 4, 2)
"""Reductions that pay. libjpeg-turbo's short IDCTs give the means of 8, 4 or 2 pixels a side, and leave work out; scales between
them (3/8, 5/8, 6/8, 7/8) take longer than the next larger one of these, or than the full size."""

_SOI: Final = b"\xff\xd8"
_SOS, _APP1 = 0xDA, 0xE1
_FRAMES: Final = {0xC0: False, 0xC1: False, 0xC2: True}  # start of frame -> is it progressive?
_PASSED: Final = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # Huffman and quantisation tables, restarts, comments, APPn
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_ORIENTATION, _SHORT = 274, 3  # a TIFF tag, and the type that it has to have


class _Odd(ValueError):
    """Not what nearly every JPEG looks like."""


@dataclass(frozen=True)
class Header:
    """Width and height in pixels as stored, how it is coded, and the EXIF orientation to undo (1 where there is none)."""

    width: int
    height: int
    progressive: bool
    orientation: int


def read_header(data: Buffer) -> Header | None:
    """The header of a JPEG, read up to its first scan and no further. None for what is odd or damaged; raises nothing."""
    try:
        return _read_header(data)
    except (_Odd, struct.error):  # the latter: cut short
        return None


def more_scans_than(most: int, data: Buffer) -> bool:
    """Does the file hold more than `most` start-of-scan markers? Those of thumbnails inside it count too."""
    return next(islice(re.finditer(rb"\xff\xda", data), most, None), None) is not None


def read_pixels(data: Buffer, height: int, width: int, step: int = 1) -> Pixels | None:
    """RGB as stored, [ceil(height / step), ceil(width / step), 3]: means of step x step pixels, for which those of the last row
    and column take in what lies behind the edge. None where libjpeg-turbo finds any fault, or another size.

    step: 1 or one of STEPS. Never writes more than that size.
    """
    pixels: Pixels = np.empty((-(-height // step), -(-width // step), 3), np.uint8)
    rows, columns = pixels.shape[:2]
    try:
        decoded = simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns, buffer=pixels)
    except ValueError:
        return None
    return pixels if decoded.shape == pixels.shape else None


def _read_header(data: Buffer) -> Header:
    frames: list[tuple[int, int, int]] = []
    exif: list[bytes] = []
    xmp = b""
    for marker, start, end in _segments(data):
        if marker in _FRAMES:
            frames.append((marker, start, end))
        elif marker == _APP1:
            segment = bytes(data[start:end])
            if segment.startswith(_EXIF):
                exif.append(segment[len(_EXIF) :])
            elif segment.startswith(_XMP):
                xmp = segment[len(_XMP) :]
        elif marker not in _PASSED:
            raise _Odd
    if len(frames) != 1 or len(exif) > 1:
        raise _Odd
    marker, start, end = frames[0]
    bits, height, width, components = struct.unpack_from(">BHHB", data, start)
    if bits != 8 or not height or not width or components not in {1, 3} or end - start != 6 + 3 * components:
        raise _Odd
    return Header(width, height, _FRAMES[marker], _orientation(exif, xmp))


def _segments(data: Buffer) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the content of each segment between SOI and the first SOS. Raises _Odd, struct.error."""
    if data[:2] != _SOI:
        raise _Odd
    at = 2
    while True:
        prefix, marker, length = struct.unpack_from(">BBH", data, at)
        start, at = at + 4, at + 2 + length
        if prefix != 0xFF or length < 2 or at > len(data):
            raise _Odd
        if marker == _SOS:
            return
        yield marker, start, at


def _orientation(exif: list[bytes], xmp: bytes) -> int:
    """EXIF's orientation, else XMP's, else 1. Raises _Odd, struct.error."""
    found = [value for tiff in exif for value in _exif_orientation(tiff)]
    if not found and (match := _XMP_ORIENTATION.search(xmp)):
        return int(match[1])
    return found[0] if found else 1


def _exif_orientation(tiff: bytes) -> list[int]:
    """The values of tag 274 in the first directory of EXIF data, which are a TIFF file. Raises _Odd, struct.error.

    Usually one; of two, which Apple's software wrote, the first counts.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        raise _Odd
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (entries,) = struct.unpack_from(f"{order}H", tiff, start)
    body = tiff[start + 2 : start + 2 + 12 * entries]
    if start < 8 or len(body) != 12 * entries:
        raise _Odd
    found = [entry[1:] for entry in struct.iter_unpack(f"{order}HHIHxx", body) if entry[0] == _ORIENTATION]
    if any((kind, count) != (_SHORT, 1) for kind, count, _ in found):
        raise _Odd
    return [value for _, _, value in found]
