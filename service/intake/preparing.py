"""How a file wants its pictures: told, by the convention of its kind, or asked. Contract's scale, mean, std and [input]'s rule."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from service.errors import OptionInvalid
from service.intake.seen import Role, Seen
from service.repository.spec import InputContract

Color = Literal["RGB", "BGR", "GRAY"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (103.939, 116.779, 123.68)
NANODET_MEAN, NANODET_STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
ARITHMETIC = frozenset({"Sub", "Mul", "Div", "Add"})


@dataclass(frozen=True)
class Arithmetic:
    """The file gets (pixels * scale - mean) / std, by channel in the order of `color`."""

    color: Color = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __str__(self) -> str:
        unit = {1.0: "0..255", 1 / 255: "0..1", 1 / 127.5: "0..2"}.get(self.scale, f"times {self.scale:.6g}")
        less = "" if not any(self.mean) else f", less {', '.join(f'{value:g}' for value in self.mean)}"
        over = "" if set(self.std) == {1.0} else f", over {', '.join(f'{value:g}' for value in self.std)}"
        return f"{self.color} {unit}{less}{over}"


PRESETS: dict[str, Arithmetic] = {
    "torchvision": Arithmetic("RGB", 1 / 255, IMAGENET_MEAN, IMAGENET_STD),
    "tensorflow": Arithmetic("RGB", 1 / 127.5, (1.0,)),
    "caffe": Arithmetic("BGR", 1.0, CAFFE_MEAN),
    "unit": Arithmetic("RGB", 1 / 255),
    "raw": Arithmetic(),
}
RANGES = {"unit": PRESETS["unit"], "bytes": PRESETS["raw"], "signed": PRESETS["tensorflow"]}
Rule = dict[str, Any]
LETTERBOX: Rule = {"resize": "letterbox", "fill": 114}
CROP: Rule = {"resize": "center-crop", "crop": 0.875}
CONVENTIONS: dict[str, tuple[str, Arithmetic, Rule]] = {
    "ultralytics": ("of YOLO exports", PRESETS["unit"], LETTERBOX),
    "yolox": ("of YOLOX", Arithmetic("BGR"), {**LETTERBOX, "padding": "bottom-right"}),
    "darknet": ("of darknet's detectors", PRESETS["unit"], {"resize": "letterbox", "fill": 128}),
    "nanodet": ("of NanoDet", Arithmetic("BGR", 1.0, NANODET_MEAN, NANODET_STD), {"resize": "letterbox", "fill": 0}),
    "ultraface": ("of UltraFace", Arithmetic("RGB", 1.0, (127.0,), (128.0,)), {"resize": "stretch"}),
    "rt-detr": ("of RT-DETR and D-FINE", PRESETS["unit"], {"resize": "stretch"}),
    "rf-detr": ("of DETR and RF-DETR", PRESETS["torchvision"], {"resize": "stretch"}),
    "torchvision-detector": (
        "of torchvision's detectors",
        PRESETS["unit"],
        {"resize": "letterbox", "fill": 0, "padding": "bottom-right"},
    ),
    "ultralytics-classify": ("of Ultralytics' classifiers", PRESETS["unit"], {"resize": "center-crop", "crop": 1.0}),
}
"""By the kind of export: whose it is, the arithmetic, and [input]'s rule. A file that does not follow it has to be told of."""


def prepare(seen: Seen, role: Role) -> tuple[Arithmetic, InputContract]:
    """Arithmetic and [input] of a file. Asks through the notes. Raises OptionInvalid where what was told does not fit together."""
    arithmetic = _arithmetic(seen, role)
    rule = dict(CONVENTIONS[role.convention][2]) if role.convention in CONVENTIONS else _rule_of(role)
    told = {
        name: value
        for name in ("resize", "crop", "interpolation", "fill", "padding")
        if (value := getattr(seen.told, name)) is not None
    }
    if role.task in ("detect", "classify"):
        if not told:
            seen.notes.assume(f"photos are brought to size by {_rule_words(rule)}", "resize")
        rule.update(told)
    elif told:
        raise OptionInvalid(next(iter(told)), f"{next(iter(told))}: a model for {role.task} gets its pictures in one way only")
    return arithmetic, _input(seen, role, arithmetic, rule)


def _arithmetic(seen: Seen, role: Role) -> Arithmetic:
    told, notes = seen.told, seen.notes
    if role.recipe != "adopt":
        return PRESETS["raw"]  # the recipe knows
    found = _preset(seen, role)
    fields = {name: value for name in ("color", "scale", "mean", "std") if (value := getattr(told, name)) is not None}
    if found is None and "scale" not in fields and not {"mean", "std"} <= set(fields):
        _ask(seen, role)
        found = PRESETS["raw"]
    found = replace(found or PRESETS["raw"], **fields)
    if seen.entrance.channels == 1:
        found = replace(found, color="GRAY")
    channels = seen.entrance.channels
    for name in ("mean", "std"):
        if len(getattr(found, name)) not in (1, channels):
            raise OptionInvalid(name, f"{name}: give one number, or {channels} for the {channels} channel(s) of the input; "
                                "--preprocess unit or raw, or --scale, --mean and --std")  # fmt: skip
    if fields or told.preprocess or told.range:
        notes.fact(f"it gets pixels as given: {found}")
    return found


def _preset(seen: Seen, role: Role) -> Arithmetic | None:
    told, entrance = seen.told, seen.entrance
    if role.task == "stylize":
        return RANGES[told.range] if told.range else PRESETS["raw"] if entrance.port.dtype == "uint8" else None
    if told.preprocess:
        return PRESETS[told.preprocess]
    if entrance.port.dtype == "uint8":
        seen.notes.fact("its input takes whole numbers of 0..255: pixels as they are")
        return replace(PRESETS["raw"], color="BGR" if role.convention in ("yolox", "nanodet") else "RGB")
    first = seen.file.first_operators.get(entrance.port.name, ())
    if first and ARITHMETIC.issuperset(first):
        color: Color = CONVENTIONS[role.convention][1].color if role.convention in CONVENTIONS else "RGB"
        seen.notes.assume(f"its first step is arithmetic ({', '.join(first)}), so pixels of 0..255 are scaled inside", "preprocess")
        return replace(PRESETS["raw"], color=color)
    if role.convention in CONVENTIONS:
        whose, arithmetic, _ = CONVENTIONS[role.convention]
        text = f"it gets pixels by the convention {whose}: {arithmetic}"
        if role.convention == "ultralytics-classify" or (role.convention == "ultralytics" and seen.meta.is_ultralytics):
            seen.notes.fact(f"{text}, as its metadata of Ultralytics implies")
        else:
            seen.notes.assume(text, "preprocess")
        return arithmetic
    return None


def _ask(seen: Seen, role: Role) -> None:
    if role.task == "stylize":
        seen.notes.ask("range", "unit, if pictures go in and come out as 0..1; bytes, as 0..255; signed, as -1..1")
        return
    seen.notes.ask(
        "preprocess",
        "torchvision (RGB 0..1, then ImageNet's mean and deviation: PyTorch's own and timm's networks), tensorflow (RGB -1..1: "
        "MobileNet, Inception and EfficientNet of Keras, and face embedders of InsightFace), caffe (BGR 0..255 less ImageNet's "
        "mean: VGG and ResNet of Keras and Caffe), unit (0..1), raw (0..255), or --scale, --mean and --std; --color BGR or RGB "
        "where the order differs",
    )


def _rule_of(role: Role) -> Rule:
    rules: dict[str, Rule] = {
        "classify": CROP,
        "embed-face": {"resize": "align"},
        "face-liveness": {"resize": "face-crop"},
        "stylize": {"resize": "none"},
        "detect-faces": {"resize": "fit", "multiple_of": 32, "max_side": 1280},
        "detect": LETTERBOX,
    }
    return dict(rules[role.task])


def _rule_words(rule: Rule) -> str:
    if rule["resize"] == "center-crop":
        return f"cutting out their middle, {rule['crop']:g} of the shorter side"
    if rule["resize"] == "stretch":
        return "stretching"
    where = "top left" if rule.get("padding") == "bottom-right" else "in the middle"
    return f"letterboxing, {where} on grey {rule['fill']}"


def _input(seen: Seen, role: Role, arithmetic: Arithmetic, rule: Rule) -> InputContract:
    size: tuple[int, int] | None = seen.entrance.size
    if role.task == "detect-faces" or (role.task == "stylize" and seen.entrance.free and seen.told.size is None):
        size = None
    if role.task == "stylize":
        rule = {"resize": "none", "multiple_of": 4} if size is None else {"resize": "fit"}
    mean, std = (_three(values, arithmetic) for values in (arithmetic.mean, arithmetic.std))
    told = {
        "size": size,
        "mean": [round(value / arithmetic.scale, 6) for value in mean],
        "std": [round(value / arithmetic.scale, 6) for value in std],
    }
    return InputContract.model_validate({**told, **rule})


def _three(values: tuple[float, ...], arithmetic: Arithmetic) -> tuple[float, float, float]:
    """By channel in the order R, G, B, as [input] tells them."""
    three = values * 3 if len(values) == 1 else values
    first, second, third = three if arithmetic.color != "BGR" else three[::-1]
    return first, second, third
