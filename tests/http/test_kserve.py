"""The Open Inference Protocol through Triton's own client, against a server that listens."""

import asyncio
import gzip
import json
import re
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import gevent
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from service import __version__
from service.engine import Engine
from service.errors import FetchFailed, InferenceFailed, InputError, NotReady, QueueFull
from service.fleet import Fleet
from service.http.app import create_app
from service.http.kserve import check_sizes
from service.http.listening import listen
from service.http.server import Server
from service.http.tensors import MAX_BATCH
from service.loaded import LoadedModel
from service.photo import open_photo
from service.repository.progress import Silent
from service.repository.store import scan
from service.runtime.scheduler import Lane
from service.runtime.session import FakeSession, TensorInfo, Tensors
from service.runtime.tuning import Plan, Tuning
from service.settings import Settings
from service.tasks.classify import ClassifyOptions, classify
from service.tasks.detect import DetectOptions, detect
from service.tasks.stylize import StylizeOptions, stylize
from service.tasks.task import Timing

Array = np.ndarray[Any, np.dtype[Any]]
NAME = "efficientnet-lite0"
PAGE = Path(__file__).parents[2] / "docs" / "protocols-kserve.md"
USER, MANAGER = "u" * 20, "m" * 20


# The real models.


@pytest.fixture(scope="module")
def real() -> Iterator[tuple[Engine, int]]:
    """An engine of its own, for models come and go, and the port where it is served."""
    names = "efficientnet-lite0,yolov3-tiny,multistyle26"
    engine = Engine(Settings(device="cpu", precision="float", tune=False, models=names, shutdown_seconds=2), progress=Silent())
    server = Server(create_app(engine, give_up=pytest.fail), engine.settings, listen("127.0.0.1", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not (server.started and engine.ready) and time.monotonic() < end:
            thread.join(0.01)
        yield engine, server.port
    finally:
        server.stop()
        thread.join(10)


@pytest.fixture
def client(real: tuple[Engine, int]) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{real[1]}", concurrency=4) as client:
        yield client


def kind_of(tensor: Array) -> str:
    return {"uint8": "UINT8", "float32": "FP32"}[tensor.dtype.name]


def given(feeds: Tensors, module: Any = triton, *, binary: bool = True) -> list[Any]:
    """`feeds` as the client's inputs."""
    inputs = []
    for name, tensor in feeds.items():
        inputs.append(module.InferInput(name, list(tensor.shape), kind_of(tensor)))
        inputs[-1].set_data_from_numpy(tensor, binary_data=binary)
    return inputs


@dataclass
class Remote:
    """A model as tasks see one, which runs behind the protocol."""

    client: triton.InferenceServerClient
    local: LoadedModel

    @property
    def spec(self) -> Any:
        return self.local.spec

    @property
    def labels(self) -> tuple[str, ...]:
        return self.local.labels

    def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> dict[str, Array]:
        assert graph == "model"
        result = self.client.infer(self.spec.name, given(feeds))
        return {one["name"]: result.as_numpy(one["name"]) for one in result.get_response()["outputs"]}


def test_the_server_and_its_models_are_told(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    server = client.get_server_metadata()
    assert (server["name"], server["version"]) == ("vision-service", __version__)
    assert {"binary_tensor_data", "classification", "model_repository"} <= set(server["extensions"])
    told = client.get_model_metadata("yolov3-tiny")
    assert told["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert told["outputs"][1] == {"name": "scores", "datatype": "FP32", "shape": [-1, -1, 80]}
    for version in ("1", *told["versions"]):
        assert client.get_model_metadata("yolov3-tiny", version) == told
        assert client.is_model_ready("yolov3-tiny", version)
    config = client.get_model_config(NAME)
    assert config["input"] == [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": [224, 224, 3]}]
    assert config["max_batch_size"] == MAX_BATCH
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready(NAME, "7")


def test_raw_answers_are_those_of_the_tasks(
    real: tuple[Engine, int], client: triton.InferenceServerClient, photo: Callable[[str], Array]
) -> None:
    engine, pixels = real[0], photo("chelsea")
    classes = classify(pixels, ClassifyOptions(), Remote(client, engine.load(NAME)), Timing())
    assert classes == engine.classify(pixels).predictions
    assert "cat" in classes[0].label
    pixels = photo("coffee")
    objects = detect(pixels, DetectOptions(), Remote(client, engine.load("yolov3-tiny")), Timing())
    assert objects == engine.detect(pixels).predictions
    assert "cup" in {item.label for item in objects}
    small = open_photo(pixels, engine.settings).pixels[:160, :240]
    options = StylizeOptions(style=engine.styles()[0].name)
    painted = stylize(small, options, None, Remote(client, engine.load("multistyle26")), Timing(), 2048)
    assert np.array_equal(painted, engine.stylize(small, options).pixels)


@pytest.fixture(scope="module")
def squares() -> Array:
    """Four pictures as the classifier takes them, in blocks of colour."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (4, 7, 7, 3), np.uint8).repeat(32, axis=1).repeat(32, axis=2)


@pytest.fixture(scope="module")
def logits(real: tuple[Engine, int], squares: Array) -> Array:
    """What the graph says to each by itself."""
    run = real[0].load(NAME).sessions["model"].run
    return np.concatenate([run({"pixels": square[None]})["logits"] for square in squares])


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize(("sent", "asked"), [(True, True), (True, False), (False, True), (False, False)])
def test_json_bytes_and_packed_bodies_say_the_same(
    client: triton.InferenceServerClient, squares: Array, logits: Array, sent: bool, asked: bool, packed: str | None
) -> None:
    result = client.infer(
        NAME,
        given({"pixels": squares[:1]}, binary=sent),
        outputs=[triton.InferRequestedOutput("logits", binary_data=asked)],
        request_id="the 7th",
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )
    assert np.array_equal(result.as_numpy("logits"), logits[:1])
    told = result.get_response()
    assert (told["id"], told["model_name"]) == ("the 7th", NAME)
    assert ("data" in told["outputs"][0]) is not asked


def test_a_batch_is_answered_as_its_pictures_by_themselves(
    client: triton.InferenceServerClient, squares: Array, logits: Array
) -> None:
    assert np.array_equal(client.infer(NAME, given({"pixels": squares}), model_version="1").as_numpy("logits"), logits)


def test_classes_come_with_their_labels(
    real: tuple[Engine, int], client: triton.InferenceServerClient, squares: Array, logits: Array
) -> None:
    best = logits[0].argmax()
    expected = f"{logits[0][best]:f}:{best}:{real[0].load(NAME).labels[best]}"
    for binary in (True, False):
        asked = [triton.InferRequestedOutput("logits", binary_data=binary, class_count=3)]
        found = client.infer(NAME, given({"pixels": squares[:2]}), outputs=asked).as_numpy("logits")
        assert found.shape == (2, 3)
        assert (found[0][0].decode() if binary else found[0][0]) == expected


def test_only_the_outputs_asked_for_are_answered(client: triton.InferenceServerClient) -> None:
    asked = [triton.InferRequestedOutput("scores")]
    result = client.infer("yolov3-tiny", given({"pixels": np.zeros((2, 64, 96, 3), np.uint8)}), outputs=asked)
    assert [(one["name"], one["shape"]) for one in result.get_response()["outputs"]] == [("scores", [2, 90, 80])]


def test_several_requests_are_in_flight(client: triton.InferenceServerClient, squares: Array, logits: Array) -> None:
    waiting = [client.async_infer(NAME, given({"pixels": squares[i % 4][None]}), request_id=str(i)) for i in range(12)]
    for i, one in enumerate(waiting):
        result = one.get_result()
        assert result.get_response()["id"] == str(i)
        assert np.array_equal(result.as_numpy("logits"), logits[i % 4][None])


def test_the_asynchronous_client_does_all_that_too(real: tuple[Engine, int], squares: Array, logits: Array) -> None:
    async def talk() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{real[1]}") as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata(NAME))["name"] == NAME
            assert len(await client.get_model_repository_index()) == 3
            jobs = [
                client.infer(
                    NAME,
                    given({"pixels": squares[i % 4][None]}, triton_aio, binary=i % 2 == 0),
                    request_compression_algorithm=(None, "gzip", "deflate")[i % 3],
                    response_compression_algorithm=(None, "deflate", "gzip")[i % 3],
                )
                for i in range(8)
            ]
            for i, result in enumerate(await asyncio.gather(*jobs)):
                assert np.array_equal(result.as_numpy("logits"), logits[i % 4][None])
            with pytest.raises(InferenceServerException, match="there is no model 'nope'"):
                await client.infer("nope", given({"pixels": squares[:1]}, triton_aio))

    asyncio.run(talk())


def test_a_model_is_unloaded_and_loaded_again(real: tuple[Engine, int], client: triton.InferenceServerClient) -> None:
    def index() -> dict[str, str]:
        return {row["name"]: row["state"] for row in client.get_model_repository_index()}

    pixels = given({"pixels": np.zeros((1, 32, 32, 3), np.uint8)})
    before = index()
    assert before == {NAME: "READY", "yolov3-tiny": "READY", "multistyle26": "READY"}
    client.unload_model("yolov3-tiny")
    assert index() == before | {"yolov3-tiny": "UNAVAILABLE"}
    status, ready, _ = post(real[1], "/v2/repository/index", b'{"ready": true}')
    assert (status, {row["name"] for row in ready}) == (200, {NAME, "multistyle26"})
    assert not client.is_model_ready("yolov3-tiny")
    with pytest.raises(InferenceServerException, match=r"\[503\] the model 'yolov3-tiny' is not ready: unloaded"):
        client.infer("yolov3-tiny", pixels)
    client.load_model("yolov3-tiny")
    client.load_model("yolov3-tiny")  # nothing to do
    assert index() == before
    assert client.infer("yolov3-tiny", pixels).as_numpy("boxes").shape == (1, 15, 4)
    with pytest.raises(InferenceServerException, match=r"\[400\] 'config' is not taken"):
        client.load_model("yolov3-tiny", config="{}")
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match=r"\[404\] there is no model 'nope'"):
            change("nope")


def test_a_painting_by_an_unloaded_model_waits_for_it(real: tuple[Engine, int], client: triton.InferenceServerClient) -> None:
    client.unload_model("multistyle26")
    try:
        with pytest.raises(NotReady, match="'multistyle26' was unloaded"):
            real[0].stylize(np.zeros((64, 64, 3), np.uint8), style="ink-wash")
    finally:
        client.load_model("multistyle26")


def test_the_others_are_served_while_a_model_is_loaded(real: tuple[Engine, int], client: triton.InferenceServerClient) -> None:
    client.unload_model("yolov3-tiny")
    loading = threading.Thread(target=post, args=(real[1], "/v2/repository/models/yolov3-tiny/load", b""))
    loading.start()
    found = {client.is_server_ready()}
    while loading.is_alive():
        found.add(client.is_server_ready())
    loading.join()
    assert found == {True}
    assert client.is_model_ready("yolov3-tiny")


PIXELS = np.zeros((1, 224, 224, 3), np.uint8)


@pytest.mark.parametrize(
    ("model", "feeds", "told"),
    [
        ("nope", {"pixels": PIXELS}, "[404] there is no model 'nope'"),
        (NAME, {"image": PIXELS}, "[400] there is no input 'image'"),
        (NAME, {"pixels": PIXELS.astype(np.float32)}, "[400] the input 'pixels' is UINT8, not 'FP32'"),
        (NAME, {"pixels": PIXELS[:, :-1]}, "[400] the input 'pixels' has the shape [1, 223, 224, 3]"),
        (NAME, {"pixels": PIXELS[0]}, "[400] the input 'pixels' has the shape [224, 224, 3]"),
        (NAME, {"pixels": PIXELS, "style": np.zeros((1, 2), np.float32)}, "[400] there is no input 'style'"),
        (NAME, {"pixels": PIXELS.repeat(MAX_BATCH + 1, 0)}, f"[400] the input 'pixels' has a batch of {MAX_BATCH + 1}"),
        ("yolov3-tiny", {"pixels": PIXELS[:, :200]}, "[400] the input 'pixels' is 200 x 224 pixels, but both sides"),
        ("yolov3-tiny", {"pixels": np.zeros((1, 32, 32768, 3), np.uint8)}, "[400] the input 'pixels' is 32 x 32768 pixels"),
        ("multistyle26", {"pixels": PIXELS}, "[400] the input 'style' is missing"),
        (
            "multistyle26",
            {"pixels": PIXELS[:, :4, :4], "style": np.zeros((1, 26), np.float32)},
            "[400] multistyle26 cannot be run on",
        ),
    ],
)
def test_what_cannot_be_run_is_the_callers_error(
    client: triton.InferenceServerClient, capfd: Any, model: str, feeds: Tensors, told: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, given(feeds))
    assert str(caught.value).startswith(told)


def test_other_calls_of_the_client_are_answered_in_the_protocols_own_words(client: triton.InferenceServerClient) -> None:
    calls: list[Callable[[], object]] = [
        client.get_inference_statistics,
        lambda: client.get_inference_statistics(NAME),
        client.get_log_settings,
        client.get_trace_settings,
        client.get_system_shared_memory_status,
        lambda: client.get_model_metadata(NAME, "7"),
    ]
    for call in calls:
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "404"


def post(port: int, path: str, body: bytes | None, method: str = "POST", **headers: str) -> tuple[int, Any, dict[str, str]]:
    """For what the client would not send: the status, the JSON and the headers."""
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, asked, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(answer.headers["content-encoding"], bytes)
            return answer.status, json.loads(unpack(answer.read())), dict(answer.headers)
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), dict(error.headers)


def test_bodies_that_are_not_what_they_say_are_refused(real: tuple[Engine, int]) -> None:
    path = f"/v2/models/{NAME}/infer"
    asked = {"name": "pixels", "shape": [1, 224, 224, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 9}}
    header = json.dumps({"inputs": [asked]}).encode()
    length = {"Inference_Header_Content_Length": str(len(header))}
    bomb = gzip.compress(bytes(real[0].settings.max_body_bytes + 1))
    cases: list[tuple[bytes, dict[str, str], int, str]] = [
        (b"", {}, 400, "not valid JSON"),
        (b"{", {}, 400, "not valid JSON"),
        (header + b"123456789", length, 400, "has 9 bytes, but UINT8 [1, 224, 224, 3] needs 150528"),
        (header + b"1234", length, 400, "but 4 are left in the body"),
        (header, {"Inference_Header_Content_Length": "100000"}, 400, "but the body has"),
        (header, {"Inference_Header_Content_Length": "-1"}, 400, "is not a number"),
        (header, {"Content_Encoding": "gzip"}, 400, "is not gzip"),
        (gzip.compress(header)[:-4], {"Content_Encoding": "gzip"}, 400, "does not end where"),
        (gzip.compress(header) + b"more", {"Content_Encoding": "gzip"}, 400, "does not end where"),
        (bomb, {"Content_Encoding": "gzip"}, 413, "the unpacked body has more than"),
        (header, {"Content_Encoding": "br"}, 415, "gzip and deflate are taken"),
    ]
    for body, headers, status, told in cases:
        found = post(real[1], path, body, **headers)
        assert (found[0], set(found[1])) == (status, {"error"}), found
        assert told in found[1]["error"]
    assert post(real[1], "/v2/nope", b"")[:2][0] == 404
    wrong = post(real[1], path, b"", method="DELETE")
    assert (wrong[0], set(wrong[1])) == (405, {"error"})
    assert "POST" in wrong[2]["allow"]
    assert post(real[1], "/v2/repository/index", b"[")[0] == 400


def test_the_answer_is_packed_only_where_that_is_asked_for(real: tuple[Engine, int]) -> None:
    path = f"/v2/models/{NAME}/infer"
    body = json.dumps({"inputs": [{"name": "pixels", "shape": PIXELS.shape, "datatype": "UINT8", "data": PIXELS.ravel().tolist()}]})
    for accepted, coding in (
        ("gzip, deflate, br", None),
        ("*", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("Deflate", "deflate"),
    ):
        status, answer, headers = post(real[1], path, body.encode(), Accept_Encoding=accepted)
        assert (status, headers.get("content-encoding"), headers["vary"]) == (200, coding, "Accept-Encoding")
        assert answer["outputs"][0]["shape"] == [1, 1000]


def blocks(kind: str) -> list[str]:
    """The examples in the documentation."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_snippet_runs(real: tuple[Engine, int], capsys: Any) -> None:
    (code,) = blocks("python")
    exec(code.replace("localhost:8000", f"127.0.0.1:{real[1]}"), {})
    first, *_, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("(1, 1000)", "8")


def test_the_documented_curl_lines_are_answered(real: tuple[Engine, int]) -> None:
    found = re.findall(r"curl (-X POST )?localhost:8000(\S+)(?: -d '(.*)')?( --json)?", blocks("sh")[1])
    assert len(found) == 11
    tensor = {"name": "pixels", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [0] * 3072}
    for post_it, path, data, piped in found:
        body = json.dumps({"inputs": [tensor]}) if piped else data
        assert post(real[1], path, body.encode(), "POST" if post_it or body else "GET")[0] == 200, path


# Models that do as a test says.


def fake_model(run: Callable[[Tensors], dict[str, Array]], batch: int = 1, like: str = NAME) -> LoadedModel:
    """A model of 1000 logits, which `run` gives, with the manifest of a real one."""
    inputs = (TensorInfo("pixels", ("n", 224, 224, 3), "tensor(uint8)"),)
    session = FakeSession(run, inputs, (TensorInfo("logits", ("n", 1000), "tensor(float)"),))
    lane = Lane(NAME, lambda graph, feeds: run(feeds), workers=1, queue_length=64, max_batch=batch)
    spec = scan(Settings())[like]
    tuning = Tuning(plan=Plan(batch=batch), source="default")
    return LoadedModel(spec, {"model": session}, "d" * 64, lane, tuning=tuning, warm=True)


def constant(value: int) -> Array:
    return np.full((1, 224, 224, 3), value, np.uint8)


def class_of_first_pixel(feeds: Tensors) -> dict[str, Array]:
    """A thousand logits, of which the one that the first pixel names is the largest."""
    pixels = feeds["pixels"]
    found = np.zeros((len(pixels), 1000), np.float32)
    found[range(len(pixels)), pixels[:, 0, 0, 0]] = 9
    return {"logits": found}


def go_on_until(condition: Callable[[], bool]) -> None:
    """Let the client's greenlets work until `condition` holds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        gevent.sleep(0.005)


def test_requests_ride_in_the_batches_of_everybody_else(serve: Any, make_picture: Any) -> None:
    batches, go = list[int](), threading.Event()

    def run(feeds: Tensors) -> dict[str, Array]:
        batches.append(len(feeds["pixels"]))
        assert go.wait(10)
        return class_of_first_pixel(feeds)

    model = fake_model(run, batch=8)
    port = serve(Engine(Settings(cores=2), models={NAME: model}))
    with triton.InferenceServerClient(f"127.0.0.1:{port}", concurrency=4) as client:
        first = client.async_infer(NAME, given({"pixels": constant(1)}))
        go_on_until(lambda: batches == [1])
        others = [client.async_infer(NAME, given({"pixels": constant(value)})) for value in (2, 3)]
        answers: list[Any] = []
        picture = {"Content_Type": "image/png"}
        task = threading.Thread(target=lambda: answers.append(post(port, "/classify", make_picture("PNG"), **picture)))
        task.start()
        go_on_until(lambda: len(model.lane._jobs) == 3)
        go.set()
        task.join(10)
        assert [int(one.get_result().as_numpy("logits").argmax()) for one in (first, *others)] == [1, 2, 3]
    assert batches == [1, 3]
    assert answers[0][0] == 200
    assert answers[0][1]["predictions"][0]["confidence"] > 0.8


def test_a_wrong_tensor_never_reaches_the_batch(serve: Any) -> None:
    seen = list[int]()

    def run(feeds: Tensors) -> dict[str, Array]:
        seen.append(len(feeds["pixels"]))
        return class_of_first_pixel(feeds)

    port = serve(Engine(Settings(), models={NAME: fake_model(run)}))
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        for wrong in (constant(1)[:, 1:], constant(1).astype(np.float32), np.zeros((1, 3), np.uint8)):
            with pytest.raises(InferenceServerException):
                client.infer(NAME, given({"pixels": wrong}))
        assert seen == []
        assert client.infer(NAME, given({"pixels": constant(5).repeat(3, 0)})).as_numpy("logits").argmax(1).tolist() == [5, 5, 5]
        assert seen == [1, 1, 1]


def test_painters_run_on_threads_that_give_way(serve: Any) -> None:
    threads = list[str]()

    def run(feeds: Tensors) -> dict[str, Array]:
        threads.append(threading.current_thread().name.partition("-")[0])
        return class_of_first_pixel(feeds)

    models = {name: fake_model(run, like=name) for name in (NAME, "multistyle26")}
    with triton.InferenceServerClient(f"127.0.0.1:{serve(Engine(Settings(), models=models))}") as client:
        for name in models:
            client.infer(name, given({"pixels": PIXELS}))
    assert threads == ["quick", "nice"]


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (QueueFull("too many wait", retry_after=3), 503, "too many wait"),
        (InferenceFailed("secret of the graph"), 500, "request id"),
        (ZeroDivisionError("secret of the code"), 500, "request id"),
    ],
)
def test_faults_of_the_service_are_told_as_such(serve: Any, error: Exception, status: int, told: str) -> None:
    def run(_: Tensors) -> dict[str, Array]:
        raise error

    port = serve(Engine(Settings(), models={NAME: fake_model(run)}))
    asked = {"name": "pixels", "shape": PIXELS.shape, "datatype": "UINT8", "data": PIXELS.ravel().tolist()}
    found = post(port, f"/v2/models/{NAME}/infer", json.dumps({"inputs": [asked]}).encode())
    assert (found[0], set(found[1])) == (status, {"error"})
    assert told in found[1]["error"]
    assert "secret" not in found[1]["error"]
    assert found[2].get("retry-after") == ("3" if status == 503 else None)


def test_the_callers_own_time_limit_holds(serve: Any) -> None:
    port = serve(Engine(Settings(), models={NAME: fake_model(class_of_first_pixel)}))
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.infer(NAME, given({"pixels": PIXELS}), timeout=60_000_000).get_response()["model_name"] == NAME
        with pytest.raises(InferenceServerException, match=r"\[504\]"):
            client.infer(NAME, given({"pixels": PIXELS}), timeout=1)


class Failing(Fleet):
    """A fleet one of whose models has no source that answers."""

    def load(self, name: str) -> LoadedModel:
        raise FetchFailed("no source answers")


def test_why_a_model_cannot_be_loaded_is_told(serve: Any) -> None:
    engine = Engine(Settings(), models={NAME: fake_model(class_of_first_pixel)})
    engine.fleet = Failing(engine.settings, Silent(), {NAME: fake_model(class_of_first_pixel)})
    told = rf"\[400\] failed to load '{NAME}': no source answers"
    with triton.InferenceServerClient(f"127.0.0.1:{serve(engine)}") as client, pytest.raises(InferenceServerException, match=told):
        client.load_model(NAME)


def test_a_service_that_is_not_ready_says_so(make_engine: Any, open_client: Any) -> None:
    engine = make_engine()
    client = open_client(engine)
    engine.started.clear()
    found = client.get("/v2/health/ready")
    assert (found.status_code, set(found.json())) == (503, {"error"})
    assert found.headers["retry-after"]
    assert client.get("/v2/health/live").json() == {"live": True}


def test_keys_are_asked_for_by_scope(serve: Any) -> None:
    settings = Settings(api_keys=f"web:use:{USER},office:manage:{MANAGER}")
    port = serve(Engine(settings, models={NAME: fake_model(class_of_first_pixel)}))
    use, manage = {"X-API-Key": USER}, {"Authorization": f"Bearer {MANAGER}"}
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.get_server_metadata()["name"] == "vision-service"
        assert client.infer(NAME, given({"pixels": PIXELS}), headers=dict(use)).as_numpy("logits").shape == (1, 1000)
        assert client.get_model_repository_index(headers=dict(manage))[0]["state"] == "READY"
        for call, status in (
            (lambda: client.get_model_metadata(NAME), "401"),
            (lambda: client.infer(NAME, given({"pixels": PIXELS})), "401"),
            (lambda: client.infer(NAME, given({"pixels": PIXELS}), headers=dict(manage)), "403"),
            (lambda: client.get_model_repository_index(headers=dict(use)), "403"),
            (lambda: client.unload_model(NAME, headers=dict(use)), "403"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                call()
            assert caught.value.status() == status
            assert caught.value.message()
        assert client.is_model_ready(NAME, headers=dict(use))


def test_the_protocol_can_be_switched_off(make_engine: Any, open_client: Any) -> None:
    found = open_client(make_engine(protocols="none")).get("/v2/health/live")
    assert (found.status_code, found.json()["code"]) == (404, "path_unknown")


def test_every_picture_that_goes_in_is_bounded() -> None:
    spec = scan(Settings())["magenta-arbitrary"]
    small, huge = np.zeros((1, 64, 64, 3), np.uint8), np.broadcast_to(np.uint8(0), (1, 8192, 8192, 3))
    check_sizes({"pixels": small, "style_pixels": small}, spec)
    with pytest.raises(InputError, match="'style_pixels' is 8192 x 8192"):
        check_sizes({"pixels": small, "style_pixels": huge}, spec)


def test_a_backbone_s_float_picture_is_bounded_too() -> None:
    spec = scan(Settings())["vgg16-hed"]
    check_sizes(
        {"picture": np.zeros((1, 3, 1024, 1024), np.float32), "content/conv4_2": np.zeros((1, 512, 128, 128), np.float32)}, spec
    )
    with pytest.raises(InputError, match="the input 'picture' is 2048 x 1024 pixels"):
        check_sizes({"picture": np.zeros((1, 3, 2048, 1024), np.float32)}, spec)
