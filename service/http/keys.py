"""Keys of clients: VISION_API_KEYS and the file, read once into a Keyring; and which key a request carries.

    name:scope[+scope]:key, with commas between, or one a line in the file, where # begins a comment

A key is kept as its SHA-256 digest only. No message quotes any part of an entry: where one is written wrong, any may be the key.
"""

import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Final

from service.errors import SettingInvalid
from service.http.problems import KeyMissing, KeyUnknown
from service.settings import Settings

USE: Final = "use"
MANAGE: Final = "manage"
SCOPES: Final = frozenset({USE, MANAGE})
FORM = "name:scope:key, where scope is use, manage or use+manage"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECRET = re.compile(r"[!-+\--9;-~]+")  # printable ASCII but comma and colon
LEAST = 16  # characters of a key
BEARER = re.compile(rb"bearer +([^ ]+) *", re.IGNORECASE)

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Key:
    """Who may do what. `digest`: SHA-256 of the key itself."""

    name: str
    scopes: frozenset[str]
    digest: bytes = field(repr=False)


class Keyring:
    """The keys that there are."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = tuple(keys)

    def find(self, sent: bytes) -> Key | None:
        """The key that `sent` is; None: no such key. Takes as long whichever key it is, and whether or not it is one."""
        digest, found = sha256(sent).digest(), None
        for key in self.keys:
            if compare_digest(key.digest, digest):
                found = key
        return found

    def sent(self, headers: Iterable[Header]) -> bool:
        """Does a request with `headers` carry a key, right or wrong?"""
        return any(True for _ in _sent(headers))

    def identify(self, headers: Iterable[Header]) -> Key:
        """The key that a request with `headers` (names in lower case) carries. Raises KeyMissing, KeyUnknown."""
        sent = set(_sent(headers))
        if not sent:
            raise KeyMissing("a key is needed: send it as X-API-Key, or as Authorization: Bearer")
        if len(sent) > 1:
            raise KeyUnknown("two different keys were sent; send one")
        key = self.find(sent.pop())
        if key is None:
            raise KeyUnknown("the key that was sent is not one of this service")
        return key


def _sent(headers: Iterable[Header]) -> Iterator[bytes]:
    """What is sent as a key. Other schemes of Authorization are another's: a proxy's, say."""
    for name, value in headers:
        if name == b"x-api-key":
            yield value
        elif name == b"authorization" and (bearer := BEARER.fullmatch(value)):
            yield bearer[1]


def load(settings: Settings) -> Keyring | None:
    """The keys of both settings together; None where neither is set. Raises SettingInvalid, telling an entry by its position."""
    if settings.api_keys is None and settings.api_keys_file is None:
        return None
    entries: list[tuple[str, str]] = []
    if settings.api_keys is not None:
        parts = settings.api_keys.get_secret_value().split(",")
        found = [(f"entry {n} of VISION_API_KEYS", part.strip()) for n, part in enumerate(parts, 1) if part.strip()]
        entries += _some(found, "VISION_API_KEYS")
    if settings.api_keys_file is not None:
        lines = _read(settings.api_keys_file).splitlines()
        told = [(f"line {n} of VISION_API_KEYS_FILE", line.strip()) for n, line in enumerate(lines, 1)]
        entries += _some([(place, line) for place, line in told if line and line[0] != "#"], "VISION_API_KEYS_FILE")
    return Keyring(_unique([(place, _parse(place, entry)) for place, entry in entries]))


def read_by_all(path: Path) -> bool:
    """May every user of this machine read `path`?"""
    return bool(path.stat().st_mode & stat.S_IROTH)


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:  # the path is not told: someone may have put the keys themselves there
        raise SettingInvalid(f"VISION_API_KEYS_FILE names a file that cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingInvalid("VISION_API_KEYS_FILE names a file that is not text in UTF-8") from None


def _some(entries: list[tuple[str, str]], setting: str) -> list[tuple[str, str]]:
    if not entries:
        raise SettingInvalid(f"{setting} is set but holds no key; write {FORM}, or leave it unset")
    return entries


def _parse(place: str, entry: str) -> Key:
    parts = entry.split(":")
    if len(parts) != 3:
        raise SettingInvalid(f"{place} has {len(parts)} parts with colons between; write {FORM}")
    name, told, key = parts
    if not NAME.fullmatch(name):
        raise SettingInvalid(f"{place}: its name must be 1 to 64 letters, digits, dots, dashes or underscores; write {FORM}")
    scopes = told.split("+")
    if not set(scopes) <= SCOPES or len(set(scopes)) < len(scopes):
        raise SettingInvalid(f"{place}: its scope must be use, manage or use+manage; write {FORM}")
    if len(key) < LEAST or not SECRET.fullmatch(key):
        raise SettingInvalid(
            f"{place}: its key must be at least {LEAST} printable ASCII characters, none of them a comma, a colon or a space; "
            "make one with: openssl rand -hex 32"
        )
    return Key(name, frozenset(scopes), sha256(key.encode()).digest())


def _unique(placed: list[tuple[str, Key]]) -> list[Key]:
    names: dict[str, str] = {}
    digests: dict[bytes, str] = {}
    for place, key in placed:
        if (other := names.setdefault(key.name, place)) is not place:
            raise SettingInvalid(f"{place} has the same name as {other}; give each key a name of its own")
        if (other := digests.setdefault(key.digest, place)) is not place:
            raise SettingInvalid(f"{place} has the same key as {other}; give each client a key of its own")
    return [key for _, key in placed]
