"""Turn weights into graphs, once, and know later whether the result is whole and still what the code would make.

weights/<file>      checked weights
<graph>.onnx        one for each of [export] graphs, and maps.onnx of an adopted classifier that has class maps
model.int8.onnx, model.float16.onnx   "model" in other arithmetic, for models with [quantize]
build.json          written last: what recipe made the graphs, from which files, with which digests
"""

import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import ExportFailed, ParityFailed, VisionError
from service.repository.answers import check_answers
from service.repository.files import digest_of, put_in_place, sync, write_whole
from service.repository.maps import check_maps, check_windows
from service.repository.parity import Case, Difference, Tensors, load_cases, worst_difference, worst_relative
from service.repository.spec import MAPS, ModelSpec, Precision

if TYPE_CHECKING:
    from onnx import ModelProto

RECORD = "build.json"
VARIANTS: tuple[Precision, ...] = ("int8", "float16")
RunGraph = Callable[[Path, Tensors], Tensors]
_NEW = ".build-new"
_RECIPES = Path(__file__).parents[1] / "export"


@dataclass(frozen=True)
class BuiltModel:
    """A model on this disk. `graphs`: ONNX files by name. `digest`: SHA-256 of the first weight file.

    faster: "model" in other arithmetic than float32, where it was built in it. lacks: what could not be built, and why: variants,
    "maps", or "windows" where only such pictures can be explained as the classifier takes.
    """

    spec: ModelSpec
    folder: Path
    graphs: Mapping[str, Path]
    digest: str
    faster: Mapping[Precision, Path] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)

    @property
    def variants(self) -> Mapping[Precision, Mapping[str, Path]]:
        """All graphs, "model" in each arithmetic, the others as they are; "float32" is always there."""
        return {"float32": self.graphs, **{precision: {**self.graphs, "model": path} for precision, path in self.faster.items()}}


class _Graph(BaseModel):
    sha256: str
    size: int


class Record(BaseModel):
    """build.json. `recipe`: fingerprint of the manifest's files and export and of the recipes' source. `graphs`: by the file's
    name without .onnx. `parity`: in plain words. `refused`: what is left out, and why: variants that came out wrong on this
    machine, and what a classifier's network does not allow (service.repository.maps).
    """

    model_config = ConfigDict(extra="forbid")

    recipe: str
    files: dict[str, str]
    graphs: dict[str, _Graph]
    parity: dict[str, str]
    refused: dict[str, str] = {}


def graph_files(spec: ModelSpec) -> list[str]:
    """Names, without .onnx, of all files that a build of `spec` writes: its graphs, then their variants."""
    return [*spec.graphs, *(f"model.{precision}" for precision in VARIANTS if spec.quantize)]


def fingerprint(spec: ModelSpec) -> str:
    """Changes whenever the same manifest and code would build other graphs: a hex digest."""
    digest = hashlib.sha256(spec.export.model_dump_json().encode())
    if spec.adapter is not None:
        digest.update(spec.adapter.model_dump_json().encode())
    for file in spec.files:
        digest.update(f"\n{file.name} {file.sha256}".encode())
    if spec.quantize:
        ranges = spec.folder / spec.quantize.ranges
        digest.update(f"\n{spec.quantize.model_dump_json()}\n".encode() + (ranges.read_bytes() if ranges.is_file() else b""))
    code = sorted(_RECIPES.glob("*.py" if spec.adapter is None else "adopt/*.py"))
    code += [_RECIPES / "class_maps.py"] if spec.tries_maps else []
    for path in code:
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def read_record(spec: ModelSpec, folder: Path) -> Record | None:
    """What was built in `folder`; None when nothing was, or another recipe would be used now, or a graph is missing."""
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None
    wanted = [name for name in graph_files(spec) if name not in record.refused]
    graphs = all((folder / f"{name}.onnx").is_file() and name in record.graphs for name in wanted)
    return record if graphs and record.recipe == fingerprint(spec) else None


def damage(spec: ModelSpec, folder: Path, record: Record, names: Collection[str] | None = None) -> str | None:
    """Which graph in `folder` (of `names`, or of all) is not the one that was built, in words; None when all are. Reads every byte:
    1 ms or less a MB."""
    for name in graph_files(spec) if names is None else names:
        if name in record.refused:
            continue
        path, wanted = folder / f"{name}.onnx", record.graphs[name]
        try:
            if path.stat().st_size != wanted.size:
                return f"{path} is {path.stat().st_size} bytes long, not {wanted.size} as when it was built"
            if digest_of(path) != wanted.sha256:
                return f"{path} has changed since it was built: its SHA-256 is not {wanted.sha256}"
        except OSError as error:
            return f"{path} cannot be read: {error}"
    return None


def describe(spec: ModelSpec, folder: Path, record: Record | None = None) -> BuiltModel:
    """The model that lies in `folder`; `record`: of its build, where it was read already."""
    record = record or read_record(spec, folder)
    lacks = {} if record is None else record.refused
    paths = {graph: folder / f"{graph}.onnx" for graph in spec.graphs}
    graphs = {graph: path for graph, path in paths.items() if graph in spec.export.graphs or path.is_file()}
    made = {precision: folder / f"model.{precision}.onnx" for precision in VARIANTS if spec.quantize}
    faster = {precision: path for precision, path in made.items() if path.is_file()}
    return BuiltModel(spec, folder, graphs, spec.files[0].sha256, faster, lacks)


def build(spec: ModelSpec, folder: Path, weights: Mapping[str, Path], run_graph: RunGraph) -> Record:
    """Export `weights` to graphs in `folder`, each checked against its stored answers before it gets its name.

    A variant that is not close enough to float32 is left out and noted: the exact graph is there to run instead. Needs the lock of
    the folder. Raises ExportFailed, ParityFailed (nothing is kept then) or SpecInvalid.
    """
    cases = load_cases(spec)
    new = folder / _NEW
    shutil.rmtree(new, ignore_errors=True)  # what a killed process left
    new.mkdir()
    try:
        refused = _export(spec, weights, new)
        parity = _check_all(spec, cases, new, run_graph, refused)
        graphs: dict[str, _Graph] = {}
        (folder / RECORD).unlink(missing_ok=True)
        for name in graph_files(spec):
            if name in refused:
                (folder / f"{name}.onnx").unlink(missing_ok=True)
                continue
            made = new / f"{name}.onnx"
            sync(made)
            graphs[name] = _Graph(sha256=digest_of(made), size=made.stat().st_size)
            put_in_place(made, folder / made.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    files = {file.name: file.sha256 for file in spec.files}
    record = Record(recipe=fingerprint(spec), files=files, graphs=graphs, parity=parity, refused=refused)
    write_whole(folder / RECORD, record.model_dump_json(indent=2).encode())
    return record


def _export(spec: ModelSpec, weights: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Write the graphs; gives those that there are not, and why."""
    from onnx import save  # onnx takes 0.2 s to import and is not needed once models are built

    from service.export.adopt import adopt
    from service.export.class_maps import class_maps
    from service.export.recipes import find_recipe

    refused: dict[str, str] = {}
    try:
        if spec.adapter is not None:
            graphs = {"model": adopt(weights[spec.files[0].name], spec.adapter)}
        else:
            graphs = find_recipe(spec.export.recipe)(weights)
    except VisionError:
        raise
    except Exception as error:
        raise ExportFailed(f"{spec.name}: the recipe {spec.export.recipe!r} failed: {type(error).__name__}: {error}") from error
    if set(graphs) != set(spec.export.graphs):
        made, wanted = ", ".join(sorted(graphs)) or "none", ", ".join(sorted(spec.export.graphs))
        raise ExportFailed(f"{spec.name}: the recipe {spec.export.recipe!r} made the graphs {made}; model.toml names {wanted}")
    if spec.tries_maps:
        try:
            graphs[MAPS] = class_maps(graphs["model"])
        except ExportFailed as error:
            refused[MAPS] = str(error)
    for name, graph in graphs.items():
        save(graph, folder / f"{name}.onnx")
    for precision, variant in _variants(spec, graphs["model"]).items():
        save(variant, folder / f"model.{precision}.onnx")
    return refused


def _variants(spec: ModelSpec, graph: "ModelProto") -> "dict[Precision, ModelProto]":
    if spec.quantize is None:
        return {}
    from service.export.half import to_half
    from service.export.quantize import quantize

    try:
        return {"int8": quantize(graph, spec.read_ranges(), spec.quantize.keep_float), "float16": to_half(graph)}
    except ExportFailed as error:
        raise ExportFailed(f"{spec.name}: {error}") from None


def _check_all(
    spec: ModelSpec, cases: Mapping[str, Case], folder: Path, run_graph: RunGraph, refused: dict[str, str]
) -> dict[str, str]:
    """How close each graph is to its stored answers, or as a variant to float32, in words; what is not goes into `refused`."""
    parity: dict[str, str] = {}
    paths = {graph: folder / f"{graph}.onnx" for graph in spec.graphs}
    exact: dict[str, Tensors] = {}
    for graph in spec.export.graphs:
        parity[graph], exact[graph] = _check(spec, graph, cases[graph], paths[graph], run_graph)
    for precision in VARIANTS if spec.quantize else ():
        variant = paths["model"].with_suffix(f".{precision}.onnx")
        close, said = _compare(spec, precision, exact["model"], partial(run_graph, variant, cases["model"].feeds))
        (parity if close else refused)[variant.stem] = said
    if spec.tries_maps and MAPS not in refused:
        try:
            parity[MAPS] = check_maps(exact["model"]["logits"], cases[MAPS].feeds, partial(run_graph, paths[MAPS]))
            refused |= check_windows(spec, partial(run_graph, paths[MAPS]))
        except ParityFailed as error:
            refused[MAPS] = str(error)
    return parity


def _check(spec: ModelSpec, graph: str, case: Case, path: Path, run_graph: RunGraph) -> tuple[str, Tensors]:
    """How close the graph comes to its stored answers, in words, and what it gave. Raises ParityFailed where that is too far."""
    try:
        outputs = run_graph(path, case.feeds)
        if spec.parity is None:
            return f"answers as the task {spec.task} reads it: {check_answers(spec, outputs)}", outputs
        worst: Difference = worst_difference(case, outputs)
    except ParityFailed as error:
        raise ParityFailed(f"{spec.name}: {graph}.onnx: {error}") from None
    except Exception as error:
        kind = "the stored input" if spec.parity else "a picture of noise"
        raise ParityFailed(f"{spec.name}: {graph}.onnx does not run on {kind}: {error}") from error
    found = f"{worst.output!r} differs by at most {worst.value:.3g} from {spec.parity.reference}"
    if worst.value > spec.parity.atol:
        raise ParityFailed(
            f"{spec.name}: {graph}.onnx: {found} (at value {worst.at}), more than {spec.parity.atol:g}; it was not kept"
        )
    return found, outputs


def _compare(spec: ModelSpec, precision: Precision, exact: Tensors, run: Callable[[], Tensors]) -> tuple[bool, str]:
    """Whether a variant comes close enough to float32's outputs, and how close, in words."""
    assert spec.quantize is not None
    allowed: float = getattr(spec.quantize.tolerance, precision)
    try:
        output, value = worst_relative(exact, run())
    except Exception as error:  # noqa: BLE001 - whatever a runtime cannot do with it, float32 is the way out
        return False, f"it does not run: {str(error).splitlines()[0]}"
    said = f"{output!r} differs by {value:.2g} of its spread from float32"
    return value <= allowed, said if value <= allowed else f"{said}, more than {allowed:g}"
