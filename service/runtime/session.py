"""Sessions: run one ONNX graph on numpy arrays. `OrtSession` is the real one, `FakeSession` the one tests use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceFailed
from service.runtime.providers import CPU, Choice, import_onnxruntime

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
        """All outputs by name. Raises InferenceFailed."""
        ...


class OrtSession:
    """One graph in onnxruntime, on the chosen provider, with all graph optimisations.

    threads: inside one run. keep_memory: keep what a run needed for the next one; off for graphs that meet huge pictures of any
    size, which give it back after each run (on the CPU: a GPU's memory is nobody else's).
    """

    def __init__(self, path: Path, choice: Choice, *, threads: int = 1, keep_memory: bool = True) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_mem_pattern = keep_memory
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn a core
        providers = [choice.provider] if choice.provider == CPU else [choice.provider, CPU]
        self._session = ort.InferenceSession(path, options, providers=providers)
        self.provider: str = self._session.get_providers()[0]
        self.inputs = tuple(TensorInfo(i.name, tuple(i.shape), i.type) for i in self._session.get_inputs())
        self.outputs = tuple(TensorInfo(o.name, tuple(o.shape), o.type) for o in self._session.get_outputs())
        self._names = [output.name for output in self.outputs]
        self._run_options = ort.RunOptions()
        if not keep_memory and self.provider == CPU:
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        try:
            results = self._session.run(self._names, dict(feeds), self._run_options)
        except Exception as error:
            raise InferenceFailed(str(error).strip().splitlines()[0]) from error
        return dict(zip(self._names, results, strict=True))


@dataclass(frozen=True)
class FakeSession:
    """Answers with `answer(feeds)`: for tests of everything above the runtime."""

    answer: Callable[[Tensors], dict[str, NDArray[np.generic]]]
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    provider: str = "FakeExecutionProvider"

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        return self.answer(feeds)


def run_once(path: Path, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
    """Load the graph at `path` on the CPU, run it once and forget it: what guards an export."""
    return OrtSession(path, Choice(CPU), keep_memory=False).run(feeds)
