"""What the user's pip is set to: indexes, folders of archives, certificates, proxies. Read through pip itself, never guessed.

`pip config list` merges every pip.conf, PIP_CONFIG_FILE and PIP_* variable as pip does. Where there is no pip at all (an
environment made by uv), the PIP_* variables alone count.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from service.repository.attempt import Refused, redact

SECTIONS = ("global", "install", "download", ":env:")  # later ones win


@dataclass(frozen=True)
class PipConfig:
    """indexes: URLs in order, None being pip's default. find_links: folders, files or pages. timeout: seconds."""

    indexes: tuple[str | None, ...] = (None,)
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    timeout: float = 15.0
    retries: int = 5


def read_pip_config() -> PipConfig:
    """The configuration of this Python's pip, else of the first pip on PATH, else of the PIP_* variables.

    Raises Refused when pip cannot read its own configuration, or when a value makes no sense.
    """
    listed = _ask([sys.executable, "-m", "pip"])
    if listed is None and (other := shutil.which("pip")):
        listed = _ask([other])
    options = options_from_environ(os.environ) if listed is None else parse_config_list(listed)
    try:
        return to_config(options)
    except ValueError as error:
        raise Refused(f"pip's configuration makes no sense: {error}") from None


def _ask(pip: list[str]) -> str | None:
    """The output of `pip config list`; None where that pip does not exist."""
    try:
        done = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)  # noqa: S603 - the user's pip
    except OSError:
        return None
    if done.returncode == 0:
        return done.stdout
    if "No module named pip" in done.stderr:
        return None
    said = " ".join((done.stderr + done.stdout).split())  # pip's releases differ in where they say it
    raise Refused(f"pip's configuration cannot be read: {redact(said) or 'pip gives no reason'}")


def parse_config_list(text: str) -> dict[str, str]:
    """Options for `pip download` from the lines "section.key='value'" of `pip config list`; empty values count as unset."""
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        section, _, key = name.partition(".")
        if equals and section in found:
            found[section][key] = str(ast.literal_eval(value))
    return {key: value for section in SECTIONS for key, value in found[section].items() if value}


def options_from_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Options from PIP_* variables; empty values count as unset."""
    return {key[4:].lower().replace("_", "-"): value for key, value in environ.items() if key.startswith("PIP_") and value}


def to_config(options: Mapping[str, str]) -> PipConfig:
    """PipConfig from pip's options by their long names. Raises ValueError for a timeout or number that is none."""
    indexes: tuple[str | None, ...] = (options.get("index-url") or options.get("pypi-url"),)
    if options.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        indexes = ()
    else:
        indexes += tuple(options.get("extra-index-url", "").split())
    return PipConfig(
        indexes=indexes,
        find_links=tuple(options.get("find-links", "").split()),
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
        cert=options.get("cert"),
        client_cert=options.get("client-cert"),
        proxy=options.get("proxy"),
        timeout=float(options.get("timeout") or options.get("default-timeout") or PipConfig.timeout),
        retries=int(options.get("retries") or PipConfig.retries),
    )
