"""Which execution provider runs the models, and why: a provider counts only when a small graph has really run on it."""

import importlib.metadata
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np

from service.errors import DeviceUnavailable, RuntimeMissing

Device = Literal["auto", "cpu", "cuda"]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
WHEELS = ("onnxruntime", "onnxruntime-gpu")

_MISSING = """onnxruntime is not installed; exactly one of its two wheels is needed:
    pip install onnxruntime                         on any machine         (in a clone: make serve)
    pip install 'onnxruntime-gpu[cuda,cudnn]'       with an NVIDIA GPU     (in a clone: make serve DEVICE=cuda)"""


@dataclass(frozen=True)
class Choice:
    """The provider to use. `note` says why it is not the one that would be faster, or is None."""

    provider: str
    note: str | None = None


def import_onnxruntime() -> ModuleType:
    """onnxruntime, with CUDA libraries from wheels loaded where there are any. Raises RuntimeMissing saying what to install."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise RuntimeMissing(_MISSING) from None
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left when one of the two wheels is uninstalled over the other
        raise RuntimeMissing(f"onnxruntime is installed but broken. {_reinstall()}")
    module: ModuleType = onnxruntime
    return module


def installed_wheels() -> dict[str, str]:
    """Name to version of the onnxruntime wheels in this environment; two of them share one import name and break each other."""
    found: dict[str, str] = {}
    for wheel in WHEELS:
        try:
            found[wheel] = importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def choose(device: Device) -> Choice:
    """The provider for `device`.

    auto takes CUDA when it really runs and otherwise the CPU, saying why. Raises DeviceUnavailable when cuda is asked for and
    does not run, RuntimeMissing without onnxruntime.
    """
    ort = import_onnxruntime()
    if device == "cpu":
        return Choice(CPU, None)
    if CUDA not in ort.get_available_providers():
        reason = f"this onnxruntime ({', '.join(installed_wheels()) or 'unknown build'}) is built without CUDA"
        advice = "use onnxruntime-gpu[cuda,cudnn] instead of onnxruntime (in a clone: make serve DEVICE=cuda)"
    else:
        failure = probe(CUDA)
        if failure is None:
            return Choice(CUDA, None)
        reason, advice = f"CUDA does not run: {failure}", "`vision-service doctor` shows what is missing"
    if device == "cuda":
        raise DeviceUnavailable(f"VISION_DEVICE=cuda, but {reason}; {advice}, or set VISION_DEVICE=auto to allow the CPU")
    return Choice(CPU, reason)


def probe(provider: str) -> str | None:
    """Run a small convolution on `provider` with no fallback. None when it ran and its answer is right, else the reason."""
    ort = import_onnxruntime()
    if provider == CUDA and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(_small_graph(), options, providers=[provider])
        if session.get_providers()[0] != provider:
            return "onnxruntime fell back to another provider while loading (driver or libraries missing)"
        (result,) = session.run(None, {"x": np.ones((1, 1, 4, 4), np.float32)})
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class, and any of them is the answer here
        return str(error).strip().splitlines()[0]
    return None if np.allclose(result, 9.0) else f"a 3x3 sum of ones gave {result.ravel()[:4].tolist()} instead of 9"


def _small_graph() -> bytes:
    from onnx import TensorProto, helper

    node = helper.make_node("Conv", ["x", "w"], ["y"])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])
    graph = helper.make_graph([node], "probe", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def _reinstall() -> str:
    return "Both wheels share one import name; remove both and install one again:\n" + _MISSING.split("\n", 1)[1]
