"""What both databases do alike with one face: its id, and its numbers as bytes."""

import hashlib

import numpy as np
from numpy.typing import NDArray

ID_BYTES = 16
LENGTH_TOLERANCE = 1e-3


def face_id(subject_id: str, embedding: NDArray[np.float32]) -> str:
    """32 hexadecimal digits, the same for the same numbers under the same subject. `subject_id`: what never changes about it."""
    return hashlib.blake2b(to_bytes(embedding), digest_size=ID_BYTES, key=subject_id.encode()).hexdigest()


def face_key(face_id: str) -> bytes:
    """A face's id as databases keep it; empty where `face_id` is none."""
    try:
        key = bytes.fromhex(face_id)
    except ValueError:
        return b""
    return key if key.hex() == face_id else b""


def to_bytes(embedding: NDArray[np.float32]) -> bytes:
    """Little-endian float32, 4 d bytes."""
    return np.ascontiguousarray(embedding, dtype="<f4").tobytes()


def from_bytes(data: bytes) -> NDArray[np.float32]:
    """The inverse of to_bytes: float32 [d], read-only."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)


def check(embeddings: NDArray[np.float32], dimension: int) -> None:
    """Raises ValueError where these are no embeddings float32 [n, dimension] of length 1."""
    if embeddings.dtype != np.float32 or embeddings.ndim != 2 or embeddings.shape[1] != dimension:
        raise ValueError(f"embeddings {embeddings.dtype} {embeddings.shape}; float32 [n, {dimension}] is stored here")
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    if not bool((np.abs(lengths - 1) < LENGTH_TOLERANCE).all()):  # not a number is not near 1 either
        raise ValueError("an embedding's length is not 1")
