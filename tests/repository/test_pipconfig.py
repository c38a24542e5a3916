import sys
from pathlib import Path
from typing import Any

import pytest

from service.repository.attempt import Refused
from service.repository.pipconfig import PipConfig, options_from_environ, parse_config_list, read_pip_config, to_config

NO_PIP = "echo python: No module named pip >&2; exit 1"


@pytest.mark.parametrize(
    ("listing", "options"),
    [
        ("", {}),
        ("global.index-url='https://a/simple'", {"index-url": "https://a/simple"}),
        ("global.cert='/c=d.pem'\nglobal.timeout='60'\n", {"cert": "/c=d.pem", "timeout": "60"}),
        ("install.find-links='/b'\nglobal.find-links='/a'", {"find-links": "/b"}),
        ("download.find-links='/c'\ninstall.find-links='/b'\n:env:.find-links='/d'\nglobal.find-links='/a'", {"find-links": "/d"}),
        ("download.find-links='/c'\ninstall.find-links='/b'", {"find-links": "/c"}),
        (":env:.index-url=''\nglobal.index-url='https://a'", {"index-url": "https://a"}),
        ("freeze.index-url='https://no'\nlist.format='json'", {}),
        ("global.extra-index-url='\\nhttps://a\\nhttps://b'", {"extra-index-url": "\nhttps://a\nhttps://b"}),
        ('global.proxy="http://it\'s"', {"proxy": "http://it's"}),
        ("WARNING: something else", {}),
    ],
)
def test_parse_config_list(listing: str, options: dict[str, str]) -> None:
    assert parse_config_list(listing) == options


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({}, PipConfig()),
        ({"index-url": "https://a"}, PipConfig(indexes=("https://a",))),
        ({"pypi-url": "https://a"}, PipConfig(indexes=("https://a",))),
        ({"extra-index-url": "\nhttps://a\nhttps://b"}, PipConfig(indexes=(None, "https://a", "https://b"))),
        ({"no-index": "true", "index-url": "https://a", "find-links": "/x /y"}, PipConfig(indexes=(), find_links=("/x", "/y"))),
        ({"no-index": "off"}, PipConfig()),
        ({"trusted-host": "a b:8080"}, PipConfig(trusted_hosts=("a", "b:8080"))),
        ({"cert": "/c", "client-cert": "/k", "proxy": "http://p"}, PipConfig(cert="/c", client_cert="/k", proxy="http://p")),
        ({"default-timeout": "180", "retries": "0"}, PipConfig(timeout=180.0, retries=0)),
        ({"timeout": "2.5", "default-timeout": "180"}, PipConfig(timeout=2.5)),
    ],
)
def test_to_config(options: dict[str, str], config: PipConfig) -> None:
    assert to_config(options) == config


def test_options_from_environ() -> None:
    environ = {"PIP_INDEX_URL": "https://a", "PIP_NO_INDEX": "", "PATH": "/bin", "PIP_DEFAULT_TIMEOUT": "3"}
    assert options_from_environ(environ) == {"index-url": "https://a", "default-timeout": "3"}


def test_a_pip_conf_and_the_environment_are_merged_as_pip_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "pip.conf"
    conf.write_text(
        "[global]\nindex-url = https://a/simple\ntimeout = 33\n[install]\nextra-index-url =\n    https://b\n    https://c\n"
    )
    for name in ("PIP_NO_INDEX", "PIP_TIMEOUT"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(conf))
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    config = read_pip_config()
    assert config.indexes[0] == "https://a/simple"
    assert {"https://b", "https://c"} <= set(config.indexes)
    assert (config.find_links, config.timeout, config.retries) == (("/wheels",), 33.0, 0)


def test_a_pip_conf_that_pip_cannot_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "pip.conf"
    conf.write_text("index-url = no section\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(conf))
    with pytest.raises(Refused, match=r"pip's configuration cannot be read: .*pip\.conf"):
        read_pip_config()


@pytest.mark.parametrize("has_pip", [True, False])
def test_a_value_that_is_no_number_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pip: bool) -> None:
    monkeypatch.setenv("PIP_RETRIES", "many")
    if not has_pip:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", NO_PIP)))
    with pytest.raises(Refused, match=r"pip's configuration .*many"):
        read_pip_config()


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("python", "other_pip", "index"),
    [
        (NO_PIP, None, "https://env"),
        (None, None, "https://env"),
        (NO_PIP, "echo \"global.index-url='https://other'\"", "https://other"),
    ],
)
def test_without_pip_another_pip_or_the_variables_count(
    tmp_path: Path, monkeypatch: Any, python: str | None, other_pip: str | None, index: str
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://env")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", python)) if python else "")
    if other_pip:
        script(tmp_path / "pip", other_pip)
    assert read_pip_config().indexes == (index,)
