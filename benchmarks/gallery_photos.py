"""Small photos of faces that nobody could mix up: one portrait, warped, recoloured and lit in many ways."""

from pathlib import Path
from typing import Final

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from photos import PORTRAIT

from service.engine import Engine
from service.errors import InputError
from service.settings import Settings

SIDE: Final = 192
HEAD: Final = (20, 130, 190, 190)  # top, left, rows, columns of the portrait
MODELS: Final = "yunet,sface"
EXACT: Final = 0.999
"""Similarity that a photo has with itself at least, whichever process looked at it."""
APART: Final = 0.97
"""Similarity that two of the photos have at most."""


def distinct(count: int, folder: Path) -> list[bytes]:
    """`count` JPEGs, each with one face that can be enrolled, any two less alike than APART. `folder` is for a database meanwhile.

    Raises SystemExit when there are not so many.
    """
    url = f"sqlite://{folder.absolute()}/photos.sqlite3"
    engine = Engine(Settings.from_env({"VISION_MODELS": MODELS, "VISION_GALLERY_URL": url}))
    photos: list[bytes] = []
    try:
        chosen = np.empty((count, engine.recognition.embedding_model.dimension), np.float32)
        for seed in range(4 * count):
            photo = variant(seed)
            embedding = _embedding(engine, photo)
            if embedding is not None and (chosen[: len(photos)] @ embedding).max(initial=-1) < APART:
                chosen[len(photos)] = embedding
                photos.append(photo)
            if len(photos) == count:
                return photos
    finally:
        engine.close()
    raise SystemExit(f"only {len(photos)} of {count} photos differ enough; take fewer clients")


def variant(seed: int) -> bytes:
    """The portrait's head: warped as by a bent mirror, with other colours, turned, lit from a side, grainy."""
    chance = np.random.default_rng(seed)
    head = np.asarray(cv2.imread(str(PORTRAIT)))[:, :, ::-1]
    top, left, rows, columns = HEAD
    face = cv2.resize(head[top : top + rows, left : left + columns], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    picture = _bent(np.asarray(face, np.uint8), chance).astype(np.float64)
    picture = picture[:, :, chance.permutation(3)] * chance.uniform(0.6, 1.2, 3)
    across = np.linspace(-1, 1, SIDE)
    light = 1 + chance.uniform(-0.4, 0.4) * across[None, :] + chance.uniform(-0.3, 0.3) * across[:, None]
    picture = picture * light[:, :, None] + chance.normal(0, chance.uniform(1, 6), picture.shape)
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 88, "RGB", "420"))


def _bent(head: NDArray[np.uint8], chance: np.random.Generator) -> NDArray[np.uint8]:
    """Moved by waves of some pixels, rotated by up to 15 degrees, mirrored every other time."""
    angle, size = np.deg2rad(chance.uniform(-15, 15)), chance.uniform(0.8, 1.0)
    y, x = np.meshgrid(*[np.arange(SIDE, dtype=np.float32) - SIDE / 2] * 2, indexing="ij")
    waves = chance.uniform(-6, 6, (2, 2)), chance.uniform(1, 2.5, (2, 2)) * 2 * np.pi / SIDE, chance.uniform(0, 6.28, (2, 2))
    moved = [sum(a * np.sin(f * along + p) for a, f, p, along in zip(*of, (x, y), strict=True)) for of in zip(*waves, strict=True)]
    across = (np.cos(angle) * x - np.sin(angle) * y) / size + moved[0]
    down = (np.sin(angle) * x + np.cos(angle) * y) * chance.uniform(0.85, 1.15) / size + moved[1]
    if chance.random() < 0.5:
        across = -across
    columns, rows = np.asarray(across + SIDE / 2, np.float32), np.asarray(down + SIDE / 2, np.float32)
    return np.asarray(cv2.remap(head, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT), np.uint8)


def _embedding(engine: Engine, photo: bytes) -> NDArray[np.float32] | None:
    """What a gallery keeps of the photo; None where it refuses it."""
    try:
        engine.enroll("photo", {"image": photo}, gallery="photo")
    except InputError:
        return None
    (entry,) = engine.gallery.export("photo")
    engine.gallery.delete_subject("photo", "photo")
    return entry.embedding
