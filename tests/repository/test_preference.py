import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.doctor import Finding, examine
from service.errors import SettingInvalid
from service.repository import preference
from service.repository.preference import choose_detector, on_record, standing_detector, told
from service.repository.store import ensure, scan
from service.runtime.session import run_once
from service.settings import Settings

PATIENCE = 1.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def silent_host() -> Iterator[str]:
    """The address of a host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def choose(settings: Settings, heard: Any, patience: float = PATIENCE) -> str:
    return choose_detector(settings, heard, run_once, patience).name


def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(preference, "_answering", never)


def test_the_stronger_one_where_its_host_answers(
    shop_of: Any, settings: Settings, shelf: Any, heard: Any, monkeypatch: Any
) -> None:
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", "http://127.0.0.1:9/gone", f"{shelf.url}/x.onnx")
    shelf.put("/x.onnx", shop_of.body)
    assert standing_detector(settings) is None
    choice = choose_detector(settings, heard, run_once, PATIENCE)
    assert (choice.name, choice.why) == ("yolox-s", "its host answered when a detector was first chosen")
    assert "yolox-s" in scan(settings)
    kept = json.loads((settings.data_folder / "detector.json").read_text())
    assert kept == {"name": "yolox-s", "why": choice.why, "when": choice.model_dump(mode="json")["when"]}
    nobody_asks(monkeypatch)
    assert choose_detector(settings, heard, run_once) == choice
    assert (
        told(choice, scan(settings)["yolox-s"])
        == f"yolox-s is the default detector: mAP 0.4 on COCO, Apache-2.0; {choice.why} ({choice.when:%Y-%m-%d})"
    )


@pytest.mark.parametrize("answer", ["refused", "missing", "page", "pointer", "other size"])
def test_else_the_one_of_the_package_index(shop_of: Any, settings: Settings, shelf: Any, heard: Any, answer: str) -> None:
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", "http://127.0.0.1:9/x.onnx" if answer == "refused" else f"{shelf.url}/x.onnx")
    bodies = {"page": b"<!DOCTYPE html>", "pointer": b"version https://git-lfs", "other size": shop_of.body + b"!"}
    if answer in bodies:
        shelf.put("/x.onnx", bodies[answer])
    assert choose(settings, heard) == "yolov3-tiny"
    found = on_record(settings)
    assert found is not None
    assert found.why == "no host of the stronger yolox-s answered within 1 s"
    assert "VISION_DETECTOR=yolox-s" in heard.notes[-1]
    shelf.put("/x.onnx", shop_of.body)
    assert choose(settings, heard) == "yolov3-tiny"  # it stays


def test_a_silent_host_is_not_waited_for(shop_of: Any, settings: Settings, heard: Any, silent_host: str) -> None:
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", f"{silent_host}/x.onnx")
    done = threading.Event()
    worker = threading.Thread(target=lambda: (choose(settings, heard, 0.2), done.set()))
    worker.start()
    assert done.wait(20)
    worker.join()
    assert "within 0.2 s" in heard.notes[-1]


def test_a_file_that_turns_out_wrong_is_not_taken(shop_of: Any, settings: Settings, shelf: Any, heard: Any) -> None:
    """Of the right size, as its host says at first, but of other bytes."""
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", f"{shelf.url}/x.onnx")
    shelf.put("/x.onnx", bytes(len(shop_of.body)))
    assert choose(settings, heard) == "yolov3-tiny"
    assert "could not be had: yolox-s: yolox-s.onnx" in heard.notes[-1]
    assert "yolox-s" not in scan(settings)


def test_a_file_that_cannot_be_built_is_not_taken(shop_of: Any, settings: Settings, shelf: Any, heard: Any) -> None:
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", f"{shelf.url}/x.onnx", body=b"\x08 no graph")
    shelf.put("/x.onnx", b"\x08 no graph")
    assert choose(settings, heard) == "yolov3-tiny"
    assert "could not be had" in heard.notes[-1]


@pytest.mark.parametrize(("built", "chosen"), [("yolov3-tiny", "yolov3-tiny"), ("yolox-s", "yolox-s")])
def test_what_is_built_already_stays(
    shop_of: Any, settings: Settings, shelf: Any, heard: Any, monkeypatch: Any, built: str, chosen: str
) -> None:
    """Even by an earlier release, whose graphs are made again."""
    specs = {
        "yolov3-tiny": shop_of.own("yolov3-tiny", f"{shelf.url}/x.onnx"),
        "yolox-s": shop_of.public("yolox-s", f"{shelf.url}/x.onnx"),
    }
    shelf.put("/x.onnx", shop_of.body)
    folder = ensure(specs[built], settings, run_once, heard).folder
    (folder / "build.json").write_text("{}")
    nobody_asks(monkeypatch)
    assert choose(settings, heard) == chosen
    assert on_record(settings) == standing_detector(settings)


def test_a_setting_names_any_detector(shop_of: Any, settings: Settings, heard: Any, monkeypatch: Any) -> None:
    nobody_asks(monkeypatch)
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", "https://example.org/x.onnx", aliases=["strong"])
    for given, name in [("yolov3-tiny", "yolov3-tiny"), ("yolox-s", "yolox-s"), ("strong", "yolox-s")]:
        assert choose(settings.model_copy(update={"detector": given}), heard) == name
    assert on_record(settings) is None
    wrong = settings.model_copy(update={"detector": "yolox-z"})
    with pytest.raises(SettingInvalid, match=r"VISION_DETECTOR: there is no model 'yolox-z'; use one of: yolox-s"):
        choose(wrong, heard)
    left_out = settings.model_copy(update={"detector": "yolox-s", "models": ("yolov3-tiny",)})
    with pytest.raises(SettingInvalid, match="VISION_MODELS leaves it out"):
        choose(left_out, heard)


def test_what_does_something_else_is_no_detector() -> None:
    with pytest.raises(SettingInvalid, match="efficientnet-lite0 does classify, not detect"):
        standing_detector(Settings(detector="efficientnet-lite0"))


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        ({"offline": True}, "yolov3-tiny"),
        ({"models": ("yolox-s", "yolov3-tiny")}, "yolox-s"),
        ({"models": ("yolov3-tiny",)}, "yolov3-tiny"),
    ],
)
def test_settings_that_leave_no_choice(
    shop_of: Any, settings: Settings, heard: Any, monkeypatch: Any, change: dict[str, Any], chosen: str
) -> None:
    """Nothing is written down then: without them a later start may still choose."""
    nobody_asks(monkeypatch)
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", "https://example.org/x.onnx")
    assert choose(settings.model_copy(update=change), heard) == chosen
    assert on_record(settings) is None


def test_a_record_is_worth_no_more_than_what_it_names(shop_of: Any, settings: Settings, heard: Any, monkeypatch: Any) -> None:
    nobody_asks(monkeypatch)
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", "https://example.org/x.onnx")
    settings.data_folder.mkdir()
    for text in ("{", '{"name": "yolox-s", "why": "it was pulled, and removed"}'):
        (settings.data_folder / "detector.json").write_text(text)
        assert on_record(settings) is None
    (settings.data_folder / "detector.json").write_text('{"name": "yolov3-tiny", "why": "once"}')
    assert choose(settings, heard) == "yolov3-tiny"


def test_a_data_folder_that_cannot_be_written(shop_of: Any, shelf: Any, heard: Any, tmp_path: Path) -> None:
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", f"{shelf.url}/x.onnx")
    shelf.put("/x.onnx", shop_of.body)
    (tmp_path / "file").write_text("")
    settings = Settings(data_dir=tmp_path / "file")
    assert choose(settings, heard) == "yolox-s"
    assert choose_detector(settings, heard, run_once).when is None


def test_the_doctor_says_which_and_why(shop_of: Any, settings: Settings, shelf: Any, heard: Any) -> None:
    """And chooses nothing itself."""
    shop_of.own("yolov3-tiny")
    shop_of.public("yolox-s", f"{shelf.url}/x.onnx")
    shelf.put("/x.onnx", shop_of.body)

    def finding() -> Finding:
        (found,) = (one for one in examine(settings) if one.topic == "detector")
        return found

    assert (finding().state, "the next start takes yolox-s where its host answers" in finding().text) == ("note", True)
    assert shelf.log == []
    choice = choose_detector(settings, heard, run_once, PATIENCE)
    assert finding().text == told(choice, scan(settings)["yolox-s"])
    settings = settings.model_copy(update={"detector": "yolov9"})
    assert (finding().state, "VISION_DETECTOR: there is no model 'yolov9'" in finding().text) == ("bad", True)
