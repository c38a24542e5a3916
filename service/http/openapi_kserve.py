"""The entries on the API page of the Open Inference Protocol v2: service.http.kserve."""

from typing import Any

from service import __version__
from service.http.negotiation import JSON
from service.http.openapi import REQUEST_ID, Operation, path_parameter
from service.http.tensors import MAX_BATCH

MODEL, VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository")
BYTES = "application/octet-stream"

SERVER_EXAMPLE = {"name": "vision-service", "version": __version__, "extensions": list(EXTENSIONS)}
MODEL_EXAMPLE = {
    "name": "efficientnet-lite0",
    "versions": ["1"],
    "platform": PLATFORM,
    "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 224, 224, 3]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 1000]}],
}
CONFIG_EXAMPLE = {
    "name": "efficientnet-lite0",
    "platform": PLATFORM,
    "max_batch_size": MAX_BATCH,
    "input": [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": [224, 224, 3]}],
    "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [1000]}],
}
ASKED_EXAMPLE = {
    "id": "42",
    "inputs": [{"name": "style", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5]}],
    "outputs": [{"name": "painted", "parameters": {"binary_data": False}}],
}
ANSWER_EXAMPLE = {
    "model_name": "efficientnet-lite0",
    "model_version": "1",
    "id": "42",
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1.25]}],
}
INDEX_EXAMPLE = [{"name": "efficientnet-lite0", "version": "1", "state": "READY", "reason": ""}]

SUMMARIES: dict[tuple[str, str], tuple[str, Any, Any]] = {
    ("GET", "/v2"): ("The server and the extensions that it knows", SERVER_EXAMPLE, None),
    ("GET", "/v2/health/live"): ("Does the process answer", {"live": True}, None),
    ("GET", "/v2/health/ready"): ("Are all models ready", {"ready": True}, None),
    ("POST", "/v2/repository/index"): ("All models and their states", INDEX_EXAMPLE, {"ready": True}),
    ("POST", "/v2/repository/models/{model}/load"): ("Load a model that was unloaded", {}, {}),
    ("POST", "/v2/repository/models/{model}/unload"): ("Take a model out of service", {}, {}),
    ("GET", ""): ("A model's inputs and outputs", MODEL_EXAMPLE, None),
    ("GET", "/ready"): ("Is the model ready", {"name": "efficientnet-lite0", "ready": True}, None),
    ("GET", "/config"): ("A model's configuration, as Triton tells it", CONFIG_EXAMPLE, None),
    ("POST", "/infer"): ("Run a model on tensors", ANSWER_EXAMPLE, ASKED_EXAMPLE),
}
"""By method and path, or by what follows a model's path: what it does, an answer, and a body."""


def operation(method: str, path: str) -> Operation:
    """The entry of one route. Errors are told in words: they all look the same."""
    summary, answer, asked = SUMMARIES[method, path.removeprefix(VERSION).removeprefix(MODEL)]
    schema = {"type": "array" if isinstance(answer, list) else "object"}
    told = {JSON: {"schema": schema, "examples": {"answer": {"value": answer}}}}
    parameters = [
        path_parameter("model", "a name of POST /v2/repository/index", {"examples": ["efficientnet-lite0"]}),
        path_parameter("version", "the model's version, or 1", {"examples": ["1"]}),
    ]
    found: Operation = {
        "summary": summary,
        "description": 'Errors are {"error": "what is wrong"}, whatever the schemas below say; docs/protocols-kserve.md.',
        "tags": ["Open Inference Protocol v2"],
        "responses": {"200": {"description": "The answer", "content": told, "headers": {"X-Request-ID": REQUEST_ID}}},
        "parameters": [one for one in parameters if f"{{{one['name']}}}" in path],
    }
    if asked is not None:
        example = {"schema": {"type": "object"}, "examples": {"json": {"value": asked}}}
        found["requestBody"] = {"content": {JSON: example}}
    return found
