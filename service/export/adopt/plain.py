"""Outputs that need little: classes, embeddings and pictures."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from service.errors import ExportFailed
from service.export.adopt.entrance import enter, fix_size, picture_size
from service.export.adopt.queries import expected
from service.export.adopt.tail import GIVEN, PIXELS, Output, Tail
from service.export.contract import Contract

STYLE = "style_pixels"
LEAST = 1e-12
"""Added to probabilities before their logarithm is taken."""
SUM = 1e-2
"""How far from 1 the sum of probabilities may be by rounding."""


def logits(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """One row a picture, of any number of axes, as logits [n, classes], without the classes before the first."""
    (given,) = expected(outputs, "logits")
    _expose_classes(tail, _flat(tail, given), given, contract)


def probabilities(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Probabilities as their logarithms, so that a softmax gives them back."""
    (given,) = expected(outputs, "probabilities")
    above = tail.add(tail.node("Relu", _flat(tail, given)), LEAST)
    _expose_classes(tail, tail.node("Log", above), given, contract)


def logits_or_probabilities(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Where a row, and the sizes of its numbers too, sum to 1, as probabilities, else as logits: for files that may be either."""
    (given,) = expected(outputs, "logits or probabilities")
    if (length := _length(given)) is None:
        raise ExportFailed(f"the number of classes is not fixed in {given.label}")
    row = _flat(tail, given)
    ones = tail.constant(np.ones((length, 1)))
    gaps = [tail.node("Abs", tail.sub(tail.node("MatMul", x, ones), 1.0)) for x in (row, tail.node("Abs", row))]
    sums_to_one = tail.node("Less", tail.node("Max", *gaps), tail.constant(SUM))
    above = tail.node("Log", tail.add(tail.node("Relu", row), LEAST))
    if tail.opset < 9:  # Where came with 9
        chosen = tail.cast(sums_to_one, TensorProto.FLOAT)
        picked = tail.add(tail.mul(above, chosen), tail.mul(row, tail.sub(tail.constant(1.0), chosen)))
    else:
        picked = tail.node("Where", sums_to_one, above, row)
    _expose_classes(tail, picked, given, contract)


def embedding(tail: Tail, outputs: Sequence[Output], _: Contract) -> None:
    """One row a picture as embedding [n, d], of the file's own length."""
    (given,) = expected(outputs, "embedding")
    tail.expose(_flat(tail, given), "embedding", ["n", _length(given) or "d"])


def picture(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """A picture in the file's own range, channels and layout as painted uint8 [n, h, w, 3]."""
    (given,) = expected(outputs, "picture")
    if given.rank not in {3, 4}:
        raise ExportFailed(f"the output {given.label} should be a picture, [n, 3, h, w] or [n, h, w, 3]")
    x = tail.as_float(given) if given.rank == 4 else tail.unsqueeze(tail.as_float(given), 0)
    if not _is_channels_last(given, contract):
        x = tail.transpose(x, 0, 2, 3, 1)
    x = _in_bytes(tail, x, contract)
    if contract.color == "BGR":
        x = tail.gather(x, [2, 1, 0], 3)
    elif contract.color == "GRAY":
        x = tail.concat(x, x, x, axis=3)
    whole = tail.node("Floor", tail.add(_clipped(tail, x), 0.5))
    tail.expose(tail.cast(whole, TensorProto.UINT8), "painted", ["n", "h", "w", 3], TensorProto.UINT8)


def picture_and_style(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """The same with a second picture as the style, the input "style_pixels" uint8 RGB, of contract.style_size, else as large."""
    others = [value for value in tail.graph.input if value.name != PIXELS]
    if len(others) != 1:
        found = ", ".join(value.name.removeprefix(GIVEN) for value in others) or "(none)"
        raise ExportFailed(f"beside the picture there should be one input, the style's; found: {found}")
    (style,) = others
    wanted = contract.style_size or tail.size
    if wanted is None and picture_size(style, contract) != (None, None):
        raise ExportFailed(f"the input {style.name.removeprefix(GIVEN)!r} has a fixed size and the picture's is free")
    same = contract.model_copy(update={"size": wanted})
    fix_size(style, same)
    enter(tail, style, same, STYLE)
    picture(tail, outputs, contract)


def _in_bytes(tail: Tail, x: str, contract: Contract) -> str:
    """A picture [n, h, w, c] with its channels in the file's order, from the range of contract.picture_range to 0..255."""
    if contract.picture_range == "byte":
        return x
    if contract.picture_range == "unit":
        return tail.mul(x, 255.0)
    if contract.picture_range == "signed":
        return tail.mul(tail.add(x, 1.0), 127.5)
    scaled = tail.add(tail.mul(x, contract.std), contract.mean)  # what the entrance did, undone
    return tail.mul(scaled, 1 / contract.scale)


def _clipped(tail: Tail, x: str) -> str:
    if tail.opset < 11:
        return tail.node("Clip", x, min=0.0, max=255.0)
    return tail.node("Clip", x, tail.constant(0.0), tail.constant(255.0))


def _is_channels_last(given: Output, contract: Contract) -> bool:
    """By the axis that has as many places as there are channels, where only one has; else as the input."""
    channels = 1 if contract.color == "GRAY" else 3
    axes = (given.shape or ())[-3:]
    first, last = axes[0] == channels, axes[2] == channels
    return last if first != last else contract.layout == "NHWC"


def _flat(tail: Tail, given: Output) -> str:
    """[n, d] of any output with a leading batch; of [d], a single row."""
    x = tail.as_float(given)
    return tail.unsqueeze(x, 0) if given.rank == 1 else tail.node("Flatten", x, axis=1)


def _length(given: Output) -> int | None:
    """Numbers in a row; None where that is not known."""
    axes = given.shape if given.rank == 1 else (given.shape or ())[1:]
    return int(np.prod([axis for axis in axes if axis])) if axes and None not in axes else None


def _expose_classes(tail: Tail, x: str, given: Output, contract: Contract) -> None:
    first, found = contract.first_class, _length(given)
    if contract.classes and found is not None and found < first + contract.classes:
        raise ExportFailed(f"the output {given.label} has no room for {contract.classes} classes from {first} on")
    last = first + contract.classes if contract.classes else np.iinfo(np.int32).max
    if first or (contract.classes and contract.classes != found):
        x = tail.cut(x, first, int(last), 1)
    tail.expose(x, "logits", ["n", contract.classes or "classes"])
