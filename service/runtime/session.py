"""Sessions: run one ONNX graph on numpy arrays. `OrtSession` is the real one, `FakeSession` the one tests use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import InferenceFailed
from service.runtime.machine import exact_int8
from service.runtime.providers import CPU, Choice, import_onnxruntime

Tensors = Mapping[str, NDArray[np.generic]]
Sizes = Literal["one", "some", "huge"]
"""What sizes of input a graph meets, which decides what becomes of its memory after a run.

one     always the same: kept for the next run, laid out once
some    many, but none large: kept, without a layout for each (40 % less after many sizes, no slower)
huge    any: given back after each run, on the CPU (a GPU's memory is nobody else's); a run takes up to a quarter longer
"""


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
    """One graph, a file or its bytes, in onnxruntime, on the chosen provider, with all graph optimisations.

    threads: inside one run. optimized: the file is such a graph as `save_to` gets, nothing is left to do. save_to: where the
    optimised graph is written while it is loaded.
    """

    def __init__(
        self,
        path: Path | bytes,
        choice: Choice,
        *,
        threads: int = 1,
        sizes: Sizes = "one",
        optimized: bool = False,
        save_to: Path | None = None,
    ) -> None:
        ort = import_onnxruntime()
        levels, options = ort.GraphOptimizationLevel, ort.SessionOptions()
        options.graph_optimization_level = levels.ORT_DISABLE_ALL if optimized else levels.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_mem_pattern = sizes == "one"
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn a core
        if threads > 1:  # small blocks: where one core is busy elsewhere, the others take more of them
            options.add_session_config_entry("session.dynamic_block_base", "4")
        if not exact_int8():
            options.add_session_config_entry("session.x64quantprecision", "1")  # int8 weights as uint8: slower, but exact
        if save_to is not None:
            options.optimized_model_filepath = str(save_to)
        providers = [choice.provider] if choice.provider == CPU else [choice.provider, CPU]
        self._session = ort.InferenceSession(path, options, providers=providers)
        self.provider: str = self._session.get_providers()[0]
        self.inputs = tuple(TensorInfo(i.name, tuple(i.shape), i.type) for i in self._session.get_inputs())
        self.outputs = tuple(TensorInfo(o.name, tuple(o.shape), o.type) for o in self._session.get_outputs())
        self._names = [output.name for output in self.outputs]
        self._run_options = ort.RunOptions()
        if sizes == "huge" and self.provider == CPU:
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
    return OrtSession(path, Choice(CPU), sizes="huge").run(feeds)
