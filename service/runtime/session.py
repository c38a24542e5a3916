"""Sessions: run one ONNX graph on numpy arrays. `OrtSession` is the real one, `FakeSession` the one tests use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: `shape` holds an int for a fixed axis, a name or None for a free one; `dtype` as ONNX says it."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


class Session(Protocol):
    """One loaded graph. `run` may be called from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def provider(self) -> str: ...

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        """All outputs by name."""
        ...


@dataclass(frozen=True)
class FakeSession:
    """Answers with `answer(feeds)`: for tests of everything above the runtime."""

    answer: Callable[[Tensors], dict[str, NDArray[np.generic]]]
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    provider: str = "FakeExecutionProvider"

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        return self.answer(feeds)
