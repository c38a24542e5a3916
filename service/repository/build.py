"""Turn weights into graphs, once, and know later whether the result is whole and still what the code would make.

weights/<file>      checked weights
<graph>.onnx        one for each of [export] graphs
<graph>.int8.onnx, <graph>.float16.onnx   the same in other arithmetic, for models with [quantize]
build.json          written last: what recipe made the graphs, from which files, with which digests
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import ExportFailed, ParityFailed, VisionError
from service.repository.answers import check_answers
from service.repository.files import digest_of, put_in_place, sync, write_whole
from service.repository.parity import Case, Difference, Tensors, load_cases, worst_difference, worst_relative
from service.repository.spec import ModelSpec, Precision

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

    faster: such graphs in other arithmetic than float32, where the model was built in it.
    """

    spec: ModelSpec
    folder: Path
    graphs: Mapping[str, Path]
    digest: str
    faster: Mapping[Precision, Mapping[str, Path]] = field(default_factory=dict)

    @property
    def variants(self) -> Mapping[Precision, Mapping[str, Path]]:
        """The graphs in each arithmetic; "float32" is always there."""
        return {"float32": self.graphs, **self.faster}


class _Graph(BaseModel):
    sha256: str
    size: int


class Record(BaseModel):
    """build.json. `recipe`: fingerprint of the manifest's files and export and of the recipes' source. `graphs`: by the file's
    name without .onnx. `parity`: in plain words. `refused`: variants that came out wrong on this machine, and how.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: str
    files: dict[str, str]
    graphs: dict[str, _Graph]
    parity: dict[str, str]
    refused: dict[str, str] = {}


def graph_files(spec: ModelSpec) -> list[str]:
    """Names, without .onnx, of all files that a build of `spec` writes: its graphs, then their variants."""
    variants = [f"{graph}.{precision}" for precision in VARIANTS for graph in spec.export.graphs] if spec.quantize else []
    return [*spec.export.graphs, *variants]


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


def damage(spec: ModelSpec, folder: Path, record: Record) -> str | None:
    """Which graph in `folder` is not the one that was built, in words; None when all are. Reads every byte: 1 ms or less a MB."""
    for name in graph_files(spec):
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


def describe(spec: ModelSpec, folder: Path) -> BuiltModel:
    """The model that lies in `folder`."""
    variants: dict[Precision, dict[str, Path]] = {}
    for precision in VARIANTS if spec.quantize else ():
        files = {graph: folder / f"{graph}.{precision}.onnx" for graph in spec.export.graphs}
        if all(file.is_file() for file in files.values()):
            variants[precision] = files
    return BuiltModel(
        spec, folder, {graph: folder / f"{graph}.onnx" for graph in spec.export.graphs}, spec.files[0].sha256, variants
    )


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
        _export(spec, weights, new)
        parity, refused = _check_all(spec, cases, new, run_graph)
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


def _export(spec: ModelSpec, weights: Mapping[str, Path], folder: Path) -> None:
    from onnx import save  # onnx takes 0.2 s to import and is not needed once models are built

    from service.export.adopt import adopt
    from service.export.recipes import find_recipe

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
    for name, graph in graphs.items():
        save(graph, folder / f"{name}.onnx")
        for precision, variant in _variants(spec, graph).items():
            save(variant, folder / f"{name}.{precision}.onnx")


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
    spec: ModelSpec, cases: Mapping[str, Case], folder: Path, run_graph: RunGraph
) -> tuple[dict[str, str], dict[str, str]]:
    """How close each graph is to its stored answers, or as a variant to float32, and which variants are refused; in words."""
    parity: dict[str, str] = {}
    refused: dict[str, str] = {}
    for graph in spec.export.graphs:
        path, feeds = folder / f"{graph}.onnx", cases[graph].feeds
        parity[graph], exact = _check(spec, graph, cases[graph], path, run_graph)
        for precision in VARIANTS if spec.quantize else ():
            variant = path.with_suffix(f".{precision}.onnx")
            close, said = _compare(spec, precision, exact, partial(run_graph, variant, feeds))
            (parity if close else refused)[variant.stem] = said
    return parity, refused


def _check(spec: ModelSpec, graph: str, case: Case, path: Path, run_graph: RunGraph) -> tuple[str, Tensors]:
    """How close the graph comes to its stored answers, in words, and what it gave. Raises ParityFailed where that is too far."""
    try:
        outputs = run_graph(path, case.feeds)
        if spec.parity is None:
            return f"answers as the task {spec.task} reads it: {check_answers(spec, outputs)}", outputs
        worst: Difference = worst_difference(case, outputs, relative=spec.parity.relative)
    except ParityFailed as error:
        raise ParityFailed(f"{spec.name}: {graph}.onnx: {error}") from None
    except Exception as error:
        kind = "the stored input" if spec.parity else "a picture of noise"
        raise ParityFailed(f"{spec.name}: {graph}.onnx does not run on {kind}: {error}") from error
    share = " of its largest" if spec.parity.relative else ""
    found = f"{worst.output!r} differs by at most {worst.value:.3g}{share} from {spec.parity.reference}"
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
