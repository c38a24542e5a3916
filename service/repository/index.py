"""Find the archives of one pinned release on the indexes and in the folders that pip is set to. Nothing is built or run."""

import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.request import getproxies, proxy_bypass

import httpx2
from unearth import Link, PackageFinder
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers import Fetcher, PyPIClient

from service.repository.attempt import Refused, Transient, no_answer, persist, redact
from service.repository.pipconfig import PipConfig
from service.repository.progress import Progress
from service.repository.spec import PackageSource

_STRONG = ("sha256", "sha384", "sha512")


@dataclass(frozen=True)
class Remote:
    """A file to download. digest: (algorithm, hex) where the index or the manifest says it. local: where it is on this disk."""

    url: str
    filename: str
    digest: tuple[str, str] | None = None
    local: Path | None = None


@dataclass(frozen=True)
class Place:
    """One index or find-links location; `url` is None for the index that pip uses when none is set."""

    url: str | None
    find_links: bool = False

    def __str__(self) -> str:
        return redact(self.url) if self.url else "the default index"


def open_client(config: PipConfig) -> PyPIClient:
    """An HTTP client with pip's certificates, trusted hosts and proxy (else the environment's), and logins from URLs or netrc.

    Raises Refused when a certificate cannot be read.
    """
    insecure: dict[str, httpx2.BaseTransport] = {}
    for host in config.trusted_hosts:
        proxy = config.proxy or (None if proxy_bypass(host) else getproxies().get("https"))
        insecure[f"all://{host}"] = httpx2.HTTPTransport(verify=False, proxy=proxy)
    client = PyPIClient(
        trusted_hosts=config.trusted_hosts,
        verify=_certificates(config),
        proxy=config.proxy,
        timeout=config.timeout,
        follow_redirects=True,
        mounts=insecure,
    )
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=[url for url in config.indexes if url])
    return client


def _certificates(config: PipConfig) -> ssl.SSLContext | bool:
    if not (config.cert or config.client_cert):
        return True  # the system's, or SSL_CERT_FILE and SSL_CERT_DIR
    try:
        folder = config.cert if config.cert and Path(config.cert).is_dir() else None
        context = ssl.create_default_context(cafile=None if folder else config.cert, capath=folder)
        if config.client_cert:
            context.load_cert_chain(config.client_cert)
    except (OSError, ssl.SSLError) as error:
        raise Refused(f"pip's cert or client-cert cannot be read: {config.cert or config.client_cert}: {error}") from None
    return context


def places(config: PipConfig) -> list[Place]:
    """Where pip would look: local folders first, then the indexes in order."""
    return [*(Place(url, find_links=True) for url in config.find_links), *(Place(url) for url in config.indexes)]


def find_archives(source: PackageSource, place: Place, client: PyPIClient, retries: int, progress: Progress) -> list[Remote]:
    """Archives of the pinned release at one place, at most one wheel, then at most one sdist.

    Wheels for other Pythons and yanked releases count: only data is read out of them. Raises Refused saying why there are none.
    """
    if place.find_links and place.url and "://" not in place.url and not Path(place.url).expanduser().exists():
        raise Refused("there is no such folder")
    links = persist(lambda: _look(source, place, client), f"{source.label} at {place}", retries, progress)
    wheel = next((link for link in links if link.is_wheel), None)
    sdist = next((link for link in links if not link.is_wheel), None)
    return [_remote(link) for link in (wheel, sdist) if link]


def _look(source: PackageSource, place: Place, client: PyPIClient) -> list[Link]:
    finder = PackageFinder(cast(Fetcher, client), ignore_compatibility=True)  # its protocol asks for less than httpx2 says
    if place.url:
        finder.sources.clear()
        (finder.add_find_links if place.find_links else finder.add_index_url)(_expanded(place.url))
    with _heard() as complaints:
        try:
            matches = finder.find_matches(f"{source.package}=={source.version}", allow_yanked=True, allow_prereleases=True)
            links = [match.link for match in matches]
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise no_answer(error) from None
        except ValueError as error:
            raise Refused(f"its answer cannot be read: {redact(str(error))}") from None
    if not links:
        kind = Transient if any("Server Error(" in text for text in complaints) else Refused
        raise kind("; ".join(complaints) or f"it has no {source.label}")
    return links


def _remote(link: Link) -> Remote:
    hashes = link.hash_option or {}
    digest = next(((name, hashes[name][0]) for name in _STRONG if name in hashes), None)
    return Remote(link.url_without_fragment, link.filename, digest, link.file_path if link.is_file else None)


def _expanded(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().absolute())


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What unearth logs about a place that does not answer well, instead of on the user's screen."""
    logger, thread, heard = logging.getLogger("unearth.collector"), threading.get_ident(), list[str]()

    def listen(record: logging.LogRecord) -> bool:
        if record.thread == thread and record.levelno >= logging.WARNING:
            heard.append(redact(record.getMessage()))
        return record.thread != thread

    logger.addFilter(listen)
    try:
        yield heard
    finally:
        logger.removeFilter(listen)
