"""Does an exported graph answer as the stored, independent implementation did? The check that guards every export."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.errors import ParityFailed, SpecInvalid
from service.repository.spec import ModelSpec

Array = NDArray[np.generic]
Tensors = Mapping[str, Array]
NOISE_SIDES = (256, 320)  # height and width in pixels where a graph takes any


@dataclass(frozen=True)
class Case:
    """What one graph is fed and must answer: whole outputs, or values at flat indices of them."""

    feeds: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    samples: dict[str, tuple[Array, Array]] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference in `output`, at the flat index `at`. NaN and infinity count as infinite differences."""

    output: str
    value: float
    at: int


def load_cases(spec: ModelSpec) -> dict[str, Case]:
    """The stored cases of every graph of `spec`, from its parity file; see spec.Parity for the names of the arrays. Without such a
    file, noise to run on.

    Raises SpecInvalid when the file is missing or damaged, or leaves a graph without an input or without an answer.
    """
    if spec.parity is None:
        return {graph: Case(feeds=noise(spec)) for graph in spec.graphs}
    path = spec.folder / spec.parity.file
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays: dict[str, Array] = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SpecInvalid(f"{path}: {error}") from None
    try:
        cases = sort_cases(arrays)
    except ValueError as error:
        raise SpecInvalid(f"{path}: {error}") from None
    for graph in spec.export.graphs:
        case = cases.get(graph, Case())
        if not case.feeds or not (case.outputs or case.samples):
            raise SpecInvalid(f'{path}: needs "{graph}/in/<input>" and "{graph}/out/<output>" (or at and values)')
    return {**{graph: Case(feeds=cases["model"].feeds) for graph in spec.graphs}, **cases}


def noise(spec: ModelSpec, batch: int = 1) -> dict[str, Array]:
    """Pictures to try an adopted graph on, by input: always the same, with edges of all sizes. uint8 [batch, h, w, 3]."""
    height, width = spec.input.size or NOISE_SIDES
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (batch, -(-height // 16), -(-width // 16), 3))
    picture = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width] * 3 // 4 + random.integers(
        0, 64, (batch, height, width, 3)
    )
    names = ["pixels", "style_pixels"] if spec.adapter is not None and spec.adapter.decoder == "picture-and-style" else ["pixels"]
    return {name: np.asarray(picture, np.uint8) for name in names}


def sort_cases(arrays: Tensors) -> dict[str, Case]:
    """Arrays named "<graph>/in/<input>", "<graph>/out/<output>", "<graph>/at/<output>", "<graph>/values/<output>", by graph.

    Raises ValueError naming an array that does not fit.
    """
    cases: dict[str, Case] = {}
    for key, array in arrays.items():
        graph, _, rest = key.partition("/")
        kind, _, name = rest.partition("/")
        case = cases.setdefault(graph, Case())
        if kind == "in" and name:
            case.feeds[name] = array
        elif kind == "out" and name:
            case.outputs[name] = array
        elif kind == "at" and name:
            values = arrays.get(f"{graph}/values/{name}")
            if values is None or values.shape != array.shape or array.dtype.kind not in "iu":
                raise ValueError(f'"{key}" needs whole numbers, and "{graph}/values/{name}" of the same shape')
            case.samples[name] = (array, values)
        elif kind != "values" or f"{graph}/at/{name}" not in arrays:
            raise ValueError(f'"{key}" is not a name that means anything here')
    return cases


def worst_difference(case: Case, outputs: Tensors) -> Difference:
    """Where `outputs` differ most from what `case` stores.

    Raises ParityFailed when an output is missing, or its shape is not the stored one (for samples: is too small).
    """
    missing = sorted({*case.outputs, *case.samples} - set(outputs))
    if missing:
        raise ParityFailed(f"there is no output {missing[0]!r}; the outputs are: {', '.join(outputs) or '(none)'}")
    found: list[Difference] = []
    for name, wanted in case.outputs.items():
        if outputs[name].shape != wanted.shape:
            raise ParityFailed(f"output {name!r} has the shape {outputs[name].shape}, stored is {wanted.shape}")
        found.append(_largest(name, outputs[name].ravel(), wanted.ravel(), np.arange(wanted.size)))
    for name, (at, values) in case.samples.items():
        flat, indices = outputs[name].ravel(), at.astype(np.int64).ravel()
        if indices.size and not (indices.min() >= 0 and indices.max() < flat.size):
            raise ParityFailed(f"output {name!r} has {flat.size} values, stored is one at {indices.max()}")
        found.append(_largest(name, flat[indices], values.ravel(), indices))
    return max(found, key=lambda difference: difference.value)


def worst_relative(wanted: Tensors, got: Tensors) -> tuple[str, float]:
    """The output of two runs that differs most, and by how much: root mean square of the differences over the standard deviation
    of what is wanted. Other names or shapes, NaN and infinity count as infinite differences.
    """
    found = {name: _relative(wanted[name], got[name]) if name in got else np.inf for name in wanted}
    worst = max(found, key=found.__getitem__)
    return worst, found[worst]


def _relative(wanted: Array, got: Array) -> float:
    if wanted.shape != got.shape:
        return np.inf
    spread = float(wanted.astype(np.float64).std())
    with np.errstate(invalid="ignore"):
        gap = float(np.sqrt(np.mean((got.astype(np.float64) - wanted.astype(np.float64)) ** 2)))
    return gap / max(spread, 1e-12) if np.isfinite(gap) else np.inf


def _largest(name: str, got: Array, wanted: Array, indices: NDArray[np.int64]) -> Difference:
    if not got.size:
        return Difference(name, 0.0, 0)
    with np.errstate(invalid="ignore"):
        gap = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    gap[~np.isfinite(gap)] = np.inf
    worst = int(gap.argmax())
    return Difference(name, float(gap[worst]), int(indices[worst]))
