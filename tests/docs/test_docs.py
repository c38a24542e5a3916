"""What README promises exists, and what exists is in README: settings, routes, verbs, error codes, files."""

import argparse
import re
from pathlib import Path

import pytest

from service.cli import build_parser
from service.engine import Engine
from service.http.app import create_app
from service.http.problems import KINDS
from service.repository.store import scan
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_in_the_readme_with_its_default(name: str) -> None:
    row = re.search(rf"^\| {PREFIX}{name.upper()} \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    assert row, f"README's table of settings lacks {PREFIX}{name.upper()}"
    default = Settings.model_fields[name].default
    shown = ",".join(default) if isinstance(default, tuple) else "" if default is None else str(default).lower()
    assert row[1].replace("\u202f", "") == shown


def paths_of_the_readme() -> set[str]:
    """Whatever starts with a slash in README's table of paths."""
    table = README.partition("| path | takes |")[2].partition("\n\n")[0]
    return set(re.findall(r"(?<=\s)/[\w{}/.-]*", table))


def test_the_routes_of_the_readme_and_of_the_protocols_pages_are_those_that_exist() -> None:
    app = create_app(Engine(Settings(), models={})).app
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("protocols-*.md"))
    for path in set(app.openapi()["paths"]) - paths_of_the_readme():
        shown = path.replace("/versions/{version}", "").rstrip("/")
        assert re.search(rf"[ `]{re.escape(shown)}[ ,?`]", pages), f"neither README nor a page of a protocol has {path}"
    assert paths_of_the_readme() <= {getattr(route, "path", None) for route in app.routes}


def test_every_verb_is_in_the_readme() -> None:
    (verbs,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for verb in verbs.choices:
        assert f"vision-service {verb} " in README or f"vision-service {verb}\n" in README, verb


def test_every_error_code_is_in_the_readme_with_its_status() -> None:
    for error, kind in KINDS.items():
        assert f"| {error.code} | {kind.status} |" in README


@pytest.mark.parametrize("name", list(scan(Settings())))
def test_every_model_is_in_the_readme(name: str) -> None:
    assert f"| {name} |" in README


@pytest.mark.parametrize("page", [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))], ids=str)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


def test_nothing_unfinished_is_left_in_the_readme() -> None:
    assert re.findall(r"\b(?!VISION_|BAKE_|PIP_|OTEL_|POSTGRES_|THIRD_PARTY\.md)[A-Z]+_[A-Z_]+\b", README) == []
