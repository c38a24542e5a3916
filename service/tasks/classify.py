"""What is on a photo: its middle or all of it, one softmax over all classes.

pixels [h, w, 3] -> middle, or all -> resized to "pixels" uint8 [1, height, width, 3] -> "logits" [1, classes] -> the top_k classes
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from service.errors import OptionInvalid, SpecInvalid
from service.imaging import Grid
from service.imaging.codec import Scale
from service.imaging.transforms import center_crop, stretch
from service.repository.spec import InputContract, ModelSpec
from service.tasks.task import Answer, Model, Pixels, Strict, Timing


class ClassifyOptions(Strict):
    top_k: int = Field(5, ge=1, le=1000, description="how many classes to answer, the most probable first")
    model: str | None = Field(None, description="name of the model; empty: the default one")


class Prediction(BaseModel):
    class_id: int = Field(description="index of the class, from 0")
    label: str = Field(description="the class in plain words")
    confidence: float = Field(description="probability, 0 to 1; all classes together sum to 1")


class ClassifyAnswer(Answer):
    predictions: list[Prediction] = Field(description="the most probable first")


def classify(pixels: Pixels, options: ClassifyOptions, model: Model, timing: Timing, grid: Grid | None = None) -> list[Prediction]:
    """The `top_k` most probable classes of a photo, best first; equally probable ones in class order.

    `grid`: where `pixels` lie on the photo; None where they are all that it has.
    Raises OptionInvalid when `top_k` was given and the model has fewer classes, and what `model.run` raises.
    """
    most = len(model.labels)
    if options.top_k > most and "top_k" in options.model_fields_set:
        raise OptionInvalid("top_k", f"top_k={options.top_k}: {model.spec.name} has {most} classes; give 1 to {most}")
    with timing.measure("preprocess"):
        seen = prepare(pixels, model.spec, grid)
    logits = model.run({"pixels": seen[None]}, timing)["logits"][0]
    with timing.measure("postprocess"):
        confidences = softmax(logits)
        best = top(confidences, options.top_k).tolist()
        return [Prediction(class_id=i, label=model.labels[i], confidence=confidences[i]) for i in best]


def top(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest of `values` [n], largest first; equal ones by index."""
    least = np.partition(values, len(values) - count)[len(values) - count] if count < len(values) else values.min()
    found = np.flatnonzero(values >= least)
    return found[np.argsort(-values[found], kind="stable")][:count]


def prepare(pixels: Pixels, spec: ModelSpec, grid: Grid | None = None) -> Pixels:
    """What the model looks at, [height, width, 3]. Raises SpecInvalid for a rule other than center-crop and stretch."""
    wanted, (height, width) = _input(spec)
    if wanted.resize == "stretch":
        return stretch(pixels, height, width, wanted.interpolation, grid)[0]
    return center_crop(pixels, (height, width), wanted.crop, wanted.interpolation, grid)


def crop_scale(spec: ModelSpec) -> Scale:
    """How much of a photo the model sees: of the side that it sees more of. Raises SpecInvalid as `prepare` does."""
    wanted, (rows, columns) = _input(spec)
    crop = wanted.crop if wanted.resize == "center-crop" else 1.0
    return lambda height, width: max(rows / height, columns / width) / crop


def _input(spec: ModelSpec) -> tuple[InputContract, tuple[int, int]]:
    wanted = spec.input
    if wanted.resize not in {"center-crop", "stretch"} or wanted.size is None:
        raise SpecInvalid(f'{spec.name}: a classifier needs [input] resize = "center-crop" or "stretch", and a size')
    return wanted, wanted.size


def softmax(logits: NDArray[np.generic]) -> NDArray[np.float64]:
    """Probabilities [classes] that sum to 1, computed in float64 so that they still do after rounding."""
    exponentials = np.exp(np.subtract(logits, logits.max(), dtype=np.float64))
    return exponentials / exponentials.sum()  # type: ignore[no-any-return]
