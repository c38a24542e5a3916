"""Does an adopted graph answer in the shapes that its task reads? The check that stands in where no stored answers are."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from service.errors import ParityFailed
from service.repository.spec import ModelSpec, Task

Shape = tuple[str, ...]
ANSWERS: dict[Task, dict[str, Shape]] = {
    "classify": {"logits": ("n", "classes")},
    "detect": {"boxes": ("n", "k", "4"), "scores": ("n", "k", "classes")},
    "detect-faces": {"boxes": ("n", "k", "4"), "scores": ("n", "k"), "landmarks": ("n", "k", "10")},
    "embed-face": {"embedding": ("n", "d")},
    "face-liveness": {"logits": ("n", "classes")},
    "stylize": {"painted": ("n", "h", "w", "3")},
    "paint": {"gradient": ("n", "3", "h", "w")},
}
"""The outputs of each task's graph, and their axes."""


def check_answers(spec: ModelSpec, outputs: Mapping[str, NDArray[np.generic]]) -> str:
    """The outputs and their shapes in words.

    Raises ParityFailed where one is missing, has other axes, or holds a number that is not finite.
    """
    classes = len(spec.read_labels()) or (spec.adapter.classes if spec.adapter else 0)
    told = []
    for name, axes in ANSWERS[spec.task].items():
        if name not in outputs:
            raise ParityFailed(f"there is no output {name!r}; the outputs are: {', '.join(outputs) or '(none)'}")
        shape = outputs[name].shape
        wanted = [str(classes) if axis == "classes" and classes else axis for axis in axes]
        if len(shape) != len(wanted) or any(axis.isdigit() and int(axis) != size for axis, size in zip(wanted, shape, strict=True)):
            raise ParityFailed(f"the output {name!r} has the shape {list(shape)}, and {spec.task} reads [{', '.join(wanted)}]")
        if outputs[name].dtype.kind == "f" and not np.isfinite(outputs[name]).all():
            raise ParityFailed(f"the output {name!r} holds numbers that are not finite, for a picture of noise")
        told.append(f"{name} {list(shape)}")
    return ", ".join(told)
