"""A folder of people: each folder in it is a subject, by its name, and every photo below that shows them."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from service.cli.files import SUFFIXES
from service.errors import OptionInvalid
from service.gallery.names import check_name
from service.tasks.people import Refusal

_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True)
class Picture:
    """A photo of a subject. `name`: its path below the album's folder, fit to be printed; `below`: the same as it is."""

    name: str
    path: Path
    below: Path

    def fingerprint(self) -> str:
        """32 hexadecimal digits that change whenever the file does. Raises OSError."""
        state = self.path.stat()
        parts = [os.fsencode(self.below), *(b"%d" % part for part in (state.st_size, state.st_mtime_ns, state.st_ctime_ns))]
        return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


@dataclass
class Album:
    """Photos by subject, in order. `refused`: photos that belong to no subject, or to one whose name cannot be kept, and folders
    that cannot be read; `empty`: folders without a photo."""

    subjects: dict[str, list[Picture]] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    @property
    def photos(self) -> int:
        return sum(map(len, self.subjects.values()))


def read_album(folder: Path) -> Album:
    """What lies below `folder`. Links are followed, each folder of a subject is searched once; what begins with a dot is left out.

    Raises OptionInvalid where there is no such folder, or nothing in it that could be enrolled or refused.
    """
    if not folder.is_dir():
        raise OptionInvalid("FOLDER", f"{printable(str(folder))} is not a folder; give one that holds a folder for each subject")
    album = Album()
    for path in _listed(folder):
        if path.is_dir():
            _add_subject(album, path, folder)
        elif _is_photo(path):
            text = f"it lies in no subject's folder; move it to {printable(path.stem)}/ or wherever it belongs"
            album.refused.append(refuse(path.name, "subject_missing", text))
    if not album.subjects and not album.refused:
        raise OptionInvalid("FOLDER", f"{printable(str(folder))} holds no folders with photos; make one for each subject")
    return album


def printable(text: str) -> str:
    """`text` without what a terminal would obey or an encoding refuse: such characters as their escape sequences."""
    shown = (c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c for c in text)
    return "".join(shown)


def refuse(photo: str, code: str, detail: str) -> Refusal:
    """Why a photo is not enrolled, where no face was looked at."""
    return Refusal(photo=printable(photo), code=code, detail=printable(detail), measured=None, limit=None)


def _add_subject(album: Album, path: Path, folder: Path) -> None:
    found = list(_below(path, folder, set()))
    album.refused += [one for one in found if isinstance(one, Refusal)]
    pictures = [one for one in found if isinstance(one, Picture)]
    if not found:
        album.empty.append(printable(path.name))
    if not pictures:
        return
    try:
        subject = check_name("subject", path.name)
    except OptionInvalid as error:
        album.refused += [refuse(picture.name, error.code, str(error)) for picture in pictures]
        return
    album.subjects.setdefault(subject, []).extend(pictures)  # two spellings of one name are one subject


def _below(path: Path, folder: Path, seen: set[tuple[int, int]]) -> Iterator[Picture | Refusal]:
    """Every photo below `path`; `seen` are the folders that have been searched."""
    try:
        state = path.stat()
        if (state.st_dev, state.st_ino) in seen:
            return
        seen.add((state.st_dev, state.st_ino))
        inside = _listed(path)
    except OSError as error:
        yield refuse(str(path.relative_to(folder)), "file_unusable", f"the folder cannot be read: {error}")
        return
    for one in inside:
        if one.is_dir():
            yield from _below(one, folder, seen)
        elif _is_photo(one):
            below = one.relative_to(folder)
            yield Picture(printable(str(below)), one, below)


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_photo(path: Path) -> bool:
    """Does its name say so? A link that leads nowhere counts: it is refused when it is opened, rather than left out in silence."""
    return path.suffix.lower() in SUFFIXES and (path.is_file() or path.is_symlink())
