"""Paint a photo in a built-in style, in a blend of them, or in the style of any picture.

photo [h, w, 3] -> shrunk to max_side -> painted (service.tasks.painting) -> colour and strength -> [h, w, 3]
The style comes from one of four families of models:
    built-in-styles   a name, or a blend of names with weights -> one weight for each style
    arbitrary-style   a picture -> the graph "predict" -> 100 numbers
    one-style         the network's own; its name is the model's
    two-pictures      a picture -> "style_pixels" uint8 [1, h, w, 3], the network's second input
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
from service.imaging.transforms import center_crop, resize
from service.repository.spec import ModelSpec
from service.tasks.painting import MIN_SIDE, Vector, fade, keep_color, paint, paint_whole, shrink
from service.tasks.task import Model, Pixels, Strict, Timing

BUILT_IN, ARBITRARY, ONE, TWO = "built-in-styles", "arbitrary-style", "one-style", "two-pictures"
BY_NAME, BY_PICTURE = (BUILT_IN, ONE), (ARBITRARY, TWO)
"""Families that take a style by its name, and those that take a picture."""
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
    """A built-in style, or the only one of a network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="what `style` takes")
    title: str
    description: str = Field(description="what it looks like")
    model: str = Field(description="the model that paints it")


def stylize(
    pixels: Pixels, options: StylizeOptions, style_pixels: Pixels | None, model: Model, timing: Timing, max_side: int
) -> Pixels:
    """The photo painted, [h, w, 3], of its own size unless a side is longer than options.max_side or the limit `max_side`.

    `strength` below 1: the painting is laid over the photo with that opacity. With a style picture and a model of the family
    arbitrary-style the style is mixed with the photo's own, strength parts to 1 - strength; since a photo in its own style is not
    quite the photo, strengths below 0.5 fade into it as well. At 0 the answer is the photo.
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
    painted, opacity = _painted(photo, options, style_pixels, model, timing)
    with timing.measure("postprocess"):
        if options.preserve_color:
            painted = keep_color(painted, photo)
        return np.ascontiguousarray(fade(photo, painted, opacity))


def _painted(
    photo: Pixels, options: StylizeOptions, style_pixels: Pixels | None, model: Model, timing: Timing
) -> tuple[Pixels, float]:
    """The painting, and the opacity that it is to be laid over the photo with."""
    if model.spec.family == TWO and style_pixels is not None:
        with timing.measure("preprocess"):
            own = model.spec.adapter.style_size if model.spec.adapter else None
            style_pixels = style_canvas(style_pixels, own or model.spec.input.size)
        return paint_whole(photo, {"style_pixels": style_pixels[None]}, model, timing), options.strength
    if style_pixels is not None:
        style = style_vector(style_pixels, model, timing)
        if options.strength < 1:
            style = options.strength * style + (1 - options.strength) * style_vector(photo, model, timing)
        return paint(photo, style, model, timing), min(1.0, 2 * options.strength)
    return _paint_named(photo, options.style or model.spec.name, model, timing), options.strength


def _paint_named(photo: Pixels, text: str, model: Model, timing: Timing) -> Pixels:
    style = weights(text, list_styles(model.spec))
    return paint(photo, style, model, timing) if model.spec.family == BUILT_IN else paint_whole(photo, {}, model, timing)


def pick_painter(specs: Sequence[ModelSpec], options: StylizeOptions, has_style_image: bool) -> ModelSpec:
    """The model among `specs` that these options need: the one named, else the one that has the style or takes a picture.

    Of several, the default, else one that comes with the service, else the first. Raises ModelUnknown, StyleUnknown, and
    OptionInvalid as `stylize` does.
    """
    painters = [spec for spec in specs if spec.task == "stylize"]
    if options.model is not None:
        named = next((spec for spec in painters if spec.name == options.model), None)
        if named is None:
            raise ModelUnknown(options.model, [spec.name for spec in painters])
        _check_family(named, options, has_style_image)
        return named
    families = families_for(options, has_style_image)
    fitting = [spec for spec in painters if spec.family in families]
    fitting.sort(key=lambda spec: (not spec.default, families.index(spec.family)))
    if not fitting:
        raise ModelUnknown(f"({families[0]})", [spec.name for spec in painters])
    return fitting[0] if has_style_image else _owner(fitting, options.style or "")


def _owner(painters: Sequence[ModelSpec], text: str) -> ModelSpec:
    """The first of `painters` that has all styles of `text`; the first of all where it names none."""
    styles = {spec.name: {style.name for style in list_styles(spec)} for spec in painters}
    names = [name for part in text.split(",") if (name := part.partition(":")[0].strip().lower())]
    found = next((spec for spec in painters if styles[spec.name].issuperset(names)), None)
    if found is not None:
        return found
    owners = {name: next((model for model, known in styles.items() if name in known), None) for name in names}
    for name, model in owners.items():
        if model is None:
            raise _unknown(name, sorted(set().union(*styles.values())))
    whose = ", ".join(f"{name} is of {model}" for name, model in owners.items())
    raise OptionInvalid("style", f"style={text!r}: a blend takes styles of one model; {whose}")


def families_for(options: StylizeOptions, has_style_image: bool) -> tuple[str, ...]:
    """BY_NAME or BY_PICTURE. Raises OptionInvalid unless exactly one of a style and a style picture is given."""
    if options.style is not None and has_style_image:
        raise OptionInvalid("style", "give either style or style_image, not both")
    if options.style is None and not has_style_image:
        raise OptionInvalid(
            "style",
            "say what to paint like: style, a name from GET /styles or a blend like 'ink-wash:0.6,fiery-strokes:0.4', "
            "or style_image, any picture",
        )
    return BY_PICTURE if has_style_image else BY_NAME


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
            raise _unknown(name, list(index))
        found[0, index[name]] += _weight(text, weight) if given == {True} else 1.0
    if not found.sum() > 0:
        raise OptionInvalid("style", f"style={text!r}: at least one weight must be above 0")
    return np.asarray(found / found.sum(), np.float32)


def style_vector(picture: Pixels, model: Model, timing: Timing) -> Vector:
    """The style of a picture of any size, [1, 100]. The network was trained on 256 x 256 pixels."""
    with timing.measure("preprocess"):
        small = style_canvas(picture)
    return np.asarray(model.run({"pixels": small[None]}, timing, "predict")["style"], np.float32)


def style_canvas(picture: Pixels, size: tuple[int, int] | None = None) -> Pixels:
    """A style picture as networks look at it: its middle at `size`, or where that is free about STYLE_AREA pixels of it.

    Squeezing a picture into a square stretches its strokes, and cutting it to one loses its colours, so where it can it keeps its
    proportions; only very long ones are cut.
    """
    if size is not None:
        return center_crop(picture, size, 1.0, "area")
    height, width = picture.shape[:2]
    kept = min(height, STYLE_RATIO * width), min(width, STYLE_RATIO * height)
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    scale = (STYLE_AREA / (kept[0] * kept[1])) ** 0.5
    rows, columns = (max(1, round(side * scale / STYLE_MULTIPLE)) * STYLE_MULTIPLE for side in kept)
    return resize(picture[top : top + kept[0], left : left + kept[1]], rows, columns, "area")


def list_styles(spec: ModelSpec) -> tuple[StyleInfo, ...]:
    """The styles of a model by name, in its network's order; empty where it has none. Raises SpecInvalid naming the file."""
    if spec.family == ONE:
        title = spec.name.replace("-", " ").replace("_", " ").capitalize()
        return (StyleInfo(name=spec.name, title=title, description=spec.summary, model=spec.name),)
    return _read_styles(spec.folder / spec.styles, spec.name) if spec.styles else ()


def thumbnail(name: str, sample: Pixels, model: Model, timing: Timing, width: int = 192) -> bytes:
    """`sample` painted in the style `name`, as a JPEG `width` pixels wide. Raises StyleUnknown.

    Painted at twice that width and scaled down, so that strokes look as fine as on a photo of usual size.
    """
    height = round(width * sample.shape[0] / sample.shape[1])
    painted = _paint_named(resize(sample, 2 * height, 2 * width, "area"), name, model, timing)
    return encode(resize(painted, height, width, "area"), "jpeg", 85)


def example(height: int = 288, width: int = 384) -> Pixels:
    """A picture for thumbnails where no photo is at hand: a ball before a sky that goes from blue to sand."""
    rows, columns = np.mgrid[0:height, 0:width]
    sky, sand, red = (np.array(color) for color in ((70, 130, 200), (235, 215, 165), (200, 60, 50)))
    down = rows[..., None] / height
    picture = sky * (1 - down) + sand * down
    across = np.hypot(rows - 0.55 * height, columns - 0.5 * width) / (0.3 * height)
    light = 1.2 - 0.6 * np.hypot(rows - 0.45 * height, columns - 0.43 * width)[..., None] / (0.3 * height)
    picture = np.where(across[..., None] < 1, red * light, picture)
    return np.asarray(np.clip(picture, 0, 255), np.uint8)


def _check_family(spec: ModelSpec, options: StylizeOptions, has_style_image: bool) -> None:
    if spec.family == ONE and options.style is None and not has_style_image:
        return  # it has but one style: its name says it
    if spec.family not in families_for(options, has_style_image):
        takes = "a style_image" if spec.family in BY_PICTURE else "a style by name"
        raise OptionInvalid(
            "model", f"model={spec.name}: it takes {takes}, not {'a style_image' if has_style_image else 'a style by name'}"
        )


def _unknown(name: str, known: Sequence[str]) -> StyleUnknown:
    return StyleUnknown(name, sorted(known, key=get_close_matches(name, known).__contains__, reverse=True))


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
