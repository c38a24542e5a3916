"""What the owner of a file says of it: one field is one CLI flag, one form field, and one key of model.toml's [given]."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.errors import OptionInvalid
from service.export.contract import Decoder
from service.intake.words import printable
from service.repository.spec import Task

NAME = r"^[a-z0-9][a-z0-9._-]*$"
Preprocess = Literal["torchvision", "tensorflow", "caffe", "unit", "raw"]
Range = Literal["unit", "bytes", "signed"]
LABELS = "labels.txt"
"""The file of labels that may lie beside a dropped model, and lies beside an added one."""
MOST_TEXT = 2**20
"""Characters of all labels, and bytes of a file of them."""
MARK = "\ufeff"
"""What some editors put before the first line of a text."""


def _numbers(value: object) -> object:
    """A text as numbers: "0.5, 0.5" or "1/255"."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, int | float) else value
    return tuple(_number(part) for part in re.split(r"[,\s]+", value.strip()) if part)


def _number(value: object) -> object:
    if isinstance(value, str) and value.count("/") == 1:
        above, below = (float(part) for part in value.split("/"))
        if not below:
            raise ValueError("nothing can be divided by 0")
        return above / below
    return value


def _sides(value: object) -> object:
    """ "640" or "480x640", height first, as (height, width)."""
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+)\s*(?:[x,]\s*(\d+))?\s*", value)
        if found is None:
            raise ValueError("write height x width in pixels, like 640x640")
        return (int(found[1]), int(found[2] or found[1]))
    return value


def _names(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _not_zero(values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(values):
        raise ValueError("nothing can be divided by 0")
    return values


def _heads(value: object) -> object:
    """ "10,13,16,30; 30,61,62,45" as one tuple a head."""
    return tuple(_numbers(part) for part in value.split(";")) if isinstance(value, str) else value


def _lines(value: object) -> object:
    if isinstance(value, list | tuple):
        return "\n".join(str(part) for part in value)
    return value.removeprefix(MARK) if isinstance(value, str) else value


Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers)]
Whole = Annotated[tuple[int, ...], BeforeValidator(_numbers)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Side = Annotated[int, Field(ge=8, le=8192)]


class Told(BaseModel):
    """What its owner says of a file. All is optional: what the file tells itself need not be said."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str | None = Field(None, pattern=NAME, max_length=80, description="name of the model; empty: from the file's name")
    task: Task | None = Field(None, description="what the model does")
    labels: Annotated[str, BeforeValidator(_lines), Field(max_length=MOST_TEXT)] | None = Field(
        None, description="coco, imagenet, voc, numbers, or the classes in their order, one a line or separated by commas"
    )
    classes: int | None = Field(
        None, ge=1, le=100_000, description="how many classes a detector knows, where the file does not tell"
    )
    decoder: Decoder | None = Field(None, description="how the outputs are read, where they could be read in several ways")
    preprocess: Preprocess | None = Field(
        None,
        description="torchvision: RGB 0..1, then ImageNet's mean and deviation; tensorflow: RGB -1..1; caffe: BGR 0..255 less "
        "ImageNet's mean; unit: RGB 0..1; raw: RGB 0..255",
    )
    color: Literal["RGB", "BGR", "GRAY"] | None = Field(None, description="order of the channels that the model was trained with")
    scale: Annotated[float, BeforeValidator(_number)] | None = Field(
        None, gt=0, description="pixels 0..255 times this, first; 1/255"
    )
    mean: Numbers | None = Field(None, description="taken off after scale; one number, or one a channel in the order of color")
    std: Annotated[Numbers, AfterValidator(_not_zero)] | None = Field(
        None, description="divided by after mean; one number, or one a channel in the order of color"
    )
    range: Range | None = Field(
        None, description="style networks, of what goes in and comes out: unit 0..1, bytes 0..255, signed -1..1"
    )
    size: Annotated[tuple[Side, Side], BeforeValidator(_sides)] | None = Field(
        None, description="height x width of the input in pixels, where the file leaves it free"
    )
    layout: Literal["NCHW", "NHWC"] | None = Field(None, description="axes of the picture input")
    input: str | None = Field(None, max_length=200, description="name of the picture input, where there are several inputs")
    outputs: Names | None = Field(None, description="names of the outputs that count, separated by commas, in the decoder's order")
    resize: Literal["center-crop", "letterbox", "stretch"] | None = Field(None, description="how a photo is brought to that size")
    crop: float | None = Field(None, gt=0, le=1, description="center-crop: side of the crop over the photo's shorter side")
    interpolation: Literal["bilinear", "bicubic", "area"] | None = Field(None, description="how a photo is resized")
    fill: int | None = Field(None, ge=0, le=255, description="letterbox: grey level of what the photo leaves free")
    padding: Literal["center", "bottom-right"] | None = Field(
        None, description="letterbox: where the photo lies in the middle, or not"
    )
    activation: Literal["none", "sigmoid", "softmax"] | None = Field(None, description="what the scores still need")
    boxes: Literal["pixels", "unit"] | None = Field(None, description="of what boxes are: input pixels, or 0..1 of the input")
    anchors: Annotated[tuple[Numbers, ...], BeforeValidator(_heads)] | None = Field(
        None, description="anchor heads: width,height,... in input pixels, the heads separated by semicolons, in the outputs' order"
    )
    head: Literal["v3", "v5"] | None = Field(None, description="raw heads: of YOLOv3 and 4, or of YOLOv5 and 7")
    template: Numbers | Literal["arcface"] | None = Field(
        None, description="embedders: where five landmarks lie in the aligned face; arcface, or ten numbers x,y,... in input pixels"
    )
    face_scale: float | None = Field(
        None, ge=1, le=8, description="face-liveness: side of what is cut out over the face's longer side"
    )
    licence: str | None = Field(None, min_length=1, max_length=200, description="SPDX expression of the model's licence")
    commercial_use: bool | None = Field(None, description="does the licence allow commercial use?")
    default: bool | None = Field(None, description="is it the one that its task uses where a request names none?")
    summary: str | None = Field(None, min_length=1, max_length=300, description="one line about the model")

    def over(self, other: "Told") -> "Told":
        """`other` with what is said here, which wins."""
        return Told.model_validate({**other.said(), **self.said()})

    def said(self) -> dict[str, Any]:
        """The fields that were given, by name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


NOTHING = Told.model_validate({})
"""Nothing is told: the file alone."""


def read_told(values: Mapping[str, object]) -> Told:
    """`values` by field name, texts as on a command line or in a form; empty ones count as not given.

    Raises OptionInvalid naming the field and what would be right.
    """
    try:
        return Told.model_validate({name: value for name, value in values.items() if value not in (None, "")})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise OptionInvalid(name, f"there is no option {name!r:.80} here; there are: {', '.join(Told.model_fields)}") from None
        message = first["msg"].removeprefix("Value error, ")
        shown = printable(str(first["input"])[:60])
        raise OptionInvalid(name, f"{name}={shown}: {message[:1].lower()}{message[1:]}") from None


def read_labels(path: Path) -> str:
    """The text file at `path`, one class a line, as `labels` takes it. Raises OptionInvalid where it is none, or too long."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_TEXT + 1)
        text = data[:MOST_TEXT].decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionInvalid("labels", f"{path}: {error}; it is to be a text with one class a line") from None
    if len(data) > MOST_TEXT:
        raise OptionInvalid("labels", f"{path} has more than {MOST_TEXT} bytes, which no list of classes has")
    return text.strip("\r\n") + "\n"
