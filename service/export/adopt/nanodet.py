"""NanoDet: for every cell the scores of the classes, and how far the box reaches to each side as a distribution.

Reference: Li and others, Generalized focal loss, NeurIPS 2020; Lyu, NanoDet, 2020.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import ExportFailed
from service.export.adopt.tail import Output, Tail
from service.export.contract import Contract

STRIDES = (8, 16, 32, 64)
"""Where the contract names none."""
SHIFT, SHIFT_PLUS = 0.5, 0.0
"""Where in its cell a box's centre lies: NanoDet, and NanoDet-Plus."""


def nanodet(tail: Tail, outputs: Sequence[Output], contract: Contract) -> None:
    """Class scores [n, k, C] of every stride and distributions [n, k, 4 * bins] of every stride as boxes and scores.

    The scores may come before the distributions or by turns with them. NanoDet-Plus has one output [n, k, C + 4 * bins] of all
    strides.
    """
    if tail.size is None:
        raise ExportFailed("NanoDet needs a fixed size: its cells are counted from it")
    plus = len(outputs) == 1
    heads, distributions = (outputs, outputs) if plus else _parted(outputs, contract)
    strides = contract.strides or (STRIDES if plus else STRIDES[: len(heads)])
    centres, unit = _cells(tail.size, strides, SHIFT_PLUS if plus else SHIFT)
    _check_count(heads, strides, centres.shape[1], tail.size)
    scores = tail.concat(*map(tail.as_float, heads), axis=1)
    reach = tail.concat(*map(tail.as_float, distributions), axis=1)
    columns = _columns(distributions[0])
    if plus:
        scores, reach = tail.cut(scores, 0, contract.classes, 2), tail.cut(reach, contract.classes, columns, 2)
        columns -= contract.classes
    bins = columns // 4
    shares = tail.softmax(tail.reshape(reach, [0, 0, 4, bins]), 4)
    mean = tail.node("MatMul", shares, tail.constant(np.arange(bins)[:, None]))  # the expected distance, in strides
    reach = tail.mul(tail.reshape(mean, [0, 0, 4]), unit)
    low, high = tail.cut(reach, 0, 2, 2), tail.cut(reach, 2, 4, 2)
    centre = tail.constant(centres)
    tail.expose(tail.concat(tail.sub(centre, low), tail.add(centre, high), axis=2), "boxes", ["n", "k", 4])
    tail.expose(tail.activated(scores, contract.activation), "scores", ["n", "k", contract.classes])


def _parted(outputs: Sequence[Output], contract: Contract) -> tuple[Sequence[Output], Sequence[Output]]:
    """Class scores and distributions, of the same strides in the same order. Raises ExportFailed where they do not match."""
    half = len(outputs) // 2
    heads = [output for output in outputs if _columns(output) == contract.classes]
    rest = [output for output in outputs if _columns(output) != contract.classes]
    if not rest:  # as many numbers for the distances as classes: only the order tells
        heads, rest = list(outputs[:half]), list(outputs[half:])
    if len(heads) != len(rest) or len(heads) != len(contract.strides or heads) or _columns(rest[0]) % 4:
        found = ", ".join(output.label for output in outputs)
        raise ExportFailed(
            f"NanoDet answers [n, k, {contract.classes}] and [n, k, 4 * bins] for every stride; these were found: {found}"
        )
    return heads, rest


def _check_count(heads: Sequence[Output], strides: Sequence[int], wanted: int, size: tuple[int, int]) -> None:
    """Raises ExportFailed where it is known that there are more or fewer rows than cells."""
    counts = [output.shape[1] for output in heads if output.shape and output.shape[1] is not None]
    found = sum(count for count in counts if count is not None)
    if len(counts) == len(heads) and found != wanted:
        raise ExportFailed(f"{found} cells were found, and strides {list(strides)} make {wanted} of {size[0]} x {size[1]} pixels")


def _columns(output: Output) -> int:
    found = output.shape[-1] if output.rank == 3 and output.shape else None
    if found is None:
        raise ExportFailed(f"the output {output.label} should have three axes, the last of a fixed length")
    return found


def _cells(size: tuple[int, int], strides: Sequence[int], shift: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres [1, k, 2] in pixels and strides [1, k, 1] of all cells, row after row, one stride after the other."""
    centres, units = [], []
    for stride in strides:
        rows, columns = (-(-side // stride) for side in size)
        down, across = np.mgrid[0:rows, 0:columns]
        centres.append((np.stack([across, down], axis=-1).reshape(-1, 2) + shift) * stride)
        units.append(np.full((rows * columns, 1), stride))
    return np.concatenate(centres)[None].astype(np.float32), np.concatenate(units)[None].astype(np.float32)
