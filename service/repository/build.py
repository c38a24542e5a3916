"""Turn weights into graphs, once, and know later whether the result is whole and still what the code would make.

weights/<file>      checked weights
<graph>.onnx        one for each of [export] graphs
build.json          written last: what recipe made the graphs, from which files, with which digests
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import ExportFailed, ParityFailed, VisionError
from service.repository.files import digest_of, put_in_place, sync, write_whole
from service.repository.parity import Case, Difference, Tensors, load_cases, worst_difference
from service.repository.spec import ModelSpec

RECORD = "build.json"
RunGraph = Callable[[Path, Tensors], Tensors]
_NEW = ".build-new"
_RECIPES = Path(__file__).parents[1] / "export"


@dataclass(frozen=True)
class BuiltModel:
    """A model on this disk. `graphs`: ONNX files by name. `digest`: SHA-256 of the first weight file."""

    spec: ModelSpec
    folder: Path
    graphs: Mapping[str, Path]
    digest: str


class _Graph(BaseModel):
    sha256: str
    size: int


class Record(BaseModel):
    """build.json. `recipe`: fingerprint of the manifest's files and export and of the recipes' source. `parity`: in plain words."""

    model_config = ConfigDict(extra="forbid")

    recipe: str
    files: dict[str, str]
    graphs: dict[str, _Graph]
    parity: dict[str, str]


def fingerprint(spec: ModelSpec) -> str:
    """Changes whenever the same manifest and code would build other graphs: a hex digest."""
    digest = hashlib.sha256(spec.export.model_dump_json().encode())
    for file in spec.files:
        digest.update(f"\n{file.name} {file.sha256}".encode())
    for path in sorted(_RECIPES.glob("*.py")):
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def read_record(spec: ModelSpec, folder: Path) -> Record | None:
    """What was built in `folder`; None when nothing was, or another recipe would be used now, or a graph is missing."""
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None
    graphs = all((folder / f"{graph}.onnx").is_file() and graph in record.graphs for graph in spec.export.graphs)
    return record if graphs and record.recipe == fingerprint(spec) else None


def damage(spec: ModelSpec, folder: Path, record: Record) -> str | None:
    """Which graph in `folder` is not the one that was built, in words; None when all are. Reads every byte: 1 ms or less a MB."""
    for graph in spec.export.graphs:
        path, wanted = folder / f"{graph}.onnx", record.graphs[graph]
        try:
            if path.stat().st_size != wanted.size:
                return f"{path} is {path.stat().st_size} bytes long, not {wanted.size} as when it was built"
            if digest_of(path) != wanted.sha256:
                return f"{path} has changed since it was built: its SHA-256 is not {wanted.sha256}"
        except OSError as error:
            return f"{path} cannot be read: {error}"
    return None


def describe(spec: ModelSpec, folder: Path) -> BuiltModel:
    """The model that lies in `folder`."""
    return BuiltModel(spec, folder, {graph: folder / f"{graph}.onnx" for graph in spec.export.graphs}, spec.files[0].sha256)


def build(spec: ModelSpec, folder: Path, weights: Mapping[str, Path], run_graph: RunGraph) -> Record:
    """Export `weights` to graphs in `folder`, each checked against its stored answers before it gets its name.

    Needs the lock of the folder. Raises ExportFailed, ParityFailed (nothing is kept then) or SpecInvalid.
    """
    cases = load_cases(spec)
    new = folder / _NEW
    shutil.rmtree(new, ignore_errors=True)  # what a killed process left
    new.mkdir()
    try:
        _export(spec, weights, new)
        parity = {graph: _check(spec, graph, cases[graph], new / f"{graph}.onnx", run_graph) for graph in spec.export.graphs}
        graphs: dict[str, _Graph] = {}
        (folder / RECORD).unlink(missing_ok=True)
        for graph in spec.export.graphs:
            made = new / f"{graph}.onnx"
            sync(made)
            graphs[graph] = _Graph(sha256=digest_of(made), size=made.stat().st_size)
            put_in_place(made, folder / made.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    files = {file.name: file.sha256 for file in spec.files}
    record = Record(recipe=fingerprint(spec), files=files, graphs=graphs, parity=parity)
    write_whole(folder / RECORD, record.model_dump_json(indent=2).encode())
    return record


def _export(spec: ModelSpec, weights: Mapping[str, Path], folder: Path) -> None:
    from onnx import save  # onnx takes 0.2 s to import and is not needed once models are built

    from service.export.recipes import find_recipe

    recipe = find_recipe(spec.export.recipe)
    try:
        graphs = recipe(weights)
    except VisionError:
        raise
    except Exception as error:
        raise ExportFailed(f"{spec.name}: the recipe {spec.export.recipe!r} failed: {type(error).__name__}: {error}") from error
    if set(graphs) != set(spec.export.graphs):
        made, wanted = ", ".join(sorted(graphs)) or "none", ", ".join(sorted(spec.export.graphs))
        raise ExportFailed(f"{spec.name}: the recipe {spec.export.recipe!r} made the graphs {made}; model.toml names {wanted}")
    for name, graph in graphs.items():
        save(graph, folder / f"{name}.onnx")


def _check(spec: ModelSpec, graph: str, case: Case, path: Path, run_graph: RunGraph) -> str:
    """How close the graph comes to its stored answers, in words. Raises ParityFailed where that is not close enough."""
    try:
        worst: Difference = worst_difference(case, run_graph(path, case.feeds))
    except ParityFailed as error:
        raise ParityFailed(f"{spec.name}: {graph}.onnx: {error}") from None
    except Exception as error:
        raise ParityFailed(f"{spec.name}: {graph}.onnx does not run on the stored input: {error}") from error
    found = f"{worst.output!r} differs by at most {worst.value:.3g} from {spec.parity.reference}"
    if worst.value > spec.parity.atol:
        raise ParityFailed(
            f"{spec.name}: {graph}.onnx: {found} (at value {worst.at}), more than {spec.parity.atol:g}; it was not kept"
        )
    return found
