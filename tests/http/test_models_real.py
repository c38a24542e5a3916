"""Models come and go over HTTP, with the real fleet: what is added answers, and what is bad changes nothing."""

import io
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from starlette.testclient import TestClient

from service.engine import Engine
from service.http.app import create_app
from service.settings import Settings

COLOURS = "red,green,blue"
SAID = {"name": "colours", "labels": COLOURS, "preprocess": "unit", "task": "classify", "resize": "stretch"}


def network(*order: int) -> bytes:
    """A classifier of pictures of 16 x 16 pixels: ten times the mean of each channel, in this order."""
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32)[list(order)] * 10, "weight")
    nodes = [
        helper.make_node("GlobalAveragePool", ["picture"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
    ]
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(nodes, "colours", [picture], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    settings = Settings(
        device="cpu",
        precision="float",
        tune=False,
        models=("efficientnet-lite0",),
        data_dir=tmp_path_factory.mktemp("data"),
        reload_seconds=0,
    )
    with Engine(settings) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    """The application on the engine that runs already, which it leaves running."""
    app = create_app(engine, give_up=pytest.fail)
    client = TestClient(app)  # not entered: the engine is started and closed by its own fixture
    yield client
    for name in set(engine.fleet.names()) - {"efficientnet-lite0"}:
        client.delete(f"/models/{name}")


@pytest.fixture(scope="module")
def red() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (250, 30, 60)).save(file, "PNG")
    return file.getvalue()


def add(client: TestClient, model: bytes, **said: str) -> Any:
    return client.post("/models", files={"file": ("colours.onnx", model)}, data=SAID | said)


def best(client: TestClient, picture: bytes, model: str | None = "colours") -> str:
    data = {} if model is None else {"model": model}
    answer = client.post("/classify", files={"image": picture}, data=data)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["predictions"][0]["label"])


def test_a_model_comes_changes_and_goes(client: TestClient, engine: Engine, red: bytes) -> None:
    answer = add(client, network(0, 1, 2))
    assert answer.status_code == 201, answer.text
    assert (answer.json()["model"]["task"], answer.json()["model"]["classes"]) == ("classify", 3)
    assert any("colours.onnx" in fact for fact in answer.json()["facts"])
    assert best(client, red) == "red"
    assert add(client, network(2, 1, 0)).json()["code"] == "model_exists"
    assert add(client, network(2, 1, 0), replace="true").status_code == 201
    assert best(client, red) == "blue"
    assert client.patch("/models/colours", json={"scale": 1}).json()["summary"] == "colours: a classifier of 3 classes"
    changed = client.patch("/models/colours", json={"labels": "ruby,leaf,sky", "summary": "colours of things"})
    assert (changed.status_code, changed.json()["summary"]) == (200, "colours of things")
    assert best(client, red) == "sky"
    assert client.delete("/models/colours").json()["removed"] == "colours"
    gone = client.post("/classify", files={"image": red}, data={"model": "colours"})
    assert (gone.status_code, gone.json()["code"]) == (404, "model_unknown")
    assert list(engine.settings.data_folder.rglob("*.onnx")) == []


def test_a_bad_file_never_replaces_a_good_model(client: TestClient, red: bytes) -> None:
    assert add(client, network(0, 1, 2)).status_code == 201
    for bad in (b"xx", network(0, 1, 2)[:-40], network(0, 1)):
        answer = add(client, bad, replace="true")
        assert (answer.status_code, answer.json()["code"]) == (422, "model_refused"), answer.text
        assert best(client, red) == "red"


def test_what_the_file_does_not_tell_is_asked_for(client: TestClient) -> None:
    answer = client.post("/models", files={"file": ("colours.onnx", network(0, 1, 2))})
    assert (answer.status_code, answer.json()["code"]) == (422, "model_unclear")
    assert "preprocess" in answer.json()["missing"]
    assert [card["name"] for card in client.get("/models").json()["models"]] == ["efficientnet-lite0"]


def test_one_added_model_is_the_default(client: TestClient, engine: Engine, red: bytes) -> None:
    assert add(client, network(0, 1, 2), default="true").status_code == 201
    assert best(client, red, None) == "red"
    assert add(client, network(2, 1, 0), name="others").status_code == 201
    assert best(client, red, None) == "red"
    assert client.patch("/models/others", json={"default": True}).json()["default"]
    assert best(client, red, None) == "blue"
    assert not client.get("/models/colours").json()["default"]
    assert client.patch("/models/others", json={"default": False}).status_code == 200
    assert not engine.fleet.spec("classify", "others").default


def test_models_of_the_service_are_fixed(client: TestClient) -> None:
    for answer in (
        client.delete("/models/efficientnet-lite0"),
        client.patch("/models/efficientnet-lite0", json={"summary": "mine"}),
        add(client, network(0, 1, 2), name="efficientnet-lite0", replace="true"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "model_fixed"), answer.text


def test_no_request_fails_while_a_model_is_replaced(client: TestClient, red: bytes) -> None:
    assert add(client, network(0, 1, 2)).status_code == 201
    seen, end = list[str](), threading.Event()

    def ask() -> None:
        while not end.is_set():
            seen.append(best(client, red))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    answer = add(client, network(2, 1, 0), replace="true")
    before = len(seen)
    while len(seen) < before + 10 and any(asker.is_alive() for asker in askers):
        end.wait(0.01)
    end.set()
    for asker in askers:
        asker.join()
    assert answer.status_code == 201
    assert len(seen) >= before + 10, "a request failed"
    assert set(seen) == {"red", "blue"}
    assert set(seen[-3:]) == {"blue"}
