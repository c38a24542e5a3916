"""A postgresql:// URL to what a connection needs. Nothing here repeats the password, nor a URL that may hold one."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from service.errors import SettingInvalid

PORT = 5432
_MODES = ("disable", "prefer", "require", "verify-full")
_PARAMETERS = ("application_name", "connect_timeout", "host", "sslmode", "sslrootcert")
_FORM = "use postgresql://user:password@host:port/name"


@dataclass(frozen=True)
class Target:
    """`host` is a name, an address, or the folder of a Unix socket. `connect_timeout` in seconds."""

    user: str
    password: str | None = field(repr=False)
    host: str
    port: int
    database: str
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    connect_timeout: float = 5.0
    application_name: str = "vision-service"

    @property
    def socket(self) -> str | None:
        """Path of the Unix socket, where it is one."""
        return f"{self.host}/.s.PGSQL.{self.port}" if self.host.startswith("/") else None

    def __str__(self) -> str:
        if self.socket:
            return f"postgresql://{self.user}@:{self.port}/{self.database}?host={self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://{self.user}@{host}:{self.port}/{self.database}"

    def tls(self) -> ssl.SSLContext | bool | None:
        """What pg8000 takes: False for none, None for TLS where the server offers it, else the context to insist on."""
        if self.socket or self.sslmode == "disable":
            return False
        if self.sslmode == "prefer":
            return None
        try:
            context = ssl.create_default_context(cafile=self.sslrootcert)
        except (OSError, ssl.SSLError):
            raise SettingInvalid(f"VISION_GALLERY_URL: no certificates can be read from sslrootcert={self.sslrootcert}") from None
        if self.sslmode == "require":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def parse(url: str) -> Target:
    """Raises SettingInvalid, which says what is wrong without the password. Each part may be percent-encoded."""
    try:
        parts = urlsplit(url)
        port = parts.port
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise SettingInvalid(f"VISION_GALLERY_URL cannot be read; {_FORM}, special characters percent-encoded") from None
    if parts.scheme not in {"postgresql", "postgres"} or parts.fragment:
        raise SettingInvalid(f"VISION_GALLERY_URL cannot be read; {_FORM}, special characters percent-encoded")
    parameters = _parameters(given)
    host = parameters.get("host") or unquote(parts.hostname or "") or "localhost"
    user = unquote(parts.username or "")
    if not user:
        raise SettingInvalid(f"VISION_GALLERY_URL names no user; {_FORM}")
    mode = parameters.get("sslmode", "prefer")
    if mode not in _MODES:
        raise SettingInvalid(f"VISION_GALLERY_URL: sslmode={mode!r:.40} is not one of {', '.join(_MODES)}")
    root = parameters.get("sslrootcert")
    if root is not None and (mode != "verify-full" or not Path(root).is_file()):
        raise SettingInvalid("VISION_GALLERY_URL: sslrootcert is the file of a certificate, and goes with sslmode=verify-full")
    return Target(
        user=user,
        password=unquote(parts.password) if parts.password else None,
        host=host,
        port=PORT if port is None else port,
        database=unquote(parts.path.removeprefix("/")) or user,
        sslmode=mode,
        sslrootcert=root,
        connect_timeout=_seconds(parameters.get("connect_timeout", "5")),
        application_name=parameters.get("application_name") or "vision-service",
    )


def _parameters(given: list[tuple[str, str]]) -> dict[str, str]:
    parameters = dict[str, str]()
    for name, value in given:
        if name not in _PARAMETERS:
            raise SettingInvalid(f"VISION_GALLERY_URL: {name!r:.40} is not a parameter; they are: {', '.join(_PARAMETERS)}")
        if name in parameters:
            raise SettingInvalid(f"VISION_GALLERY_URL: {name} is given twice")
        if "\0" in value:
            raise SettingInvalid(f"VISION_GALLERY_URL: {name} holds a NUL character")
        parameters[name] = value
    return parameters


def _seconds(text: str) -> float:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 3600:
        raise SettingInvalid(f"VISION_GALLERY_URL: connect_timeout={text!r:.20} is not a number of seconds from 1 to 3600")
    return float(text)
