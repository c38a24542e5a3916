"""Paint a photo in the style of a picture by optimising its pixels: minutes where a network of service.tasks.stylize takes seconds.

photo, style picture -> at each scale, coarse to fine: targets -> descent on the pixels (service.tasks.descent) -> [h, w, 3]
The losses and their exact gradient come out of one run of the model's graph; service.export.gatys says what they are.

References: Gatys, Ecker and Bethge, "A neural algorithm of artistic style", 2015; coarse to fine, and colours kept by painting the
luminance only: Gatys, Bethge, Hertzmann and Shechtman, "Preserving color in neural artistic style transfer", 2016, and
"Controlling perceptual factors in neural style transfer", 2017.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.errors import ImageTooSmall, OptionInvalid
from service.imaging.transforms import Size, resize
from service.repository.spec import ModelSpec
from service.tasks.descent import Point, Vector, adam, lbfgs
from service.tasks.painting import keep_color, shrink
from service.tasks.task import Model, Pixels, Strict, Tensors, Timing

Picture = NDArray[np.float32]
"""[1, 3, h, w], RGB, 0..255."""

RANGE = (0.0, 255.0)
COARSEST = 128
"""Longest side in pixels that the coarsest scale is not to fall below."""
LEAST_SIDE = 32
"""Shortest side in pixels: the deepest layers halve a picture four or five times."""
FRAME = 8
"""Pixels painted around the picture, on its reflection, and cut off: the layers see zeros beyond, and paint a rim there."""
FIRST_STEP, ADAM_RATE = 2.0, 4.0
"""Grey levels by which pixels change in L-BFGS's first trial step, and in each of Adam's."""


class OptimizeOptions(Strict):
    content_weight: float = Field(1.0, ge=0, le=1e6, description="how much the photo's content counts")
    style_weight: float = Field(5.0, ge=0, le=1e6, description="how much the style picture's style counts")
    tv_weight: float = Field(10.0, ge=0, le=1e6, description="how much smoothness counts: the total variation, against noise")
    content_layers: str | None = Field(None, description="names of layers, separated by commas; empty: the model's own")
    style_layers: str | None = Field(None, description="names of layers, separated by commas; empty: the model's own")
    init: Literal["content", "noise"] = Field("content", description="what to start from: the photo, or noise")
    optimizer: Literal["lbfgs", "adam"] = Field("lbfgs", description="lbfgs: the loss never rises; adam")
    iterations: int = Field(150, ge=1, le=5000, description="over all scales")
    max_side: int = Field(512, ge=64, le=1024, description="longest side of the answer in pixels; larger photos are scaled down")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the noise")
    preserve_color: bool = Field(False, description="keep the photo's colours, paint only its light and dark")
    multi_scale: bool = Field(True, description="paint small first and refine: larger shapes, and faster")
    format: Literal["png", "jpeg", "webp"] = Field("png", description="file format of the answer")
    quality: int = Field(90, ge=1, le=100, description="of JPEG and WebP, 1 to 100")
    model: str | None = Field(None, description="name of the model; empty: the default one")


@dataclass(frozen=True, eq=False)
class Step:
    """A painting after one more iteration. The losses are those at its scale, and not weighted; `total` is their weighted sum.

    done: the share of the work that is behind it, 0..1, each iteration counting by its pixels. picture(): what it looks like now.
    """

    iteration: int
    iterations: int
    height: int
    width: int
    content: float
    style: float
    variation: float
    total: float
    done: float
    picture: Callable[[], Pixels]


class Painter(Model, Protocol):
    """A loaded model of the task "paint"."""

    def derived(self, name: str, source: str, make: Callable[[Path], bytes]) -> AbstractContextManager[None]:
        """Have a graph `name` for run() inside, made of the file of the built graph `source`."""
        ...


@dataclass(frozen=True)
class Layers:
    """The layers that content and style are compared at."""

    content: tuple[str, ...]
    style: tuple[str, ...]


def pick_layers(spec: ModelSpec, options: OptimizeOptions) -> Layers:
    """The layers that the options name, else the model's own. Raises OptionInvalid naming those that there are."""
    assert spec.layers is not None  # service.catalogue has checked it

    def named(option: str, text: str | None, own: tuple[str, ...]) -> tuple[str, ...]:
        names = own if text is None else tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None or not names:
            what = f"there is no layer {unknown!r:.80}" if names else "give at least one layer"
            raise OptionInvalid(option, f"{option}: {what}; the layers of {spec.name} are: {', '.join(known)}")
        return tuple(sorted(names, key=known.index))

    known = spec.layers.known
    return Layers(
        named("content_layers", options.content_layers, spec.layers.content),
        named("style_layers", options.style_layers, spec.layers.style),
    )


def check(content: Pixels, style: Pixels, options: OptimizeOptions, spec: ModelSpec) -> None:
    """Raises what optimize() would raise before its first step: OptionInvalid, ImageTooSmall."""
    pick_layers(spec, options)
    if not max(options.content_weight, options.style_weight, options.tv_weight) > 0:
        raise OptionInvalid("style_weight", "content_weight, style_weight and tv_weight are all 0: one must be above it")
    height, width = shrink(content, options.max_side).shape[:2]
    if min(height, width) < LEAST_SIDE:
        text = f"the photo is {width} x {height} pixels as it would be painted; each side needs at least {LEAST_SIDE}"
        raise ImageTooSmall(text)
    if min(style.shape[:2]) < LEAST_SIDE:
        height, width = style.shape[:2]
        raise ImageTooSmall(f"the style picture is {width} x {height} pixels; each side needs at least {LEAST_SIDE}")


def reduced(content: Pixels, style: Pixels, options: OptimizeOptions) -> tuple[Pixels, Pixels]:
    """Both pictures as large as the painting can need them, the style at twice its sides: what is held on to for minutes."""
    photo = shrink(content, options.max_side)
    height, width = photo.shape[:2]
    return photo, style_at(style, (2 * height, 2 * width))


def optimize(content: Pixels, style: Pixels, options: OptimizeOptions, painter: Painter) -> Iterator[Step]:
    """Paint `content` [h, w, 3] in the style of `style`, iteration by iteration; the last step's picture is the result.

    A generator: closing it ends the work, nothing runs on. A scale that can gain nothing more leaves its iterations to the next,
    so the last step may have a lower number than `iterations`. For one seed, model and machine the result is always the same.
    Raises what check() and `model.run` raise.
    """
    check(content, style, options, painter.spec)
    layers = pick_layers(painter.spec, options)
    photo, style = reduced(content, style, options)
    with _graphs(layers, painter) as graphs:
        yield from _paint(photo, style, options, layers, graphs, painter)


def _paint(
    photo: Pixels, style: Pixels, options: OptimizeOptions, layers: Layers, graphs: "Graphs", painter: Painter
) -> Iterator[Step]:
    looks = (_grey(photo), _toned(_grey(style), _grey(photo))) if options.preserve_color else (photo, style)
    height, width = photo.shape[:2]
    sizes = scales(height, width) if options.multi_scale else [(height, width)]
    plan = share(options.iterations, sizes)
    work = sum(count * rows * columns for count, (rows, columns) in zip(plan, sizes, strict=True))
    picture: Picture | None = None
    iteration, left, behind = 0, 0, 0.0
    for size, planned in zip(sizes, plan, strict=True):
        left += planned
        scale = _Scale.of(looks, size, options, layers, graphs, painter)
        x = scale.start(picture, options)
        for point in _descend(scale.evaluate, x.ravel(), options, left):
            iteration, left = iteration + 1, left - 1
            picture = point.x.reshape(x.shape)
            behind += size[0] * size[1]
            yield Step(
                iteration,
                options.iterations,
                *size,
                content=point.details["content"],
                style=point.details["style"],
                variation=point.details["variation"],
                total=point.value,
                done=min(1.0, behind / work),
                picture=partial(_finished, picture, photo, options),
            )


def scales(height: int, width: int) -> list[Size]:
    """Sizes of a painting, coarse to fine: each half the next, as long as no side gets too short; the last is height x width."""
    sizes = [(height, width)]
    while max(sizes[0]) >= 2 * COARSEST and min(sizes[0]) >= 2 * LEAST_SIDE:
        sizes.insert(0, (round(height / 2 ** len(sizes)), round(width / 2 ** len(sizes))))
    return sizes


def share(iterations: int, sizes: Sequence[Size]) -> list[int]:
    """How many iterations each scale has: as many as the others, coarser ones first where that leaves a rest."""
    whole, rest = divmod(iterations, len(sizes))
    return [whole + (index < rest) for index in range(len(sizes))]


@dataclass(frozen=True)
class _Scale:
    """The losses at one size: everything that the graph is fed but the picture. photo: with its frame."""

    photo: Pixels
    feeds: Tensors
    graph: str
    painter: Painter
    weights: tuple[float, float, float]

    @classmethod
    def of(
        cls, looks: tuple[Pixels, Pixels], size: Size, options: OptimizeOptions, layers: Layers, graphs: "Graphs", painter: Painter
    ) -> "_Scale":
        photo = _framed(resize(looks[0], *size, "area"))
        seen = painter.run({"picture": to_picture(photo)}, Timing(), graphs.targets)
        wanted = painter.run({"picture": to_picture(style_at(looks[1], size))}, Timing(), graphs.targets)
        weights = options.content_weight, options.style_weight, options.tv_weight
        named = zip(("content_weight", "style_weight", "variation_weight"), weights, strict=True)
        feeds = {
            **{f"content/{layer}": seen[f"features/{layer}"] for layer in layers.content},
            **{f"gram/{layer}": wanted[f"gram/{layer}"] for layer in layers.style},
            **{name: np.array([weight], np.float32) for name, weight in named},
        }
        return cls(photo, feeds, graphs.losses, painter, weights)

    def start(self, coarser: Picture | None, options: OptimizeOptions) -> Picture:
        """What to begin with: the painting of the scale before, else the photo or noise."""
        if coarser is not None:
            height, width = (side - 2 * FRAME for side in self.photo.shape[:2])
            return to_picture(_framed(resize(_unframed(to_pixels(coarser)), height, width, "bicubic")))
        if options.init == "content":
            return to_picture(self.photo)
        return np.random.default_rng(options.seed).uniform(*RANGE, (1, 3, *self.photo.shape[:2])).astype(np.float32)

    def evaluate(self, x: Vector) -> Point:
        outputs = self.painter.run({"picture": x.reshape(1, 3, *self.photo.shape[:2]), **self.feeds}, Timing(), self.graph)
        losses = {name: float(outputs[name].item()) for name in ("content", "style", "variation")}
        total = sum(weight * loss for weight, loss in zip(self.weights, losses.values(), strict=True))
        return Point(x, total, outputs["gradient"].ravel(), losses)


def _descend(evaluate: Callable[[Vector], Point], start: Vector, options: OptimizeOptions, count: int) -> Iterator[Point]:
    """At most `count` points; the start itself where it cannot be bettered."""
    if count == 0:
        return
    way = lbfgs(evaluate, start, RANGE, FIRST_STEP) if options.optimizer == "lbfgs" else adam(evaluate, start, RANGE, ADAM_RATE)
    first = next(way, None)
    yield evaluate(start) if first is None else first
    yield from islice(way, count - 1)


@dataclass(frozen=True)
class Graphs:
    """Names of the two graphs for a choice of layers."""

    losses: str = "model"
    targets: str = "targets"


@contextmanager
def _graphs(layers: Layers, painter: Painter) -> Iterator[Graphs]:
    """The built graphs where the layers are the model's own, else graphs made of its features now, or not long ago."""
    own = painter.spec.layers
    assert own is not None
    if layers == Layers(own.content, own.style):
        yield Graphs()
        return
    named = f"{','.join(layers.content)} {','.join(layers.style)}"
    graphs = Graphs(f"model {named}", f"targets {named}")
    with (
        painter.derived(graphs.losses, "features", partial(_make, "model", layers)),
        painter.derived(graphs.targets, "features", partial(_make, "targets", layers)),
    ):
        yield graphs


def _make(kind: str, layers: Layers, features: Path) -> bytes:
    import onnx  # 0.2 s that only needs who asks for other layers

    from service.export.gatys import losses, targets

    make = losses if kind == "model" else targets
    return bytes(make(onnx.load(features), layers.content, layers.style).SerializeToString())


def style_at(style: Pixels, size: Size) -> Pixels:
    """The style picture for a painting of a size: of the same area, so that strokes have the same share of it; never enlarged.

    Only a side that would be shorter than LEAST_SIDE pixels keeps that.
    """
    height, width = style.shape[:2]
    scale = min(1.0, (size[0] * size[1] / (height * width)) ** 0.5)
    return resize(style, max(LEAST_SIDE, round(height * scale)), max(LEAST_SIDE, round(width * scale)), "area")


def to_picture(pixels: Pixels) -> Picture:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def to_pixels(picture: Picture) -> Pixels:
    return np.ascontiguousarray(np.clip(np.rint(picture[0]), *RANGE).astype(np.uint8).transpose(1, 2, 0))


def _framed(pixels: Pixels) -> Pixels:
    return np.pad(pixels, ((FRAME, FRAME), (FRAME, FRAME), (0, 0)), mode="reflect")


def _unframed(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[FRAME:-FRAME, FRAME:-FRAME])


def _finished(picture: Picture, photo: Pixels, options: OptimizeOptions) -> Pixels:
    pixels = _unframed(to_pixels(picture))
    return keep_color(pixels, resize(photo, pixels.shape[0], pixels.shape[1], "area")) if options.preserve_color else pixels


def _grey(pixels: Pixels) -> Pixels:
    """The luma of a picture (BT.601), in all three channels."""
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray(np.rint(luma)[..., None].repeat(3, axis=2), np.uint8)


def _toned(style: Pixels, photo: Pixels) -> Pixels:
    """A grey style picture with the mean and spread of a grey photo, so that its own light and dark are no part of the style."""
    spread = float(photo.std()) / max(float(style.std()), 1.0)
    middle, wanted = np.float32(style.mean()), np.float32(photo.mean())
    return np.asarray(np.clip((style - middle) * np.float32(spread) + wanted, *RANGE), np.uint8)
