"""What is here, what really runs and what is missing, in plain words, with what to type next."""

import ctypes
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from service.errors import SettingInvalid, SetupError
from service.loaded import known_tuning
from service.repository.preference import FALLBACK, PREFERRED, standing_detector, told
from service.repository.store import BuiltModel, find_built, scan, verify_built
from service.runtime.machine import usable_cores
from service.runtime.providers import CPU, CUDA, Choice, choose, import_onnxruntime, installed_wheels, probe
from service.runtime.tuning import Plan, Tuning
from service.settings import Settings

PIP = f"{sys.executable} -m pip"
COMMAND = str(Path(sys.executable).with_name("vision-service"))
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CUDA_LIBRARIES = {  # what onnxruntime-gpu is linked against, by the name that the loader looks for
    "NVIDIA driver": "libcuda.so.1",
    "CUDA runtime": "libcudart.so.13",
    "cuBLAS": "libcublas.so.13",
    "cuBLAS Lt": "libcublasLt.so.13",
    "cuFFT": "libcufft.so.12",
    "cuRAND": "libcurand.so.10",
    "cuDNN": "libcudnn.so.9",
}


class Finding(BaseModel):
    """One line of the report. `bad` findings keep the service from starting; `next` is what to type about it."""

    topic: str
    state: Literal["good", "note", "bad"]
    text: str
    next: str | None = None


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything worth knowing about this installation, one finding at a time; never raises."""
    yield _python()
    yield Finding(topic="machine", state="good", text=f"{platform.platform()}, {usable_cores()} cores to use")
    yield from _runtime(settings)
    yield _heic()
    yield from _models(settings)
    yield from _detector(settings)


def _python() -> Finding:
    return Finding(topic="python", state="good", text=f"{platform.python_version()} at {sys.executable}")


def _runtime(settings: Settings) -> Iterator[Finding]:
    wheels = installed_wheels()
    named = ", ".join(f"{name} {version}" for name, version in wheels.items())
    try:
        ort = import_onnxruntime()
    except SetupError as error:
        first, _, rest = str(error).partition("\n")
        yield Finding(topic="onnxruntime", state="bad", text=first, next=rest.strip() or None)
        return
    if len(wheels) > 1:
        advice = f"{PIP} uninstall -y {' '.join(wheels)}, then {PIP} install one of them again"
        yield Finding(topic="onnxruntime", state="bad", text=f"{named}: two wheels share one import name", next=advice)
    else:
        yield Finding(topic="onnxruntime", state="good", text=named or f"{ort.__version__}, not from one of the known wheels")
    available = ort.get_available_providers()
    for provider in (CUDA, CPU):
        if provider in available:
            yield _provider(provider)
    if NVIDIA_DRIVER.exists() or CUDA in available:
        yield from _cuda_libraries(ort)
    if NVIDIA_DRIVER.exists() and CUDA not in available:
        advice = f"make serve DEVICE=cuda in a clone; elsewhere {PIP} install 'onnxruntime-gpu[cuda,cudnn]' in its place"
        yield Finding(topic="cuda", state="note", text="there is an NVIDIA driver, but this onnxruntime cannot use it", next=advice)
    yield _device(settings)


def _provider(provider: str) -> Finding:
    failure = probe(provider)
    if failure is None:
        return Finding(topic="provider", state="good", text=f"{provider} runs: a small graph gave the right answer")
    return Finding(topic="provider", state="bad" if provider == CPU else "note", text=f"{provider} does not run: {failure}")


def _cuda_libraries(ort: object) -> Iterator[Finding]:
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    for title, library in CUDA_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            where = "install the NVIDIA driver" if library == "libcuda.so.1" else f"{PIP} install 'onnxruntime-gpu[cuda,cudnn]'"
            yield Finding(topic="cuda", state="note", text=f"{title}: {library} is missing", next=where)
        else:
            yield Finding(topic="cuda", state="good", text=f"{title}: {library} found")


def _device(settings: Settings) -> Finding:
    try:
        choice = choose(settings.device)
    except SetupError as error:
        return Finding(topic="device", state="bad", text=str(error))
    text = f"VISION_DEVICE={settings.device} gives {choice.provider}"
    return Finding(topic="device", state="good", text=text if choice.note is None else f"{text}; {choice.note}")


def _heic() -> Finding:
    try:
        import pi_heif
    except ModuleNotFoundError:
        return Finding(topic="formats", state="note", text="HEIC photos (iPhone) cannot be read", next=f"{PIP} install pi-heif")
    return Finding(topic="formats", state="good", text=f"HEIC photos can be read (pi-heif {pi_heif.__version__})")


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        specs = scan(settings)
    except SetupError as error:
        yield Finding(topic="models", state="bad", text=str(error))
        return
    try:
        choice = choose(settings.device)
    except SetupError:
        choice = None
    for name, spec in specs.items():
        pull = f"{COMMAND} models pull {name}"
        built = find_built(spec, settings)
        if built is None:
            yield Finding(topic="models", state="note", text=f"{name} is not built yet", next=pull)
            continue
        try:
            verify_built(spec, settings)
        except SetupError as error:
            yield Finding(topic="models", state="bad", text=f"{name} is damaged: {error}", next=pull)
        else:
            yield Finding(topic="models", state="good", text=f"{name} is in place and intact at {built.folder}")
            yield from _tuning(built, choice, settings)


def _detector(settings: Settings) -> Iterator[Finding]:
    """Which detector is the default one, and why; nothing is asked or chosen here."""
    try:
        choice = standing_detector(settings)
        specs = scan(settings)
    except SettingInvalid as error:
        if settings.detector != "auto":
            yield Finding(topic="detector", state="bad", text=str(error))
        return
    except SetupError:  # said with the models
        return
    if choice is None:
        text = f"none was chosen yet: the next start takes {PREFERRED} where its host answers, else {FALLBACK}"
        yield Finding(topic="detector", state="note", text=text, next="VISION_DETECTOR=NAME names one")
    elif choice.name in specs:
        yield Finding(topic="detector", state="good", text=told(choice, specs[choice.name]))


def _tuning(built: BuiltModel, choice: Choice | None, settings: Settings) -> Iterator[Finding]:
    """How the model runs here; nothing where no device can be chosen, which is said elsewhere."""
    if choice is None:
        return
    try:
        tuning = known_tuning(built, choice, settings)
    except SettingInvalid as error:
        yield Finding(topic="tuning", state="bad", text=f"{built.spec.name}: {error}")
        return
    if tuning is None:
        cores = settings.cores or usable_cores()
        text = f"{built.spec.name}: not measured on this machine with {cores} cores yet; the next start does that"
        yield Finding(topic="tuning", state="note", text=text)
        return
    yield Finding(topic="tuning", state="good", text=f"{built.spec.name}: {describe_tuning(tuning)}")


def describe_tuning(tuning: Tuning) -> str:
    """The plan in words, with what was measured of it and of the others."""
    text = f"{_plan(tuning.plan)} ({tuning.source})"
    if tuning.measured:
        figures = (f"{_plan(one)}: {one.throughput:.0f}/s, {one.latency_ms:.1f} ms a run" for one in tuning.measured)
        text += f"; measured {'; '.join(figures)}"
    return text if tuning.note is None else f"{text}; {tuning.note}"


def _plan(plan: Plan) -> str:
    batch = f", batches of {plan.batch}" if plan.batch > 1 else ""
    return f"{plan.precision}, {plan.parallel} x {plan.threads} thread{'s' * (plan.threads > 1)}{batch}"
