"""Is the finding right? Its graph is made and run in a child process, and must answer as its task reads it."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import ExportFailed, ModelRefused, ParityFailed, VisionError
from service.intake.finding import Finding
from service.intake.manifest import write
from service.intake.told import NOTHING
from service.intake.trial import trial
from service.intake.words import Notes
from service.repository.answers import check_answers
from service.repository.parity import noise
from service.repository.spec import ModelSpec
from service.settings import Settings

Answers = Mapping[str, NDArray[np.generic]]
CLOSE = 0.02
"""How far two pictures in one run may differ from one by one, as a share of the spread: float16 rounds differently."""


def prove(finding: Finding, settings: Settings, notes: Notes) -> Finding:
    """The finding with what batches it takes. Raises ModelRefused in words where the graph cannot be made, or does not answer."""
    with tempfile.TemporaryDirectory(prefix="vision-intake-") as place:
        folder = Path(place) / finding.name
        folder.mkdir()
        spec = write(folder, finding, NOTHING, {"model.onnx": finding.file.path})
        contract = finding.contract
        if contract is not None and contract.free_batch:
            why = _try_batch(spec, folder, finding, settings, notes)
            if why is None:
                return finding
            fixed = next(port.shape[0] for port in finding.file.inputs if port.name == contract.input)
            if isinstance(fixed, int) and fixed > 1:
                raise ModelRefused(f"the file takes {fixed} pictures at a time, which cannot be changed: {why}; export it for one")
            notes.fact(f"it takes one picture at a time: {why}")
            finding = replace(finding, contract=contract.model_copy(update={"free_batch": False}), max_batch=1)
            spec = write(folder, finding, NOTHING, {"model.onnx": finding.file.path})
        elif contract is not None:
            finding = replace(finding, max_batch=1)
        try:
            answers = trial(_graph(spec, finding, folder), [noise(spec)], settings, finding.file.size)[0]
            notes.fact(f"tried: it answers as {spec.task} reads it, {check_answers(spec, answers)}")
        except (ExportFailed, ParityFailed) as error:
            raise ModelRefused(f"the file is not what it looks like: {error}") from None
        return finding


def _try_batch(spec: ModelSpec, folder: Path, finding: Finding, settings: Settings, notes: Notes) -> str | None:
    """Why it cannot take several pictures at once, None where it can. Raises ModelRefused where it does not answer at all."""
    both = noise(spec, 2)
    singles = [{name: array[index : index + 1] for name, array in both.items()} for index in range(2)]
    try:
        path = _graph(spec, finding, folder)
        two, *ones = trial(path, [both, *singles], settings, finding.file.size)
    except VisionError as error:
        return str(error).removeprefix("onnxruntime ")[:200]
    try:
        said = check_answers(spec, ones[0])
    except ParityFailed as error:
        return str(error)
    if not all(_alike(array[index : index + 1], ones[index][name]) for name, array in two.items() for index in range(2)):
        return "two at once are answered otherwise than one by one"
    notes.fact(f"tried: it answers as {spec.task} reads it, {said}; two pictures at once as one by one")
    return None


def _graph(spec: ModelSpec, finding: Finding, folder: Path) -> Path:
    """The house's graph of `finding` as a file in `folder`. Raises ExportFailed."""
    from onnx import save

    from service.export.adopt import adopt
    from service.export.recipes import find_recipe

    source, target = finding.file.path, folder / "house.onnx"
    try:
        made = adopt(source, spec.adapter) if spec.adapter else find_recipe(spec.export.recipe)({source.name: source})["model"]
        save(made, target)
    except VisionError:
        raise
    except Exception as error:
        raise ExportFailed(f"{type(error).__name__}: {str(error).strip()[:300]}") from error
    return target


def _alike(first: NDArray[np.generic], second: NDArray[np.generic]) -> bool:
    if first.shape != second.shape:
        return False
    a, b = first.astype(np.float64), second.astype(np.float64)
    spread = max(float(b.max() - b.min()), 1e-6) if b.size else 1.0
    return bool(np.isfinite(a).all() and np.sqrt(np.mean((a - b) ** 2)) <= CLOSE * spread) if b.size else True
