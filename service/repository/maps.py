"""Do the class maps that were made of an adopted classifier agree with it, and can they be made of pictures of any size?"""

from collections.abc import Callable

import numpy as np

from service.errors import ParityFailed
from service.repository.parity import Tensors, noise
from service.repository.spec import MAPS, ModelSpec

Run = Callable[[Tensors], Tensors]
WINDOWS = "windows"
"""What is left out where a network takes one size of pictures only."""
SHARE = 1e-3
"""Of the logits' spread, how far rounding may bring them."""


def check_maps(logits: np.ndarray[tuple[int, ...], np.dtype[np.generic]], feeds: Tensors, run: Run) -> str:
    """How close the means of the maps come to the graph's own logits [n, classes], in words.

    Probabilities say the logits up to one number a picture: that is taken out. Raises ParityFailed where they are not the same, or
    the graph does not run.
    """
    outputs = _outputs(run, feeds)
    own, found, mean = (x - x.mean(axis=1, keepdims=True) for x in (_float(logits), *_means(outputs)))
    if own.shape != found.shape:
        raise ParityFailed(f"its maps are of {found.shape[1]} classes, it has {own.shape[1]}")
    likely = own > own.max() - 20  # below, what keeps a logarithm of probabilities finite shows
    spread = max(float(own.std()), 1e-6)
    worst = float(max(np.abs(found - own)[likely].max(), np.abs(mean - found).max()))
    if not worst <= SHARE * spread:
        raise ParityFailed(f"the means of its maps are not its logits: they differ by {worst:.2g}, of a spread of {spread:.2g}")
    rows, columns = np.shape(outputs[MAPS])[2:]
    return f"maps of {rows} x {columns}, whose means differ by at most {worst:.2g} from the logits"


def check_windows(spec: ModelSpec, run: Run) -> dict[str, str]:
    """Nothing where windows can slide over larger pictures; else why they cannot, under "windows"."""
    assert spec.input.size is not None
    height, width = spec.input.size
    rows, columns = np.shape(run(noise(spec))[MAPS])[2:]
    if height != width or rows != columns or height % rows:
        return {WINDOWS: f"its map of {rows} x {columns} does not divide pictures of {height} x {width} into equal squares"}
    stride = height // rows
    larger = spec.model_copy(update={"input": spec.input.model_copy(update={"size": (height + stride, width + 2 * stride)})})
    try:
        outputs = _outputs(run, noise(larger))
    except ParityFailed:
        return {WINDOWS: f"its network takes pictures of {height} x {width} only"}
    logits, mean = _means(outputs)
    fits = np.shape(outputs[MAPS])[2:] == (rows + 1, columns + 2) and np.allclose(
        logits, mean, atol=SHARE * max(logits.std(), 1e-6)
    )
    return {} if fits else {WINDOWS: f"its network sees pictures larger than {height} x {width} in another way"}


def _outputs(run: Run, feeds: Tensors) -> Tensors:
    try:
        outputs = run(feeds)
    except Exception as error:
        raise ParityFailed(f"its maps cannot be computed: {str(error).splitlines()[0]}") from error
    if not all(np.isfinite(outputs[name].astype(np.float64)).all() for name in ("logits", MAPS)):
        raise ParityFailed("its maps hold numbers that are not finite")
    return outputs


def _means(outputs: Tensors) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], ...]:
    """The logits and the means of the maps, both [n, classes]."""
    return _float(outputs["logits"]), _float(outputs[MAPS]).mean(axis=(2, 3))


def _float(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(values, np.float64)
