"""Run an untrusted graph in a child process that has little time, little memory, no secrets and cannot write a file.

Both ways a zip archive of .npy members, without pickle, goes through a pipe: to the child "job" (JSON as bytes) and
"<run>/<input>" arrays, back "<run>/<output>" arrays, or "error" (text as bytes).
"""

import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from service.errors import ModelRefused
from service.settings import Settings

Answers = dict[str, NDArray[np.generic]]
Tensors = Mapping[str, NDArray[np.generic]]
MEMORY = 3 * 2**30  # bytes that Python, onnxruntime and a photo's worth of layers may take
MEMORY_FACTOR = 6  # and, on top, times the file's size: read, parsed, optimised, packed
MAX_ANSWER = 512 * 2**20  # bytes of all outputs together
KILLED = {
    -9: "was killed, most probably for want of memory",
    -24: "took too much time",
    -11: "crashed",
    -6: "crashed",
    -4: "crashed",
}


def trial(
    path: Path, feeds: Sequence[Tensors], settings: Settings, size: int | None = None
) -> list[dict[str, NDArray[np.generic]]]:
    """All outputs by name, of the graph at `path`, for each of `feeds`; on the CPU, on one thread.

    size: of the file with its data, in bytes. Raises ModelRefused in words where it fails, crashes, takes more than
    settings.trial_seconds or too much memory.
    """
    job = {
        "path": str(path.absolute()),
        "memory": MEMORY + MEMORY_FACTOR * (size or path.stat().st_size),
        "seconds": int(settings.trial_seconds) + 1,
        "runs": len(feeds),
    }
    arrays = {f"{run}/{name}": array for run, feed in enumerate(feeds) for name, array in feed.items()}
    status, answer, complaint = _child(_packed({"job": _bytes(json.dumps(job)), **arrays}), settings.trial_seconds)
    if status is None:
        raise ModelRefused(f"its trial run took more than the {settings.trial_seconds:g} s that VISION_TRIAL_SECONDS allows")
    if status != 0:
        how = KILLED.get(status, f"ended with the status {status}")
        if "MemoryError" in complaint or "bad_alloc" in complaint:
            how = "needed more memory than it may have"
        raise ModelRefused(f"its trial run {how}")
    found = _unpacked(answer)
    if "error" in found:
        raise ModelRefused(_in_words(bytes(found["error"].astype(np.uint8)).decode(errors="replace")))
    runs: list[dict[str, NDArray[np.generic]]] = [{} for _ in feeds]
    for key, array in found.items():
        run, _, name = key.partition("/")
        runs[int(run)][name] = array
    return runs


def _child(work: bytes, seconds: float) -> tuple[int | None, bytes, str]:
    """Exit status (None: out of time), what it wrote, and its last complaint."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VISION_")}
    package = str(Path(__file__).parents[2])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "service.intake.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=kept,
    ) as child:
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(seconds, stop)
        parts: dict[str, bytes] = {}
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        readers = [
            threading.Thread(target=_drain, args=(parts, "out", child.stdout, MAX_ANSWER + 2**20)),
            threading.Thread(target=_drain, args=(parts, "err", child.stderr, 2**16)),
        ]
        timer.start()
        try:
            for reader in readers:
                reader.start()
            try:
                child.stdin.write(work)
                child.stdin.close()
            except BrokenPipeError:
                pass  # it died early: its status tells why
            status = child.wait()
        finally:
            timer.cancel()
            child.kill()
            for reader in readers:
                reader.join()
    return (None if late.is_set() else status), parts.get("out", b""), parts.get("err", b"").decode(errors="replace")


def _drain(parts: dict[str, bytes], name: str, stream: IO[bytes], most: int) -> None:
    """Read all of `stream`, and keep at most `most` bytes."""
    kept, room = [], most
    while block := stream.read(2**16):
        kept.append(block[:room])
        room -= len(kept[-1])
    parts[name] = b"".join(kept)


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _packed(arrays: Tensors) -> bytes:
    """Arrays as .npy members of a zip archive by number, and their names, which may be any text, as a list beside."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for number, array in enumerate(arrays.values()):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
            archive.writestr(f"{number}", member.getvalue())
        archive.writestr("names", json.dumps(list(arrays)))
    return whole.getvalue()


def _unpacked(data: bytes) -> dict[str, NDArray[np.generic]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_ANSWER + 2**20:
                raise ModelRefused("its trial run gave too much to look at")
            names: list[str] = json.loads(archive.read("names"))
            return {
                name: np.lib.format.read_array(io.BytesIO(archive.read(str(number))), allow_pickle=False)
                for number, name in enumerate(names)
            }
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError):
        raise ModelRefused("its trial run gave nothing that can be read") from None


_WORDS = (
    ("Unsupported model IR version", "it is written in a newer version of ONNX than onnxruntime {version} reads"),
    ("is under development and support", "it needs a newer set of operators (opset) than onnxruntime {version} knows"),
    ("guarantees", "it needs a newer set of operators (opset) than onnxruntime {version} knows"),
    ("No Op registered for", "it needs an operator that is not known here"),
    ("is not a registered function/op", "it needs an operator that is not known here"),
    ("NOT_IMPLEMENTED", "it needs an operator that onnxruntime {version} does not have for the CPU"),
    ("bad_alloc", "its trial run needed more memory than it may have"),
    ("Failed to allocate memory", "its trial run needed more memory than it may have"),
    ("MemoryError", "its trial run needed more memory than it may have"),
    ("External data", "its external data cannot be read"),
)


def _in_words(message: str) -> str:
    version, _, text = message.partition("\n")
    shown = _without_source(" ".join(text.split()))
    for mark, words in _WORDS:
        if mark in text:
            return f"{words.format(version=version)} ({shown})"
    return f"onnxruntime {version} cannot run it: {shown}"


def _without_source(text: str) -> str:
    """What onnxruntime says, less the place in its C++ source, the signature of the function there, and the file's path."""
    begin, mark, rest = text.rpartition(".cc:")
    if mark:
        depth = 0
        for at, letter in enumerate(rest):
            depth += (letter == "(") - (letter == ")")
            if letter == ")" and depth == 0 and rest[at + 1 :].strip():
                return re.sub(r"^ ?(const )?(\[with [^]]*\] )?", "", rest[at + 1 :])[:300]
        text = f"{begin.rpartition(' ')[0]} {rest.partition(' ')[2]}"
    return re.sub(r"Load model from \S+ failed: ?", "", re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", text))[:300]


def _limit(job: Mapping[str, int]) -> None:
    """Little time and memory, no file and no core dump, where the system can be asked for that."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is all there is
        return
    limits = {"RLIMIT_AS": job["memory"], "RLIMIT_CPU": job["seconds"], "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (least, least))


def _run(arrays: Tensors, job: Mapping[str, int], path: Path) -> dict[str, NDArray[np.generic]]:
    from service.runtime.providers import CPU, Choice
    from service.runtime.session import OrtSession

    session = OrtSession(path, Choice(CPU), sizes="huge")
    found: dict[str, NDArray[np.generic]] = {}
    for run in range(job["runs"]):
        feeds = {key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(f"{run}/")}
        for name, value in session.run(feeds).items():
            found[f"{run}/{name}"] = np.asarray(value)
            if np.asarray(value).dtype.hasobject:
                raise ModelRefused(f"the output {name} is text or a sequence, not numbers")
    if sum(array.nbytes for array in found.values()) > MAX_ANSWER:
        raise ModelRefused("the outputs are too large to look at")
    return found


def main() -> int:
    """The child: one job from standard input, its answer to standard output."""
    arrays = _unpacked(sys.stdin.buffer.read())
    job = json.loads(bytes(arrays.pop("job").astype(np.uint8)))
    answer = sys.stdout.buffer
    _limit(job)
    try:
        found = _packed(_run(arrays, job, Path(job["path"])))
    except MemoryError:
        found = _packed({"error": _bytes("\nMemoryError")})
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
        found = _packed({"error": _bytes(f"{_version()}\n{error}")})
    answer.write(found)
    answer.flush()
    return 0


def _version() -> str:
    from service.runtime.providers import installed_wheels

    return next(iter(installed_wheels().values()), "")


if __name__ == "__main__":
    sys.exit(main())
