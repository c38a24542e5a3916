"""Paint a photo in a built-in style, in a blend of them, or in the style of any picture.

photo [h, w, 3] -> shrunk to max_side -> painted (service.tasks.painting) -> colour and strength -> [h, w, 3]
The style comes from one of two families of models:
    built-in-styles   a name, or a blend of names with weights -> one weight for each style
    arbitrary-style   a picture -> the graph "predict" -> 100 numbers
"""

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import ImageTooSmall, ModelUnknown, OptionInvalid, SpecInvalid, StyleUnknown
from service.imaging.codec import encode
from service.imaging.transforms import resize
from service.repository.spec import ModelSpec
from service.tasks.painting import MIN_SIDE, Vector, fade, keep_color, paint, shrink
from service.tasks.task import Model, Pixels, Strict, Timing

BUILT_IN, ARBITRARY = "built-in-styles", "arbitrary-style"
SAMPLE = "sample.png"
"""The weight file of a model with built-in styles that holds the photo for thumbnails."""

STYLE_AREA, STYLE_MULTIPLE, STYLE_RATIO = 256 * 256, 32, 4
"""Style pictures are brought to this many pixels, sides multiples of 32, the longer cut to 4 times the shorter one."""


class StylizeOptions(Strict):
    style: str | None = Field(None, description="a built-in style (GET /styles), or a blend: `ink-wash:0.6,fiery-strokes:0.4`")
    strength: float = Field(1.0, ge=0, le=1, description="from 0, the photo, to 1, the painting")
    preserve_color: bool = Field(False, description="keep the photo's colours, paint only its light and dark")
    max_side: int | None = Field(None, ge=64, description="longest side of the answer in pixels; larger photos are scaled down")
    format: Literal["png", "jpeg", "webp"] = Field("png", description="file format of the answer")
    quality: int = Field(90, ge=1, le=100, description="of JPEG and WebP, 1 to 100")
    model: str | None = Field(None, description="name of the model; empty: the one that the style needs")


class StyleInfo(BaseModel):
    """A built-in style."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="what `style` takes")
    title: str
    description: str = Field(description="what it looks like")
    model: str = Field(description="the model that paints it")


def stylize(
    pixels: Pixels, options: StylizeOptions, style_pixels: Pixels | None, model: Model, timing: Timing, max_side: int
) -> Pixels:
    """The photo painted, [h, w, 3], of its own size unless a side is longer than options.max_side or the limit `max_side`.

    `strength` below 1: built-in styles are laid over the photo with that opacity. With a style picture the style is mixed with
    the photo's own, strength parts to 1 - strength; since a photo in its own style is not quite the photo, strengths below 0.5
    fade into it as well. At 0 the answer is the photo.
    Raises OptionInvalid (style and style picture are both or neither given, or the model cannot paint them; max_side is over
    the limit), StyleUnknown, ImageTooSmall, and what `model.run` raises.
    """
    _check_family(model.spec, options, style_pixels is not None)
    if options.max_side is not None and options.max_side > max_side:
        raise OptionInvalid("max_side", f"max_side={options.max_side}: give 64 to {max_side}")
    with timing.measure("preprocess"):
        photo = shrink(pixels, options.max_side or max_side)
    if min(photo.shape[:2]) < MIN_SIDE:
        height, width = photo.shape[:2]
        raise ImageTooSmall(f"the photo is {width} x {height} pixels as it would be painted; each side needs at least {MIN_SIDE}")
    if style_pixels is None:
        style, opacity = weights(options.style or "", list_styles(model.spec)), options.strength
    else:
        style, opacity = style_vector(style_pixels, model, timing), min(1.0, 2 * options.strength)
        if options.strength < 1:
            style = options.strength * style + (1 - options.strength) * style_vector(photo, model, timing)
    painted = paint(photo, style, model, timing)
    with timing.measure("postprocess"):
        if options.preserve_color:
            painted = keep_color(painted, photo)
        return np.ascontiguousarray(fade(photo, painted, opacity))


def pick_painter(specs: Sequence[ModelSpec], options: StylizeOptions, has_style_image: bool) -> ModelSpec:
    """The model among `specs` that these options need: the one named, else the default or first of the right family.

    Raises ModelUnknown, and OptionInvalid as `stylize` does.
    """
    painters = [spec for spec in specs if spec.task == "stylize"]
    if options.model is not None:
        named = next((spec for spec in painters if spec.name == options.model), None)
        if named is None:
            raise ModelUnknown(options.model, [spec.name for spec in painters])
        _check_family(named, options, has_style_image)
        return named
    family = family_for(options, has_style_image)
    fitting = [spec for spec in painters if spec.family == family]
    if not fitting:
        raise ModelUnknown(f"({family})", [spec.name for spec in painters])
    return next((spec for spec in fitting if spec.default), fitting[0])


def family_for(options: StylizeOptions, has_style_image: bool) -> str:
    """BUILT_IN or ARBITRARY. Raises OptionInvalid unless exactly one of a style and a style picture is given."""
    if options.style is not None and has_style_image:
        raise OptionInvalid("style", "give either style or style_image, not both")
    if options.style is None and not has_style_image:
        raise OptionInvalid(
            "style",
            "say what to paint like: style, a name from GET /styles or a blend like 'ink-wash:0.6,fiery-strokes:0.4', "
            "or style_image, any picture",
        )
    return ARBITRARY if has_style_image else BUILT_IN


def weights(text: str, styles: Sequence[StyleInfo]) -> Vector:
    """`text` as one weight for each of `styles`, [1, len(styles)], that sum to 1.

    "a" is one style; "a,b" equal parts; "a:0.6,b:0.4" parts as given, of any sum. Case and blanks do not matter.
    Raises StyleUnknown (names most like the one given first), and OptionInvalid for a weight that is no number, negative, or
    missing beside others, or where all are 0.
    """
    index = {style.name: position for position, style in enumerate(styles)}
    parts = [part.strip() for part in text.split(",")]
    given = {":" in part for part in parts}
    if given == {True, False}:
        raise OptionInvalid("style", f"style={text!r}: give every style of a blend a weight, or none of them")
    found = np.zeros((1, len(styles)), np.float64)
    for part in parts:
        name, _, weight = (piece.strip().lower() for piece in part.partition(":"))
        if not name:
            raise OptionInvalid("style", f"style={text!r}: a name is missing; write a name, or name:weight,name:weight")
        if name not in index:
            raise StyleUnknown(name, sorted(index, key=get_close_matches(name, index).__contains__, reverse=True))
        found[0, index[name]] += _weight(text, weight) if given == {True} else 1.0
    if not found.sum() > 0:
        raise OptionInvalid("style", f"style={text!r}: at least one weight must be above 0")
    return np.asarray(found / found.sum(), np.float32)


def style_vector(picture: Pixels, model: Model, timing: Timing) -> Vector:
    """The style of a picture of any size, [1, 100].

    The network was trained on 256 x 256 pixels. Squeezing a picture into them stretches its strokes, and cutting it to a square
    loses its colours, so it keeps its proportions and gets the same number of pixels; only very long ones are cut.
    """
    with timing.measure("preprocess"):
        height, width = picture.shape[:2]
        kept = min(height, STYLE_RATIO * width), min(width, STYLE_RATIO * height)
        top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
        scale = (STYLE_AREA / (kept[0] * kept[1])) ** 0.5
        rows, columns = (max(1, round(side * scale / STYLE_MULTIPLE)) * STYLE_MULTIPLE for side in kept)
        small = resize(picture[top : top + kept[0], left : left + kept[1]], rows, columns, "area")
    return np.asarray(model.run({"pixels": small[None]}, timing, "predict")["style"], np.float32)


def list_styles(spec: ModelSpec) -> tuple[StyleInfo, ...]:
    """The built-in styles of a model in its network's order; empty where it has none. Raises SpecInvalid naming the file."""
    return _read_styles(spec.folder / spec.styles, spec.name) if spec.styles else ()


def thumbnail(name: str, sample: Pixels, model: Model, timing: Timing, width: int = 192) -> bytes:
    """`sample` painted in the built-in style `name`, as a JPEG `width` pixels wide. Raises StyleUnknown.

    Painted at twice that width and scaled down, so that strokes look as fine as on a photo of usual size.
    """
    height = round(width * sample.shape[0] / sample.shape[1])
    style = weights(name, list_styles(model.spec))
    painted = paint(resize(sample, 2 * height, 2 * width, "area"), style, model, timing)
    return encode(resize(painted, height, width, "area"), "jpeg", 85)


def _check_family(spec: ModelSpec, options: StylizeOptions, has_style_image: bool) -> None:
    family = family_for(options, has_style_image)
    if spec.family != family:
        takes = "a style_image" if spec.family == ARBITRARY else "a style by name"
        raise OptionInvalid(
            "model", f"model={spec.name}: it takes {takes}, not {'a style_image' if has_style_image else 'a style by name'}"
        )


def _weight(text: str, weight: str) -> float:
    try:
        value = float(weight)
    except ValueError:
        value = -1.0
    if not (isfinite(value) and value >= 0):
        raise OptionInvalid("style", f"style={text!r}: the weight {weight!r} is not a number of 0 or more")
    return value


@lru_cache
def _read_styles(path: Path, model: str) -> tuple[StyleInfo, ...]:
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["styles"]
        return tuple(StyleInfo.model_validate({**row, "model": model}) for row in rows)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, ValidationError) as error:
        raise SpecInvalid(f"{path}: {error}") from None
