"""Each task on the page, with the real models on real photos."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

Photo = Callable[[str], Path]
Visit = Callable[..., Any]


def test_a_cat_is_a_cat_and_the_photo_is_kept_in_the_next_view(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("classify")
    visitor.put(photo_path("chelsea"))
    view.locator(".bars .row-button").first.wait_for()
    assert "cat" in view.locator(".bars .label").first.inner_text()
    assert view.locator(".bars li").count() == 5
    view.get_by_text("451 \u00d7 300 · ").wait_for()
    assert re.search(r"efficientnet-lite0 · float32 · CPU", view.locator(".receipt").inner_text())
    assert re.search(r"[\d.]+ m?s on the server", view.locator(".legend").inner_text())
    command = view.locator(".shell code").inner_text()
    assert re.fullmatch(rf"curl -F image=@chelsea.png -F explain=true {visitor.base}classify", command)
    visitor.page.get_by_role("link", name="Detect").click()
    visitor.view("detect").locator(".caption", has_text="chelsea.png").wait_for()
    assert "/detect" in visitor.view("detect").locator(".shell code").inner_text()


def test_it_is_shown_where_the_network_looked(visit: Visit, here: str, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("classify")
    visitor.put(photo_path("chelsea"))
    view.locator(".heat").wait_for()
    answer = httpx2.post(f"{here}classify", files={"image": photo_path("chelsea").read_bytes()}, data={"explain": "true"}).json()
    box = view.locator(".box")
    assert answer["localization"]["label"] in box.inner_text()
    left, width = (float(box.evaluate(f"(one) => one.style.{side}").rstrip("%")) for side in ("left", "width"))
    shown = answer["localization"]["box"]
    assert [left, width] == pytest.approx([100 * shown["x_min"] / 451, 100 * (shown["x_max"] - shown["x_min"]) / 451], abs=0.01)
    view.get_by_label("Window by window").check()
    view.locator(".window-said").wait_for()
    windows = httpx2.post(f"{here}classify", files={"image": photo_path("chelsea").read_bytes()}, data={"sliding_window": "true"})
    rows, columns = windows.json()["windows"]["rows"], windows.json()["windows"]["columns"]
    view.get_by_text(f"{rows * columns} positions of a window of 224 pixels").wait_for()
    assert view.locator(".positions").evaluate("(canvas) => [canvas.height, canvas.width]") == [rows, columns]


def test_the_sliders_of_detect_answer_as_the_service_would_and_ask_it_nothing(visit: Visit, here: str, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("detect")
    visitor.put(photo_path("coffee"))
    view.locator(".found .row-button").first.wait_for()
    asked = [url for url in visitor.asked if url.endswith("/detect")]
    assert len(asked) == 1
    for confidence, iou in ((0.25, 0.45), (0.06, 0.45), (0.06, 0.9), (0.5, 0.2)):
        view.get_by_label("Confidence").fill(str(confidence))
        view.get_by_label("Overlap").fill(str(iou))
        with photo_path("coffee").open("rb") as file:
            answer = httpx2.post(f"{here}detect", files={"image": file}, data={"confidence": confidence, "iou": iou}).json()
        expected = [one["label"] for one in answer["predictions"]]
        assert [one.strip() for one in view.locator(".found .label").all_inner_texts()] == expected
        assert view.locator(".box").count() == len(expected)
    assert len([url for url in visitor.asked if url.endswith("/detect")]) == 1


def test_boxes_and_list_point_at_each_other_and_classes_can_be_switched_off(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("detect")
    visitor.put(photo_path("coffee"))
    view.get_by_label("Confidence").fill("0.06")
    view.locator(".chip.toggle", has_text="cup").wait_for()
    first = view.locator(".found .row-button").first
    first.hover()
    assert view.locator(".box.lit").get_attribute("data-key") == "0"
    view.locator(".box[data-key='0']").dispatch_event("pointerenter")
    assert first.evaluate("(row) => row.classList.contains('lit')")
    before = view.locator(".box").count()
    view.locator(".chip.toggle", has_text="cup").click()
    assert view.locator(".box").count() < before
    assert all("cup" not in label for label in view.locator(".found .label").all_inner_texts())
    command = view.locator(".shell code").inner_text()
    assert "-F confidence=0.06" in command
    assert "classes=" in command
    assert "cup" not in command


def test_a_face_is_itself_and_a_photo_without_one_is_told(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    visitor.expected = ("422",)
    view = visitor.go("faces")
    visitor.put(photo_path("astronaut"))
    view.get_by_text("1 face here").wait_for()
    assert view.locator(".mark").count() == 5
    visitor.put(photo_path("astronaut"), 1)
    view.get_by_text("The same person").wait_for()
    assert view.locator(".scale .at").inner_text() == "1.000"
    assert view.locator(".box").count() == 2
    view.get_by_role("button", name="Remove").nth(1).click()
    visitor.put(photo_path("coffee"), 1)
    notice = view.get_by_role("alert")
    notice.wait_for()
    assert "No face was found" in notice.inner_text()
    assert "image2" in notice.inner_text()
    assert "Send a photo that shows a face" in notice.inner_text()


def test_somebody_is_enrolled_known_again_and_forgotten(visit: Visit, here: str, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("faces")
    view.get_by_label("Know people again").check()
    view.get_by_text("Nobody is enrolled yet.").wait_for()
    visitor.put(photo_path("astronaut"))
    view.locator(".box", has_text="unknown").wait_for()
    view.get_by_label("Name of this unknown face").fill("Eileen Collins")
    view.get_by_label("Name of this unknown face").press("Enter")
    view.locator(".box", has_text="Eileen Collins").wait_for()
    assert "1 known among 1 person" in view.locator(".summary:visible").inner_text()
    view.locator(".subjects li", has_text="Eileen Collins").wait_for()
    view.get_by_label("Name", exact=True).fill("Eileen Collins")
    view.get_by_label("Photos", exact=True).set_input_files([photo_path("astronaut")])
    view.get_by_role("button", name="Enrol", exact=True).last.click()
    view.locator(".subjects li", has_text="2 faces").wait_for()
    assert httpx2.get(f"{here}subjects/Eileen%20Collins").json()["subject"] == "Eileen Collins"
    view.get_by_role("button", name="Forget Eileen Collins").click()
    view.get_by_role("button", name="Forget for good").click()
    view.get_by_text("Nobody is enrolled yet.").wait_for()
    view.locator(".box", has_text="unknown").wait_for()
    assert httpx2.get(f"{here}subjects").json()["subjects_total"] == 0


def test_a_photo_is_painted_in_a_style_a_blend_and_any_picture(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("stylize")
    visitor.put(photo_path("chelsea"))
    view.locator(".style").first.wait_for()
    assert view.locator(".style").count() == 26
    view.locator(".style[data-name=ink-wash]").click()
    view.get_by_role("button", name="Save the painting").wait_for()
    assert view.locator(".after").evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [451, 300]
    view.get_by_label("Before and after").fill("40")
    assert view.locator(".wiping").evaluate("(root) => root.style.getPropertyValue('--split')") == "40%"
    view.get_by_label("Strength").fill("0.5")
    assert view.locator(".after").evaluate("(image) => image.style.opacity") == "0.5"
    assert len([url for url in visitor.asked if url.endswith("/stylize")]) == 1
    view.get_by_label("Save as").select_option("png")
    with visitor.page.expect_download() as saved:
        view.get_by_role("button", name="Save the painting").click()
    with Image.open(saved.value.path()) as image:
        assert (saved.value.suggested_filename, image.format, image.size) == ("chelsea-painted.png", "PNG", (451, 300))
    view.get_by_label("Blend several").check()
    view.locator(".style[data-name=golden-etching]").click()
    view.get_by_text("-F style=ink-wash:0.5,golden-etching:0.5 -F strength=0.5").wait_for()
    view.get_by_role("button", name="Save the painting").wait_for()
    view.get_by_label("Any picture").check()
    visitor.put(photo_path("rocket"), 1)
    view.get_by_text("magenta-arbitrary").wait_for()
    assert "style_image=@rocket.jpg" in view.locator(".shell code").inner_text()
    before = len([url for url in visitor.asked if url.endswith("/stylize")])
    with visitor.page.expect_response("**/stylize"):
        view.get_by_label("Strength").fill("0.3")  # of a picture's style the service mixes: what is shown is what is saved
    assert len([url for url in visitor.asked if url.endswith("/stylize")]) == before + 1
    assert view.locator(".after").evaluate("(image) => image.style.opacity") == "1"


def test_a_photo_is_painted_step_by_step(visit: Visit, here: str, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("stylize")
    view.get_by_label("Step by step").check()
    visitor.put(photo_path("chelsea"))
    visitor.put(photo_path("coffee"), 1)
    view.get_by_text("All options").click()
    view.get_by_label("model", exact=True).fill("yolov3-tiny-features")
    view.get_by_label("iterations").fill("30")
    view.get_by_label("max side").fill("128")
    with visitor.page.expect_response("**/stylize/optimize") as begun:
        view.get_by_role("button", name="Start painting").click()
    job = begun.value.json()
    view.get_by_role("button", name="Save the painting").wait_for()
    assert httpx2.get(f"{here}{job['links']['self'].lstrip('/')}").json()["state"] == "done"
    points = view.locator(".chart").nth(1).locator("polyline").get_attribute("points").split()
    assert float(points[0].split(",")[1]) < float(points[-1].split(",")[1])  # downwards: the loss has fallen
    with visitor.page.expect_download() as saved:
        view.get_by_role("button", name="Save the painting").click()
    with Image.open(saved.value.path()) as image:
        assert image.size == (128, 85)


def test_the_models_are_told_with_provider_precision_and_licence(visit: Visit, here: str) -> None:
    view = visit().go("models")
    view.locator(".model").first.wait_for()
    names = view.locator(".model .name").all_inner_texts()
    assert sorted(names) == sorted(model["name"] for model in httpx2.get(f"{here}models").json()["models"])
    card = view.locator(".model", has_text="efficientnet-lite0")
    card.locator("summary").click()
    told = card.inner_text()
    for part in ("CPU", "float32", "Apache-2.0", "allowed", "224 \u00d7 224", "1000", "579344248a93e230"):
        assert part in told


@pytest.fixture
def nameless_classifier(tmp_path: Path) -> Path:
    """A classifier of three classes that does not tell their names."""
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32), "weights")
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    path = tmp_path / "colours.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_model_is_added_after_saying_what_its_file_does_not(visit: Visit, here: str, nameless_classifier: Path) -> None:
    visitor = visit()
    visitor.expected = ("422",)
    view = visitor.go("models")
    view.get_by_label("An ONNX file").set_input_files(nameless_classifier)
    view.get_by_text("The file does not tell enough about the model").wait_for()
    view.locator(".finding").get_by_label("preprocess").select_option("unit")
    view.get_by_role("button", name="Look again").click()
    view.get_by_role("button", name="Add colours").wait_for()
    assert "Found in the file" in view.locator(".finding").inner_text()
    assert "Taken to be so" in view.locator(".finding").inner_text()
    view.get_by_text("Say more about it").click()
    view.locator(".finding").get_by_label("labels", exact=True).fill("red,green,blue")
    view.get_by_role("button", name="Add colours").click()
    view.get_by_text("The model colours was added and answers now.").wait_for()
    card = view.locator(".model", has_text="colours")
    card.locator("summary").click()
    red = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(red, "PNG")
    answer = httpx2.post(f"{here}classify", files={"image": red.getvalue()}, data={"model": "colours"}).json()
    assert answer["predictions"][0]["label"] == "red"
    card.get_by_role("button", name="Remove").click()
    card.get_by_role("button", name="Remove for good").click()
    card.wait_for(state="detached")
    assert "colours" not in httpx2.get(f"{here}models").text


def test_a_file_that_is_no_model_is_refused_in_the_api_s_words(visit: Visit, tmp_path: Path) -> None:
    visitor = visit()
    visitor.expected = ("422",)
    view = visitor.go("models")
    (tmp_path / "notes.onnx").write_text("these are notes")
    view.get_by_label("An ONNX file").set_input_files(tmp_path / "notes.onnx")
    view.get_by_role("alert").wait_for()
    assert "The file cannot be used as a model" in view.get_by_role("alert").inner_text()
