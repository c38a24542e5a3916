import importlib.metadata
import sys
from types import ModuleType

import numpy as np
import pytest

from service.errors import DeviceUnavailable, RuntimeMissing
from service.runtime import providers
from service.runtime.providers import CPU, CUDA, Choice, choose, import_onnxruntime, installed_wheels, probe


def fake_runtime(monkeypatch: pytest.MonkeyPatch, available: list[str], runs_on: str, answer: float = 9.0) -> None:
    """An onnxruntime that offers `available`, loads on `runs_on` and answers every run with `answer`."""

    class Session:
        def __init__(self, *args: object, **kwargs: object) -> None: ...

        def get_providers(self) -> list[str]:
            return [runs_on]

        def run(self, *args: object) -> list[object]:
            return [np.full((1, 1, 2, 2), answer)]

    module = ModuleType("onnxruntime")
    module.InferenceSession = Session
    module.SessionOptions = type("Options", (), {})
    module.get_available_providers = lambda: available
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


def test_cpu_really_runs() -> None:
    assert probe(CPU) is None
    assert choose("cpu") == Choice(CPU)


def test_a_provider_that_is_not_built_in_does_not_pass_the_probe() -> None:
    if CUDA not in import_onnxruntime().get_available_providers():
        assert probe(CUDA)


@pytest.mark.parametrize(
    ("available", "runs_on", "answer", "reason"),
    [
        ([CPU], CPU, 9.0, "built without CUDA"),
        ([CUDA, CPU], CPU, 9.0, "fell back"),
        ([CUDA, CPU], CUDA, 8.5, "instead of 9"),
    ],
)
def test_auto_falls_back_and_says_why_where_cuda_refuses(
    monkeypatch: pytest.MonkeyPatch, available: list[str], runs_on: str, answer: float, reason: str
) -> None:
    fake_runtime(monkeypatch, available, runs_on, answer)
    choice = choose("auto")
    assert choice.provider == CPU
    assert reason in str(choice.note)
    with pytest.raises(DeviceUnavailable, match=reason):
        choose("cuda")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_cuda_is_taken_when_it_runs(monkeypatch: pytest.MonkeyPatch, device: providers.Device) -> None:
    fake_runtime(monkeypatch, [CUDA, CPU], CUDA)
    assert choose(device) == Choice(CUDA)


def test_without_a_runtime_both_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissing) as missing:
        import_onnxruntime()
    for command in ("pip install onnxruntime ", "pip install 'onnxruntime-gpu[cuda,cudnn]'", "make serve DEVICE=cuda"):
        assert command in str(missing.value)


def test_the_empty_shell_of_a_removed_wheel_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(RuntimeMissing, match="broken"):
        import_onnxruntime()


def test_installed_wheels_names_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            return "1.31.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert installed_wheels() == {"onnxruntime-gpu": "1.31.1"}
