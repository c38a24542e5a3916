"""pyproject.toml declares what the code imports, constraints.txt pins all of it, and THIRD_PARTY.md names it."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# Nobody imports these: uvicorn takes them up where they are installed.
TAKEN_UP = {"httptools", "uvloop"}
# More than one distribution may bring a module, and pydantic pins its own core.
BRINGS = {
    "onnxruntime": {"onnxruntime", "onnxruntime-gpu"},
    "google": {"protobuf"},
    "pydantic_core": {"pydantic"},
    "opentelemetry": {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"},
}


def requirements(project: dict[str, Any], *extras: str) -> list[Requirement]:
    """The direct requirements with these extras, where their markers hold."""
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    parsed = [Requirement(line) for line in lines]
    return [item for item in parsed if item.name != project["name"] and (item.marker is None or item.marker.evaluate())]


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, Version]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*", line)] == []
    assert lines == sorted(set(lines), key=lambda line: line.split("==")[0])
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("extra", ["cpu", "cuda", "heic", "otel", "bench", "torch", "dev"])
def test_pins_satisfy_what_pyproject_asks_for(project: dict[str, Any], pins: dict[str, Version], extra: str) -> None:
    for requirement in requirements(project, extra):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


def test_everything_that_is_installed_for_the_project_is_pinned(project: dict[str, Any], pins: dict[str, Version]) -> None:
    waiting = [(item.name, frozenset(item.extras)) for item in requirements(project, "cpu", "otel", "bench", "dev")]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                waiting.append((needed.name, frozenset(needed.extras)))
    names = {canonicalize_name(name) for name, _ in seen}
    assert len(names) > len(requirements(project, "cpu", "otel", "bench", "dev"))
    assert names - set(pins) == set()


def imported(folder: Path) -> set[str]:
    """Top-level modules that the Python files below `folder` import, without the standard library and the project itself."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"service"}


def test_the_service_declares_exactly_what_it_imports(project: dict[str, Any], root: Path) -> None:
    brought = importlib.metadata.packages_distributions()
    needed = {
        canonicalize_name(name) for item in imported(root / "service") for name in BRINGS.get(item) or brought.get(item, [item])
    }
    asked = {canonicalize_name(item.name) for item in requirements(project, "cpu", "cuda", "heic", "otel", "postgres")}
    assert needed - asked == set(), "imported but not declared"
    assert asked - needed - TAKEN_UP == set(), "declared but not imported"


def test_third_party_names_every_direct_dependency(project: dict[str, Any], root: Path) -> None:
    text = (root / "THIRD_PARTY.md").read_text(encoding="utf-8")
    named = {canonicalize_name(name) for group in re.findall(r"\[([\w, .-]+)\]\(", text) for name in group.split(", ")}
    assert {canonicalize_name(item.name) for item in requirements(project, "cpu", "cuda", "heic", "otel", "bench")} - named == set()


def test_third_party_names_every_pinned_library_of_the_service(project: dict[str, Any], root: Path) -> None:
    text = (root / "THIRD_PARTY.md").read_text(encoding="utf-8")
    names, waiting = set[str](), [item.name for item in requirements(project, "cpu")]
    while waiting:
        if (name := waiting.pop()) in names:
            continue
        names.add(name)
        needed = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
        waiting.extend(item.name for item in needed if item.marker is None or item.marker.evaluate({"extra": ""}))
    assert [name for name in sorted(names) if canonicalize_name(name) not in text] == []


def test_third_party_tells_where_every_model_comes_from(root: Path) -> None:
    lines = (root / "THIRD_PARTY.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    manifests = [tomllib.loads(path.read_text(encoding="utf-8")) for path in root.glob("models/*/model.toml")]
    assert manifests
    for manifest in manifests:
        sources = [source for file in manifest["files"] for source in file["sources"] if "package" in source]
        for source in sources:
            assert re.search(rf"\b{re.escape(source['package'])} {re.escape(source['version'])}\b", rows[manifest["name"]])
        assert (
            f"| {manifest['licence']['spdx'].removeprefix('LicenseRef-').replace('-domain', ' domain')} |" in rows[manifest["name"]]
        )


def test_third_party_and_the_pins_name_the_same_parts_of_cuda(pins: dict[str, Version], root: Path) -> None:
    named = set(re.findall(r"nvidia-[a-z0-9-]+", (root / "THIRD_PARTY.md").read_text(encoding="utf-8")))
    assert {name for name in pins if name.startswith("nvidia-")} == named
