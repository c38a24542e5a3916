"""Boxes as float arrays [n, 4]: x_min, y_min, x_max, y_max on the plane where pixel i covers [i, i + 1)."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]

_BLOCK: Final = 128  # boxes compared at once: bounds the memory of thousands of candidates, and the depth of the Python loop


def iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Intersection over union of each of `a` [n, 4] with each of `b` [m, 4]: [n, m], 0..1.

    A box without area (or inside out, or with NaN in it) overlaps nothing, not even itself.
    """
    left, top, right, bottom = np.asarray(a, np.float32).T[:, :, None]
    x_min, y_min, x_max, y_max = np.ascontiguousarray(np.asarray(b, np.float32).T)
    with np.errstate(over="ignore", invalid="ignore"):
        shared = _side(np.maximum(left, x_min), np.minimum(right, x_max))
        shared *= _side(np.maximum(top, y_min), np.minimum(bottom, y_max))
        union = _side(left, right) * _side(top, bottom) + _side(x_min, x_max) * _side(y_min, y_max) - shared
        return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def nms(
    boxes: Boxes,
    scores: NDArray[np.floating],
    threshold: float,
    classes: NDArray[np.integer] | None = None,
    limit: int | None = None,
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: indices [k] of the boxes [n, 4] that stay, by falling score [n].

    A box goes when its IoU with a better one that stays is above `threshold`; with `classes` [n] only boxes of its own class
    count. Of equal scores the lower index is the better. `limit` keeps the best so many. Boxes that are not finite, and
    scores that are NaN, never stay: one broken candidate cannot hide the others.
    """
    order: NDArray[np.intp] = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(boxes[order]).all(axis=1) & ~np.isnan(scores[order])]
    if classes is None or len(order) <= _BLOCK:
        return order[_survivors(boxes[order], threshold, limit, None if classes is None else classes[order])]
    by_class = np.argsort(classes[order], kind="stable")
    starts = np.flatnonzero(np.diff(classes[order][by_class])) + 1
    kept = [group[_survivors(boxes[order[group]], threshold, limit)] for group in np.split(by_class, starts)]
    return order[np.sort(np.concatenate(kept))][:limit]


def clip(boxes: Boxes, height: int, width: int) -> Boxes:
    """`boxes` [..., 4] cut at the edges of a picture of height x width; those outside it lose their area."""
    most = np.array([width, height, width, height], np.float32)
    return np.clip(boxes, 0, most).astype(np.float32, copy=False)


def _side(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.subtract(high, low)
    return np.maximum(length, 0, out=length)


def _survivors(boxes: Boxes, threshold: float, limit: int | None, classes: NDArray[np.integer] | None = None) -> NDArray[np.intp]:
    """Positions that stay among `boxes` [n, 4], best first: block by block, each block's survivors then clear the rest.

    `classes` [n], each of which is looked at alone, may be given where all fits into one block.
    """
    stays: NDArray[np.bool_] = np.ones(len(boxes), bool)
    found = 0
    for start in range(0, len(boxes), _BLOCK):
        block = start + np.flatnonzero(stays[start : start + _BLOCK])
        overlaps = iou(boxes[block], boxes[block]) > threshold
        if classes is not None:
            overlaps &= classes[:, None] == classes
        alive = np.ones(len(block), bool)
        for i in range(len(block)):
            if alive[i]:
                alive[i + 1 :] &= ~overlaps[i, i + 1 :]
        stays[block] = alive
        found += int(alive.sum())
        if limit is not None and found >= limit:
            return np.flatnonzero(stays[: start + _BLOCK])[:limit]
        rest = start + _BLOCK + np.flatnonzero(stays[start + _BLOCK :])
        if rest.size:
            stays[rest[(iou(boxes[block[alive]], boxes[rest]) > threshold).any(axis=0)]] = False
    return np.flatnonzero(stays)
