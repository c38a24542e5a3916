import inspect
import json
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from service import errors
from service.http.problems import KINDS, Problem, describe, kind_of, respond

STATUSES = {
    "model_refused": 422,
    "model_unclear": 422,
    "model_exists": 409,
    "model_fixed": 409,
    "image_missing": 422,
    "not_an_image": 415,
    "image_damaged": 422,
    "image_too_small": 422,
    "too_many_pixels": 413,
    "body_too_large": 413,
    "body_malformed": 400,
    "media_type_unsupported": 415,
    "not_acceptable": 406,
    "option_invalid": 422,
    "model_unknown": 404,
    "style_unknown": 422,
    "job_unknown": 404,
    "job_unfinished": 409,
    "no_face": 422,
    "several_faces": 422,
    "face_too_small": 422,
    "face_blurred": 422,
    "enrollment_refused": 422,
    "subject_unknown": 404,
    "face_unknown": 404,
    "subject_exists": 409,
    "gallery_unavailable": 503,
    "gallery_mismatch": 503,
    "key_missing": 401,
    "key_unknown": 401,
    "scope_missing": 403,
    "cross_site": 403,
    "host_unknown": 403,
    "input_invalid": 400,
    "path_unknown": 404,
    "method_unsupported": 405,
    "request_malformed": 400,
    "headers_too_large": 431,
    "request_timeout": 408,
    "queue_full": 503,
    "queue_timeout": 503,
    "deadline_exceeded": 504,
    "not_ready": 503,
    "busy": 503,
    "inference_failed": 500,
    "internal": 500,
}


def test_codes_and_statuses_are_stable() -> None:
    assert {cls.code: kind.status for cls, kind in KINDS.items()} == STATUSES


def test_every_error_that_a_request_can_meet_is_in_the_table() -> None:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.VisionError)]
    assert {cls for cls in classes if not issubclass(cls, errors.SetupError)} <= set(KINDS)


@pytest.mark.parametrize(
    "error", [errors.SetupError("/etc/secret"), errors.FetchFailed("/etc/secret"), errors.InferenceFailed("/etc/secret")]
)
def test_faults_of_the_service_keep_their_message_from_clients(error: errors.VisionError) -> None:
    problem = describe(error, instance="/x", request_id="abc")
    assert problem.status == 500
    assert problem.request_id == "abc"
    assert "secret" not in problem.model_dump_json()


def test_an_error_shows_its_own_attributes() -> None:
    several = describe(errors.SeveralFaces("image1", 3), instance="/x")
    assert (several.photo, several.count, several.option) == ("image1", 3, None)
    unknown = describe(errors.ModelUnknown("a", ["b", "c"]), instance="/x")
    assert unknown.known == ["b", "c"]


@pytest.mark.parametrize("kind", [errors.ModelUnknown, errors.StyleUnknown])
def test_a_long_name_is_not_echoed_whole(kind: type[errors.VisionError]) -> None:
    problem = describe(kind("x" * 60_000, ["a"]), instance="/x")
    assert len(problem.model_dump_json()) < 500
    assert problem.known == ["a"]


def test_a_subclass_is_told_as_its_class() -> None:
    class Odd(errors.NoFace):
        pass

    assert kind_of(Odd)[0] is errors.NoFace
    assert kind_of(errors.VisionError("x"))[0] is errors.VisionError


def test_text_that_utf8_cannot_carry_is_sent_all_the_same() -> None:
    response = respond(errors.OptionInvalid("\ud800", "no option '\ud800'"), {"type": "http", "path": "/x"})
    assert json.loads(bytes(response.body))["detail"] == "no option '?'"


@pytest.mark.parametrize(("seconds", "header"), [(1.0, "1"), (2.3, "3")])
def test_busy_says_when_to_come_back(seconds: float, header: str) -> None:
    response = respond(errors.QueueFull("full", retry_after=seconds), {"type": "http", "path": "/x"})
    assert response.headers["retry-after"] == header
    assert json.loads(bytes(response.body))["retry_after"] == seconds


def with_route(app: FastAPI, endpoint: Any) -> TestClient:
    app.add_api_route("/added", endpoint, methods=["GET"])
    return TestClient(app, raise_server_exceptions=False)


def test_what_nobody_expected_is_told_without_its_inside(fake: Any, open_client: Any, caplog: pytest.LogCaptureFixture) -> None:
    def endpoint() -> None:
        raise ZeroDivisionError("secret inside")

    response = with_route(open_client(fake).app.app, endpoint).get("/added", headers={"x-request-id": "me-1"})
    assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
    assert response.json() | {"detail": ""} == {
        "type": "/problems/internal",
        "title": errors.VisionError.title,
        "status": 500,
        "detail": "",
        "instance": "/added",
        "code": "internal",
        "request_id": "me-1",
    }
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    logged = [record for record in caplog.records if record.exc_info]
    assert len(logged) == 1
    assert logged[0].request_id == "me-1"  # type: ignore[attr-defined]


def test_a_failed_model_is_logged_with_its_cause(
    fake: Any, open_client: Any, jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise errors.InferenceFailed("tensor 7 is broken")

    fake.before = fail
    response = open_client(fake).post("/classify", files={"image": jpeg})
    assert (response.status_code, response.json()["code"]) == (500, "inference_failed")
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "tensor 7" not in response.text
    assert "tensor 7" in caplog.text


def test_a_validation_error_of_fastapi_is_a_problem(fake: Any, open_client: Any) -> None:
    def endpoint(size: int) -> int:
        return size

    response = with_route(open_client(fake).app.app, endpoint).get("/added?size=big")
    assert (response.status_code, response.json()["code"], response.json()["option"]) == (422, "option_invalid", "size")


@pytest.mark.parametrize(("status", "expected"), [(418, 400), (404, 404), (503, 500)])
def test_any_http_exception_is_a_problem(fake: Any, open_client: Any, status: int, expected: int) -> None:
    def endpoint() -> None:
        raise HTTPException(status)

    response = with_route(open_client(fake).app.app, endpoint).get("/added")
    assert response.status_code == expected
    Problem.model_validate(response.json())
