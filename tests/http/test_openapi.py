"""The API page's document, held against the application that it describes."""

import re
from typing import Any

import pytest
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from service.catalogue import ModelCard
from service.http import examples
from service.http.app import create_app
from service.http.cards import ForgottenFace, ForgottenSubject, FullSubject, RenamedSubject, Subjects
from service.http.health import Alive, Ready
from service.http.models import AddedModel, InspectedModel, Models, RemovedModel
from service.http.openapi import ANY_TASK
from service.http.options import read_options
from service.http.problems import KINDS, MEDIA_TYPE, Problem
from service.http.routes import Explanation, Links, Styles
from service.http.tasks import TASKS, Task
from service.tasks.options import properties
from service.tasks.people import EnrollAnswer

TENSORS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
ANSWERS = {
    **{task.path: task.answer for task in TASKS if task.answer},
    "/models": Models,
    "POST /models": AddedModel,
    "dry_run /models": InspectedModel,
    "GET /models/{name}": ModelCard,
    "PATCH /models/{name}": ModelCard,
    "DELETE /models/{name}": RemovedModel,
    "/styles": Styles,
    "/health/live": Alive,
    "/health/ready": Ready,
    "/problems/{code}": Explanation,
    "/": Links,
    "POST /subjects/{subject}/faces": EnrollAnswer,
    "GET /subjects": Subjects,
    "GET /subjects/{subject}": FullSubject,
    "PATCH /subjects/{subject}": RenamedSubject,
    "DELETE /subjects/{subject}": ForgottenSubject,
    "DELETE /subjects/{subject}/faces/{face_id}": ForgottenFace,
}


@pytest.fixture(scope="module")
def document(make_engine: Any) -> dict[str, Any]:
    return create_app(make_engine()).app.openapi()


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{method.upper()} {path}": found for path, item in document["paths"].items() for method, found in item.items()}


def walk(node: Any) -> Any:
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def test_every_path_of_the_contract_is_there(document: dict[str, Any]) -> None:
    assert set(operations(document)) == {
        "POST /classify",
        "POST /detect",
        "DELETE /api/v1/recognition/faces",
        "DELETE /api/v1/recognition/faces/{image_id}",
        "DELETE /api/v1/recognition/subjects",
        "DELETE /api/v1/recognition/subjects/{subject}",
        "GET /api/v1/recognition/faces",
        "GET /api/v1/recognition/subjects",
        "GET /api/v1/recognition/subjects/",
        "POST /api/v1/detection/detect",
        "POST /api/v1/recognition/faces",
        "POST /api/v1/recognition/faces/delete",
        "POST /api/v1/recognition/faces/{image_id}/verify",
        "POST /api/v1/recognition/recognize",
        "POST /api/v1/recognition/subjects",
        "POST /api/v1/verification/verify",
        "PUT /api/v1/recognition/subjects/{subject}",
        "POST /detect-faces",
        "POST /verify-face",
        "POST /stylize",
        "POST /identify",
        "POST /subjects/{subject}/faces",
        "GET /subjects",
        "GET /subjects/{subject}",
        "PATCH /subjects/{subject}",
        "DELETE /subjects/{subject}",
        "DELETE /subjects/{subject}/faces/{face_id}",
        "GET /models",
        "POST /models",
        "GET /models/{name}",
        "PATCH /models/{name}",
        "DELETE /models/{name}",
        "GET /styles",
        "GET /styles/{name}/thumbnail.jpg",
        "GET /health/live",
        "GET /health/ready",
        "GET /metrics",
        "GET /problems/{code}",
        "GET /",
        "GET /v2",
        "GET /v2/health/live",
        "GET /v2/health/ready",
        *(f"GET {model}{end}" for model in TENSORS for end in ("", "/ready", "/config")),
        *(f"POST {model}/infer" for model in TENSORS),
        "POST /v2/repository/index",
        *(f"POST /v2/repository/models/{{model}}/{do}" for do in ("load", "unload")),
        *(f"POST /v1/vision/{name}" for name in ("detection", "custom/{model}", "custom/list", "scene", "face")),
        *(f"POST /v1/vision/face/{name}" for name in ("match", "recognize", "register", "list", "delete")),
        "GET /v1/vision/custom/list",
        *(f"GET /v1{place}/status/{name}" for place in ("", "/server") for name in ("ping", "version", "updateavailable")),
    }
    assert document["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = {node["$ref"] for node in walk(document) if isinstance(node, dict) and "$ref" in node}
    assert "#/components/schemas/Problem" in references
    for reference in references:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
        assert "type" in node or "enum" in node or "anyOf" in node, reference


def test_operation_ids_and_parameters_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(ids) == len(set(ids))
    for path, operation in operations(document).items():
        given = [(parameter["name"], parameter["in"]) for parameter in operation.get("parameters", [])]
        assert len(given) == len(set(given)), path
        assert {name for name, where in given if where == "path"} == set(re.findall(r"{(\w+)}", path)), path


def test_every_body_and_answer_has_an_example(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert operation["summary"]
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        assert bool(bodies) is name.startswith(("POST", "PATCH", "PUT"))
        for answer in (*bodies, *operation["responses"].values()):
            assert answer["content"], name
            for media, content in answer["content"].items():
                assert content["schema"], (name, media)
                assert content["examples"], (name, media)
        assert "200" in operation["responses"]
        assert all("X-Request-ID" in answer["headers"] for status, answer in operation["responses"].items() if status > "201")


def test_every_error_code_has_an_example_that_is_a_problem(document: dict[str, Any]) -> None:
    found: set[str] = set()
    for operation in operations(document).values():
        for status, answer in operation["responses"].items():
            if status in ("200", "201"):
                continue
            (media,) = answer["content"]
            assert media == "application/problem+json"
            for code, example in answer["content"][media]["examples"].items():
                problem = Problem.model_validate(example["value"])
                assert (problem.code, problem.status) == (code, int(status))
                found.add(code)
    # never met as such, or not of one operation
    general = {"busy", "input_invalid", "method_unsupported", "request_malformed", "headers_too_large"}
    assert found | general == {cls.code for cls in KINDS}
    (explained,) = document["paths"]["/problems/{code}"]["get"]["parameters"]
    assert set(explained["schema"]["enum"]) == {cls.code for cls in KINDS}


def test_each_class_of_error_has_one_sample() -> None:
    assert len({type(sample) for sample in examples.ERRORS}) == len(examples.ERRORS)
    raised = {cls for task in TASKS for cls in (*ANY_TASK, *task.errors)}
    assert raised <= {type(sample) for sample in examples.ERRORS}


@pytest.mark.parametrize("path", ANSWERS)
def test_the_answers_are_true_to_their_models(path: str) -> None:
    answer = ANSWERS[path].model_validate(examples.ANSWERS[path])
    dumped = answer.model_dump(mode="json")
    strict = TypeAdapter(ANSWERS[path]).validate_python(dumped)
    assert strict == answer
    assert set(dumped) == set(examples.ANSWERS[path])
    if path == "/models":
        assert set(examples.ANSWERS[path]["models"][0]) == set(ModelCard.model_fields)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.path)
def test_the_requests_are_true_to_their_options(task: Task[Any]) -> None:
    example = examples.REQUESTS[task.path]
    assert set(task.fields.required) <= set(example)
    read_options(task.options, [], [(name, value) for name, value in example.items() if name not in task.fields.names])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.path)
def test_the_example_requests_are_answered(task: Task[Any], client: TestClient, document: dict[str, Any]) -> None:
    content = document["paths"][task.path]["post"]["requestBody"]["content"]
    assert client.post(task.path, json=content["application/json"]["examples"]["json"]["value"]).status_code == 200
    form = content["multipart/form-data"]["examples"]["form"]["value"]
    image = client.post(task.path, json=examples.REQUESTS[task.path])
    texts = {name: str(value) for name, value in form.items() if name not in task.fields.names}
    photos = dict.fromkeys(task.fields.names, tiny_png())
    response = client.post(task.path, files=photos, data=texts)
    assert response.status_code == 200, response.text
    assert response.content == image.content


def tiny_png() -> bytes:
    import base64

    return base64.b64decode(examples.TINY_PNG.partition(",")[2])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.path)
def test_a_body_may_come_in_three_ways_with_every_option(task: Task[Any], document: dict[str, Any]) -> None:
    operation = document["paths"][task.path]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"} | ({"image/*"} if task.fields.raw else set())
    form, json = content["multipart/form-data"]["schema"], content["application/json"]["schema"]
    for schema in (form, json):
        assert list(schema["properties"]) == [*task.fields.names, *task.options.model_fields]
        assert schema["required"] == list(task.fields.required)
    for name in task.fields.names:
        assert form["properties"][name]["format"] == "binary"  # a file picker in Swagger UI
    query = {parameter["name"]: parameter for parameter in operation["parameters"] if parameter["in"] == "query"}
    assert set(query) == set(task.options.model_fields)
    for name, field in task.options.model_fields.items():
        assert form["properties"][name]["description"], (task.path, name)
        assert query[name]["description"]
        assert "default" not in query[name]["schema"]  # Swagger UI would send it in the query besides the form
        assert form["properties"][name]["default"] == ""  # else Swagger UI would make up a value
        if field.default is not None:
            for given in (form["properties"][name], query[name]):
                assert f"default: {str(field.default).lower()}" in given["description"]
        for bound in ("minimum", "maximum", "enum"):
            assert query[name]["schema"].get(bound) == properties(task.options)[name].get(bound)


def test_pictures_are_described_with_their_headers(document: dict[str, Any]) -> None:
    for path, offers in (("/detect", 4), ("/detect-faces", 4), ("/identify", 4), ("/stylize", 3), ("/classify", 4)):
        answer = document["paths"][path]["post"]["responses"]["200"]
        assert len(answer["content"]) == offers
        assert ("Server-Timing" in answer["headers"]) is (offers > 1)


def test_the_curl_lines_name_paths_that_exist() -> None:
    for path, text in examples.CURL.items():
        assert all(f"localhost:8000{path}" in line for line in text.splitlines())
    assert set(examples.CURL) == {task.path for task in TASKS}


def test_a_thumbnail_lists_what_painting_it_can_raise(document: dict[str, Any]) -> None:
    responses = document["paths"]["/styles/{name}/thumbnail.jpg"]["get"]["responses"]
    codes = {code for response in responses.values() for code in response["content"].get(MEDIA_TYPE, {}).get("examples", ())}
    refused = {"key_missing", "key_unknown", "scope_missing", "host_unknown"}  # see test_keys.py
    assert codes - refused == {"path_unknown", "queue_full", "not_ready", "deadline_exceeded", "inference_failed", "internal"}


def test_every_example_has_a_value(document: dict[str, Any]) -> None:
    """ReDoc shows an error page where one has none."""
    found = 0

    def walk(node: Any) -> None:
        nonlocal found
        if isinstance(node, dict):
            for example in node["examples"].values() if isinstance(node.get("examples"), dict) else ():
                assert "value" in example, example
                found += 1
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(document["paths"])
    assert found > 50
