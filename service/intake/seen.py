"""What was seen of a file, all that the readers of outputs look at; and what they conclude."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import ModelRefused
from service.export.contract import Decoder
from service.intake.entrance import Entrance
from service.intake.read import OnnxFile
from service.intake.told import Told
from service.intake.ultralytics import Metadata
from service.intake.words import Notes, Port, ports_text
from service.repository.spec import Task

Floats = NDArray[np.float32]
Scores = Literal["none", "sigmoid", "softmax"]
UNIT = 1e-3  # how far a score or a share may be outside of 0..1 by rounding
LARGEST_LOGIT = 60.0  # more than that is no score that still needs a sigmoid


@dataclass(frozen=True)
class Role:
    """What a file is. `convention`: how exports of this kind want their pictures, in service.intake.preparing; None: must be asked.

    classes: 0 where the file does not tell. decoder: None where it is to be asked, and for another recipe than adopt.
    """

    task: Task
    decoder: Decoder | None
    classes: int = 0
    outputs: tuple[str, ...] = ()
    first_class: int = 0
    activation: Scores = "none"
    boxes: Literal["pixels", "unit"] = "pixels"
    anchors: tuple[tuple[float, ...], ...] = ()
    strides: tuple[int, ...] = ()
    head: Literal["v3", "v5"] = "v3"
    xy_scale: tuple[float, ...] = ()
    probabilities: bool = False
    convention: str | None = None
    recipe: str = "adopt"


@dataclass(frozen=True)
class Seen:
    """`runs`: outputs by name of the trial on noise 0..1, a smooth picture 0..1, and the same 0..255."""

    file: OnnxFile
    entrance: Entrance
    meta: Metadata
    told: Told
    notes: Notes
    runs: Sequence[Mapping[str, NDArray[np.generic]]]

    @cached_property
    def ports(self) -> tuple[Port, ...]:
        """The outputs with the shapes that they had in the trial, in the graph's order; only those told, where any were."""
        found = {name: Port(name, str(array.dtype), array.shape) for name, array in self.runs[0].items()}
        missing = [name for name in self.told.outputs or () if name not in found]
        if missing:
            raise ModelRefused(f"there is no output {missing[0]!r}; the outputs are: {ports_text(found.values())}")
        return tuple(found[name] for name in self.told.outputs or found)

    def arrays(self, name: str) -> list[Floats]:
        """The output in each run that gave finite numbers, float32."""
        with np.errstate(over="ignore"):
            found = [np.asarray(run[name], np.float32) for run in self.runs]
        return [array for array in found if np.isfinite(array).all()]

    def values(self, name: str) -> Floats:
        """All runs one after the other along the leading axis; of one shape each."""
        arrays = self.arrays(name)
        if not arrays:
            raise ModelRefused(f"the output {name} was never finite in the trial run")
        return np.concatenate([array for array in arrays if array.shape[1:] == arrays[0].shape[1:]])

    def refuse(self, why: str) -> ModelRefused:
        return ModelRefused(f"{why}; the outputs are: {ports_text(self.ports)}, for the input {self.entrance.port}")


def span(values: Floats) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def activation_of(seen: Seen, scores: Floats, what: str) -> Scores:
    """Do these scores still need a sigmoid? By their values in the trial. Raises ModelRefused where they are no scores."""
    if seen.told.activation:
        return seen.told.activation
    low, high = span(scores)
    if low >= -UNIT and high <= 1 + UNIT:
        return "none"
    if high > LARGEST_LOGIT:
        raise seen.refuse(
            f"what should be {what} goes up to {high:.4g} in the trial run, which is no score: this may be a network for key "
            "points, "
            "masks or rotated boxes"
        )
    seen.notes.fact(f"{what} went from {low:.3g} to {high:.3g} in the trial run, so a sigmoid is still to be taken of them")
    return "sigmoid"
