"""Read one file out of a wheel or an sdist. Nothing is extracted by the path that an archive gives, and nothing is run."""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.repository.attempt import Refused

# What the readers raise on bad bytes; a plain OSError is not among them: that is the disk's.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@contextmanager
def open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """The bytes of `member`: a path inside a wheel, or below the single top folder of an sdist (tar or zip).

    Raises Refused when there is no such regular file, or when the archive is damaged, here or while it is being read.
    """
    try:
        opened = _open_zip if archive.suffix in (".whl", ".zip") else _open_tar
        with opened(archive, member) as stream:
            yield stream
    except _DAMAGE as error:
        raise Refused(f"it is damaged: {error}") from None


@contextmanager
def _open_zip(archive: Path, member: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(archive) as file:
        wheel = archive.suffix == ".whl"
        info = next((i for i in file.infolist() if (i.filename if wheel else _below_top(i.filename)) == member), None)
        if info is None or info.is_dir():
            raise Refused(f"it holds no file {member}")
        if info.flag_bits & 1:
            raise Refused(f"{member} in it is encrypted")
        with file.open(info) as stream:
            yield stream


@contextmanager
def _open_tar(archive: Path, member: str) -> Iterator[IO[bytes]]:
    with tarfile.open(archive, "r|*") as file:
        for info in file:
            if _below_top(info.name) == member and info.isreg():
                stream = file.extractfile(info)
                assert stream is not None  # a regular file always has bytes
                with stream:
                    yield stream
                return
    raise Refused(f"it holds no file {member}")


def _below_top(path: str) -> str:
    return path.removeprefix("./").partition("/")[2]
