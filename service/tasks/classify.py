"""What is on a photo: its middle or all of it, one softmax over all classes.

pixels [h, w, 3] -> middle, or all -> resized to "pixels" uint8 [1, height, width, 3] -> "logits" [1, classes] -> the top_k classes

With `explain` or `sliding_window` by the graph "maps" instead, which answers "maps" [1, classes, rows, columns] beside the same
logits: service.tasks.activation says what they are.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, PrivateAttr

from service.errors import OptionInvalid, SpecInvalid
from service.imaging import Grid
from service.imaging.codec import Scale
from service.imaging.heat import Edges
from service.imaging.transforms import center_crop, middle, stretch
from service.repository.spec import MAPS, InputContract, ModelSpec
from service.tasks.activation import Heat, canvas, heat, view_of, window_scale, windows
from service.tasks.task import Answer, Box, Model, Pixels, Strict, Timing, in_pixels


class ClassifyOptions(Strict):
    top_k: int = Field(5, ge=1, le=1000, description="how many classes to answer, the most probable first")
    model: str | None = Field(None, description="name of the model; empty: the default one")
    explain: bool = Field(False, description="also say where the network looked: an activation map for each class")
    sliding_window: bool = Field(False, description="also classify each window of the whole photo, in one pass")

    @property
    def looks(self) -> bool:
        """Is the graph "maps" needed?"""
        return self.explain or self.sliding_window


def _absent(value: object) -> bool:
    return value is None


class Activation(BaseModel):
    grid: list[list[float]] = Field(
        description="rows of the last feature map: what each place of the view says for the class; the mean is the class's logit"
    )


class Localization(BaseModel):
    class_id: int
    label: str
    confidence: float
    box: Box = Field(description="around the strongest region of the most probable class")


class Windows(BaseModel):
    """The class of each window of size x size network pixels; window (r, c) begins r * stride and c * stride into the view."""

    size: int = Field(description="side of a window in network pixels")
    stride: int = Field(description="from one window to the next in network pixels")
    scale: float = Field(description="network pixels for each pixel of the photo")
    rows: int
    columns: int
    class_ids: list[list[int]] = Field(description="the most probable class of each window")
    confidences: list[list[float]] = Field(description="its probability, 0 to 1")
    labels: dict[str, str] = Field(description="the classes that were found, the one of the most confident window first")
    view: Box = Field(
        description="what the windows lie in; right and below it may reach beyond the photo, by less than a stride or to a window"
    )


class Prediction(BaseModel):
    class_id: int = Field(description="index of the class, from 0")
    label: str = Field(description="the class in plain words")
    confidence: float = Field(description="probability, 0 to 1; all classes together sum to 1")
    activation: Annotated[Activation | None, Field(exclude_if=_absent, description="with explain")] = None


class ClassifyAnswer(Answer):
    predictions: list[Prediction] = Field(description="the most probable first")
    view: Annotated[
        Box | None,
        Field(exclude_if=_absent, description="with explain: the part of the photo that the grids divide into equal cells"),
    ] = None
    localization: Annotated[Localization | None, Field(exclude_if=_absent, description="with explain")] = None
    windows: Annotated[Windows | None, Field(exclude_if=_absent, description="with sliding_window")] = None
    _heat: Heat | None = PrivateAttr(None)

    @property
    def heat(self) -> Heat | None:
        """What is drawn: with sliding_window the class of the most confident window over all of the photo, with explain alone the
        most probable class over the view; else None."""
        return self._heat

    def keep_heat(self, heat: Heat) -> None:
        self._heat = heat


@dataclass(frozen=True)
class Explained:
    """What is asked for of an answer, by the fields' names, and what is drawn."""

    fields: dict[str, Any]
    heat: Heat


def classify(pixels: Pixels, options: ClassifyOptions, model: Model, timing: Timing, grid: Grid | None = None) -> list[Prediction]:
    """The `top_k` most probable classes of a photo, best first; equally probable ones in class order.

    `grid`: where `pixels` lie on the photo; None where they are all that it has.
    Raises OptionInvalid when `top_k` was given and the model has fewer classes, and what `model.run` raises.
    """
    _check_top(options, model)
    with timing.measure("preprocess"):
        seen = prepare(pixels, model.spec, grid)
    logits = model.run({"pixels": seen[None]}, timing)["logits"][0]
    with timing.measure("postprocess"):
        return _predictions(logits, options, model)


def explain(pixels: Pixels, options: ClassifyOptions, model: Model, timing: Timing, grid: Grid | None = None) -> Explained:
    """The same by the graph "maps", with what `options` ask for besides. Raises as `classify` does."""
    _check_top(options, model)
    photo = grid or Grid.of(pixels)
    with timing.measure("preprocess"):
        seen, view = prepare(pixels, model.spec, grid), viewed(pixels, model.spec, photo)
    outputs = model.run({"pixels": seen[None]}, timing, MAPS)
    maps = np.asarray(outputs[MAPS][0], np.float32)
    with timing.measure("postprocess"):
        predictions = _predictions(outputs["logits"][0], options, model)
        best = predictions[0]
        shown = heat(best.class_id, best.label, best.confidence, maps[best.class_id], view, photo)
        fields: dict[str, Any] = {"predictions": predictions}
        if options.explain:
            given = [Activation(grid=maps[p.class_id].astype(np.float64).round(5).tolist()) for p in predictions]
            fields["predictions"] = [p.model_copy(update={"activation": a}) for p, a in zip(predictions, given, strict=True)]
            fields["view"] = _box(view)
            fields["localization"] = Localization(
                class_id=best.class_id, label=best.label, confidence=best.confidence, box=_box(shown.box)
            )
    if options.sliding_window:
        fields["windows"], shown = slide(pixels, model, timing, photo, maps.shape[1])
    return Explained(fields, shown)


def slide(pixels: Pixels, model: Model, timing: Timing, photo: Grid, cells: int) -> tuple[Windows, Heat]:
    """The class of each window of a whole photo, and that of the most confident one over it. cells: rows of a window's maps."""
    wanted, (size, _) = _input(model.spec)
    stride = size // cells
    with timing.measure("preprocess"):
        large, placement = canvas(pixels, photo, wanted, size, stride)
        view = view_of(placement, *large.shape[:2])
    maps = np.asarray(model.run({"pixels": large[None]}, timing, MAPS)[MAPS][0], np.float32)
    with timing.measure("postprocess"):
        seen = windows(maps, cells, placement, view)
        order = np.argsort(-seen.confidences, axis=None, kind="stable")
        found = dict.fromkeys(seen.classes.ravel()[order].tolist())
        best = next(iter(found))
        answer = Windows(
            size=size,
            stride=stride,
            scale=seen.scale,
            rows=seen.classes.shape[0],
            columns=seen.classes.shape[1],
            class_ids=seen.classes.tolist(),
            confidences=seen.confidences.round(6).tolist(),
            labels={str(class_id): model.labels[class_id] for class_id in found},
            view=_box(view),
        )
        return answer, heat(best, model.labels[best], float(seen.confidences.max()), maps[best], view, photo)


def viewed(pixels: Pixels, spec: ModelSpec, photo: Grid) -> Edges:
    """The part of the photo that `prepare` takes, in its pixels and clipped to it."""
    wanted, size = _input(spec)
    top, left, down, across = 0, 0, *pixels.shape[:2]
    if wanted.resize == "center-crop":
        top, left, down, across = middle(photo, size, wanted.crop)
    step = photo.step
    x_min, x_max = (min(max(photo.left + step * x, 0), photo.width) for x in (left, left + across))
    y_min, y_max = (min(max(photo.top + step * y, 0), photo.height) for y in (top, top + down))
    return float(x_min), float(y_min), float(x_max), float(y_max)


def _check_top(options: ClassifyOptions, model: Model) -> None:
    most = len(model.labels)
    if options.top_k > most and "top_k" in options.model_fields_set:
        raise OptionInvalid("top_k", f"top_k={options.top_k}: {model.spec.name} has {most} classes; give 1 to {most}")


def _predictions(logits: NDArray[np.generic], options: ClassifyOptions, model: Model) -> list[Prediction]:
    confidences = softmax(logits)
    best = top(confidences, options.top_k).tolist()
    return [Prediction(class_id=i, label=model.labels[i], confidence=confidences[i]) for i in best]


def _box(edges: Edges) -> Box:
    x_min, y_min, x_max, y_max = in_pixels(np.array(edges))
    return Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


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


def crop_scale(spec: ModelSpec, *, whole: bool = False) -> Scale:
    """How much of a photo the model sees: of the side that it sees more of. whole: by windows too.

    Raises SpecInvalid as `prepare` does.
    """
    wanted, (rows, columns) = _input(spec)
    crop = wanted.crop if wanted.resize == "center-crop" else 1.0

    def seen(height: int, width: int) -> float:
        return max(rows / height, columns / width) / crop

    return (lambda height, width: max(seen(height, width), window_scale(height, width, rows))) if whole else seen


def _input(spec: ModelSpec) -> tuple[InputContract, tuple[int, int]]:
    wanted = spec.input
    if wanted.resize not in {"center-crop", "stretch"} or wanted.size is None:
        raise SpecInvalid(f'{spec.name}: a classifier needs [input] resize = "center-crop" or "stretch", and a size')
    return wanted, wanted.size


def softmax(logits: NDArray[np.generic]) -> NDArray[np.float64]:
    """Probabilities [classes] that sum to 1, computed in float64 so that they still do after rounding."""
    exponentials = np.exp(np.subtract(logits, logits.max(), dtype=np.float64))
    return exponentials / exponentials.sum()  # type: ignore[no-any-return]
