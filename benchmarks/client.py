"""Requests as prepared bytes, asking once, and Debian's wrk as the client that asks for as long as it is told."""

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

BOUNDARY: Final = "benchmark"
SCRIPT: Final = Path(__file__).with_name("wrk.lua")
MISSING: Final = "wrk is missing: it is the client of this benchmark; on Debian and Ubuntu: apt-get install wrk"


@dataclass(frozen=True)
class Message:
    """One POST request: path, headers and body, the Host and Content-Length headers excepted."""

    path: str
    headers: dict[str, str]
    body: bytes

    def raw(self) -> bytes:
        """The whole request for a kept-alive connection."""
        headers = {"Host": "localhost", **self.headers, "Content-Length": str(len(self.body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + self.body


def multipart(path: str, *fields: str, photo: bytes) -> Message:
    """A form that holds the photo once for each of `fields`."""
    body = b""
    for field in fields:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="photo.jpg"\r\nContent-Type: image/jpeg'
        body += head.encode() + b"\r\n\r\n" + photo + b"\r\n"
    return Message(path, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, body + f"--{BOUNDARY}--\r\n".encode())


def infer(task: str, photo: bytes) -> Message:
    """The photo as Triton takes it: the Open Inference Protocol with the tensor's bytes behind the JSON."""
    tensor = {"name": "photo", "shape": [1, len(photo)], "datatype": "UINT8", "parameters": {"binary_data_size": len(photo)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Message(f"/v2/models/{task}/infer", headers, head + photo)


def ask(port: int, message: Message) -> list[str]:
    """The labels in one answer, the best first. Raises OSError (urllib's errors are such) when there is none."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{message.path}", message.body, message.headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    if "outputs" in answer:
        answer = json.loads(answer["outputs"][0]["data"][0])
    return [prediction["label"] for prediction in answer["predictions"]]


def wrk(port: int, message: Message, connections: int, seconds: float) -> dict[str, Any]:
    """Ask over `connections` at once, each as soon as it has its answer.

    Gives seconds, answers (of any status), refused (status 400 and above), broken (connections and timeouts), and the latency of
    all answers in milliseconds as p50, p90 and p99. Raises SystemExit when wrk is missing.
    """
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit(MISSING)
    with tempfile.NamedTemporaryFile() as body:
        body.write(message.body)
        body.flush()
        headers = "".join(f"{name}: {value}\n" for name, value in message.headers.items())
        environ = os.environ | {"BENCH_BODY": body.name, "BENCH_HEADERS": headers}
        command = [program, "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
        command += ["--timeout", "120s", "--script", str(SCRIPT), f"http://127.0.0.1:{port}{message.path}"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary
