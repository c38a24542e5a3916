"""What has been enrolled from a folder, so that an enrolment that was cut off goes on where it stopped.

A line is written once the gallery has acknowledged its face, so a line that a crash has eaten costs time only: enrolling a photo
again changes nothing. Lines hold no names and nothing of a face: a fingerprint of the photo's file, and a face id, which is looked
up in the gallery before the photo is passed over.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

FOLDER = "enrolled"
"""Below the data folder."""


def journal_path(data_folder: Path, folder: Path, *parts: object) -> Path:
    """The journal of enrolling `folder`; `parts` are what else decides which faces come of it: database, collection, options."""
    key = "\0".join([os.fsdecode(folder.resolve()), *map(str, parts)])
    return data_folder / FOLDER / f"{hashlib.blake2b(os.fsencode(key), digest_size=16).hexdigest()}.jsonl"


class Journal:
    """Face ids by the fingerprints of photos, kept in a file that only its owner can read; a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where it cannot be read and written."""
        self._faces, whole = _read(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)
        if not whole:
            self._file.write(b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def face_of(self, fingerprint: str) -> str | None:
        """The face that came of a photo, if it is known."""
        return self._faces.get(fingerprint)

    def add(self, faces: Iterable[tuple[str, str]]) -> None:
        """Write down pairs of fingerprint and face id. Raises OSError."""
        lines = [json.dumps({"photo": photo, "face": face}) + "\n" for photo, face in faces]
        self._file.write("".join(lines).encode())


def _read(path: Path) -> tuple[dict[str, str], bool]:
    """What the file's sound lines say, and whether the last one was written to its end."""
    faces, line = dict[str, str](), b"\n"
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            with suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                faces[str(record["photo"])] = str(record["face"])
    return faces, line.endswith(b"\n")
