"""What the page does when things take long, go wrong or are refused; answers are put in where the service gives none at will."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.http.examples import ANSWERS

Photo = Callable[[str], Path]
Visit = Callable[..., Any]
KEY = "k" * 20
BUSY = {
    "type": "/problems/queue_full",
    "title": "Too many requests are waiting",
    "status": 503,
    "detail": "64 requests of this kind are waiting already",
    "instance": "/classify",
    "code": "queue_full",
    "retry_after": 1,
}


def answer(route: Any, document: Any, status: int = 200, **headers: str) -> None:
    kind = "application/json" if status < 400 else "application/problem+json"
    route.fulfill(status=status, headers={"Content-Type": kind, **headers}, body=json.dumps(document))


def test_a_file_that_is_no_picture_is_told_with_detail_and_remedy(visit: Visit, tmp_path: Path) -> None:
    visitor = visit()
    visitor.expected = ("415",)
    view = visitor.go("classify")
    (tmp_path / "notes.png").write_text("these are notes")
    visitor.put(tmp_path / "notes.png")
    view.get_by_role("alert").wait_for()
    told = view.get_by_role("alert").inner_text()
    assert "The file is not an image that can be read" in told
    assert "The bytes are not a picture that can be read" in told
    assert "Send a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file." in told
    view.get_by_text("This browser cannot show the format").wait_for()


def test_a_busy_service_is_asked_again_when_it_says_so(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    visitor.expected = ("503",)
    view = visitor.go("classify")
    visitor.page.route("**/classify", lambda route: answer(route, BUSY, 503, **{"Retry-After": "1"}), times=1)
    visitor.put(photo_path("chelsea"))
    notice = view.locator(".notice.calm")
    notice.wait_for()
    told = notice.inner_text()
    assert "Too many requests are waiting" in told
    assert "Trying again in 1 s." in told
    assert view.get_by_role("alert").count() == 0
    view.locator(".bars .row-button").first.wait_for()
    assert notice.count() == 0


def test_without_a_network_it_says_so_plainly_and_goes_on_with_it(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    visitor.expected = ("ERR_INTERNET_DISCONNECTED",)
    view = visitor.go("classify")
    visitor.context.set_offline(True)
    visitor.put(photo_path("chelsea"))
    view.get_by_role("alert").wait_for()
    assert "You are offline" in view.get_by_role("alert").inner_text()
    visitor.context.set_offline(False)
    view.locator(".bars .row-button").first.wait_for()
    assert view.get_by_role("alert").count() == 0


def test_a_server_that_has_gone_is_told_plainly(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    visitor.expected = ("ERR_CONNECTION_REFUSED",)
    view = visitor.go("classify")
    visitor.page.route("**/classify", lambda route: route.abort("connectionrefused"))
    visitor.put(photo_path("chelsea"))
    view.get_by_role("alert").wait_for()
    told = view.get_by_role("alert").inner_text()
    assert "The server cannot be reached" in told
    assert visitor.base.split("/")[2] in told


def test_what_takes_long_can_be_cancelled_and_run_again(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("classify")
    visitor.page.route("**/classify", lambda _: None)
    visitor.put(photo_path("chelsea"))
    view.get_by_role("button", name="Cancel").click()
    view.get_by_text("Cancelled.").wait_for()
    view.locator(".busy").wait_for(state="hidden")
    visitor.page.unroute("**/classify")
    view.get_by_role("button", name="Run it again").click()
    view.locator(".bars .row-button").first.wait_for()


WATCH_SIGNALS = """() => {
    const ask = window.fetch;
    window.signals = [];
    window.fetch = (url, options) => {
        if (options?.signal) signals.push(options.signal);
        return ask(url, options);
    };
}"""


def test_a_newer_photo_aborts_the_request_of_the_older(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("classify")
    held: list[Any] = []
    visitor.page.route("**/classify", lambda route: route.continue_() if held else held.append(route))
    visitor.page.evaluate(WATCH_SIGNALS)
    visitor.put(photo_path("coffee"))
    visitor.page.wait_for_function("() => signals.length === 1")
    visitor.put(photo_path("chelsea"))
    view.locator(".bars .label", has_text="cat").first.wait_for()
    assert visitor.page.evaluate("signals.map((signal) => signal.aborted)")[:2] == [True, False]


@pytest.fixture(scope="module")
def keyed(run_server: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a service that wants a key."""
    folder = tmp_path_factory.mktemp("keyed")
    return run_server(
        api_keys=f"me:use:{KEY}", models=("efficientnet-lite0",), detector="auto", gallery_url=f"sqlite:///{folder}/g.sqlite3"
    )


def test_a_key_is_asked_for_where_one_is_needed_and_kept_for_this_tab(visit: Visit, keyed: str, photo_path: Photo) -> None:
    visitor = visit(keyed)
    visitor.expected = ("401", "403")
    view = visitor.go("classify")
    visitor.put(photo_path("chelsea"))
    dialog = visitor.page.get_by_role("dialog", name="API key")
    dialog.wait_for()
    assert "A key is needed" in dialog.inner_text()
    dialog.get_by_label("Key").fill("w" * 20)
    dialog.get_by_label("Key").press("Enter")
    dialog.get_by_text("The key that was sent is not one of this service").wait_for()
    dialog.get_by_label("Key").fill(KEY)
    dialog.get_by_role("button", name="Use this key").click()
    view.locator(".bars .row-button").first.wait_for()
    assert "X-API-Key: $KEY" in view.locator(".shell code").inner_text()
    assert KEY not in visitor.page.content()
    kept = visitor.page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
    assert kept == [[KEY], [], ""]
    visitor.page.get_by_role("link", name="Models").click()
    dialog.get_by_text("this needs a key with the scope manage", exact=False).wait_for()
    dialog.get_by_role("button", name="Cancel").click()
    visitor.view("models").get_by_role("alert").wait_for()


def explained() -> dict[str, Any]:
    """What /classify answers with explain=true."""
    grid = [[-1.0] * 7 for _ in range(7)]
    grid[2][5] = 9.0
    other = [list(reversed(row)) for row in grid]
    predictions = [
        {**one, "activation": {"grid": shape}}
        for one, shape in zip(ANSWERS["/classify"]["predictions"], (grid, other, grid), strict=True)
    ]
    box = {"x_min": 300.0, "y_min": 60.0, "x_max": 380.0, "y_max": 140.0}
    localization = {"class_id": 281, "label": "tabby cat", "confidence": 0.71, "box": box}
    view = {"x_min": 75.5, "y_min": 0.0, "x_max": 375.5, "y_max": 300.0}
    return {
        **ANSWERS["/classify"],
        "image": {"width": 451, "height": 300},
        "predictions": predictions,
        "view": view,
        "localization": localization,
    }


def test_the_heat_map_lies_where_the_network_looked(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("classify")
    visitor.page.route("**/classify", lambda route: answer(route, explained()))
    visitor.put(photo_path("chelsea"))
    view.locator(".heat").wait_for()
    seen = view.locator(".seen").evaluate("(one) => [one.style.left, one.style.width, one.style.top, one.style.height]")
    assert [round(float(part.rstrip("%")), 2) for part in seen] == [16.74, 66.52, 0, 100]
    alpha = """(canvas) => [5.5, 1.5].map((column) => {
        const side = canvas.width / 7;
        return canvas.getContext("2d").getImageData(column * side, 2.5 * side, 1, 1).data[3];
    })"""
    hot, cold = view.locator(".heat").evaluate(alpha)
    assert hot > 4 * cold
    view.get_by_label("Heat map").fill("0.2")
    assert view.locator(".heat").evaluate("(canvas) => getComputedStyle(canvas).opacity") == "0.2"
    assert view.locator(".box", has_text="tabby cat").count() == 1
    view.get_by_label("Box around the strongest region").uncheck()
    assert view.locator(".box").count() == 0
    view.get_by_role("button", name="tiger cat").click()
    hot, cold = view.locator(".heat").evaluate(alpha)
    assert cold > 4 * hot


def windowed() -> dict[str, Any]:
    """What /classify answers with sliding_window=true: two rows of four windows, the right half of another class."""
    found = {
        **{"size": 224, "stride": 32, "scale": 256 / 300, "rows": 2, "columns": 4, "labels": {"281": "tabby", "8": "hen"}},
        "class_ids": [[281, 281, 8, 8], [281, 281, 281, 8]],
        "confidences": [[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2]],
        "view": {"x_min": 38.0, "y_min": 0.0, "x_max": 413.0, "y_max": 300.0},
    }
    return {**ANSWERS["/classify"], "image": {"width": 451, "height": 300}, "windows": found}


def test_the_class_in_each_window_is_told_to_pointer_and_keyboard(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("classify")
    visitor.page.route("**/classify", lambda route: answer(route, windowed()))
    view.get_by_label("Window by window").check()
    visitor.put(photo_path("chelsea"))
    view.locator(".window-said").wait_for()
    assert "-F sliding_window=true" in view.locator(".shell code").inner_text()
    assert view.locator(".bars .value").all_inner_texts() == ["63 %", "38 %"]
    spot = view.locator(".position-map")
    spot.focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight"):
        spot.press(key)
    assert view.locator(".window-said").inner_text() == "hen 60 % in this window"
    visitor.page.locator("#live", has_text="hen, 60 %").wait_for(state="attached")
    left = view.locator(".box.window").evaluate("(one) => Number.parseFloat(one.style.left)")
    assert left == pytest.approx(100 * (38 + 3 * 32 * 300 / 256) / 451, abs=0.01)
    area = spot.bounding_box()
    visitor.page.mouse.move(area["x"] + 3, area["y"] + area["height"] - 3)
    assert view.locator(".window-said").inner_text() == "tabby 50 % in this window"
    view.get_by_role("button", name="hen").click()
    filled = view.locator(".positions").evaluate(
        "(canvas) => [...canvas.getContext('2d').getImageData(0, 0, 4, 2).data].filter((_, i) => i % 4 === 3 && _ > 0).length"
    )
    assert filled == 3


def job(state: str, iteration: int, **given: Any) -> dict[str, Any]:
    """A painting as the service tells it."""
    losses = {"content": 5.0 / (1 + iteration), "style": 900.0 / (1 + iteration), "variation": 0.1, "total": 1.0}
    links = {"self": "/jobs/j1", "events": "/jobs/j1/events", "result": "/jobs/j1/result"}
    common = {
        "id": "j1",
        "kind": "stylize/optimize",
        "state": state,
        "iteration": iteration,
        "iterations": 40,
        "problem": None,
        "links": links,
    }
    rest = {
        "size": {"width": 226, "height": 150},
        "losses": losses,
        "seconds_left": 7.0,
        "seconds": 3.0,
        "created": "2026-03-01T09:30:00Z",
    }
    return {**common, **rest, "model": ANSWERS["/classify"]["model"], **given}


LARGE = {"width": 451, "height": 300}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M/wHwAEBgIApD5fRAAAAABJRU5ErkJggg=="
STREAM = ": still here\r\n\r\n" + "".join(
    f"event: {event}\r\ndata: {json.dumps(data)}\r\n\r\n"
    for event, data in (
        *(("progress", job("running", step)) for step in range(1, 20)),
        ("preview", {"iteration": 19, "image": PIXEL}),
        *(("progress", job("running", step, size=LARGE)) for step in range(20, 40)),
    )
)


def set_up_painting(visitor: Any, photo_path: Photo, stream: str, *, begin: bool = True) -> Any:
    """The view with both pictures chosen and a service that paints `stream`."""
    visitor.page.route(
        "**/stylize/optimize",
        lambda route: answer(route, job("queued", 0, losses=None, size=None, model=None, seconds_left=None), 202),
    )
    visitor.page.route("**/jobs/j1/events", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    visitor.page.route("**/jobs/j1/result", lambda route: route.fulfill(path=photo_path("rocket"), content_type="image/jpeg"))
    view = visitor.go("stylize")
    view.get_by_label("Step by step").check()
    start = view.get_by_role("button", name="Start painting")
    assert start.is_disabled()
    visitor.put(photo_path("chelsea"))
    visitor.put(photo_path("coffee"), 1)
    if begin:
        start.click()
    return view


def test_a_painting_grows_with_its_losses_and_can_be_saved(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    view = set_up_painting(visitor, photo_path, STREAM + f"event: end\ndata: {json.dumps(job('done', 40, size=LARGE))}\n\n")
    view.get_by_text("Done: 40 steps in 3 s.").wait_for()
    charts = view.locator(".chart")
    assert charts.count() == 2
    points = charts.nth(1).locator("polyline").get_attribute("points").split()
    assert len(points) >= 40
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights)  # downwards: the loss falls
    assert charts.nth(0).locator("line").count() == 1  # where the picture grew
    assert "40" not in charts.nth(0).locator("output").inner_text()
    with visitor.page.expect_download() as saved:
        view.get_by_role("button", name="Save the painting").click()
    assert saved.value.suggested_filename == "chelsea-painted.png"
    visitor.page.get_by_role("link", name="Detect").click()
    visitor.page.get_by_role("link", name="Stylize").click()
    view.get_by_text("Done: 40 steps").wait_for()


def test_a_painting_can_be_cancelled(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    asked: list[str] = []

    def one(route: Any) -> None:
        asked.append(route.request.method)
        answer(route, job("cancelled" if route.request.method == "DELETE" else "running", 12))

    visitor.page.route("**/jobs/j1", one)
    view = set_up_painting(visitor, photo_path, STREAM)  # a stream that ends before the painting does is asked for again
    view.get_by_text(re.compile(r"Step \d+ of 40")).wait_for()
    view.get_by_role("button", name="Cancel").click()
    view.get_by_text("Cancelled.").wait_for()
    assert asked[-1] == "DELETE"
    view.get_by_role("button", name="Paint another").click()
    assert view.get_by_role("button", name="Start painting").is_enabled()


def test_a_painting_goes_on_while_too_many_watch_it(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    visitor.expected = ("503",)
    end = f"event: end\ndata: {json.dumps(job('done', 40, size=LARGE))}\n\n"
    view = set_up_painting(visitor, photo_path, STREAM + end, begin=False)
    full = {"type": "/problems/queue_full", "title": "Too many", "status": 503, "detail": "64 watch it", "code": "queue_full"}
    visitor.page.route("**/jobs/j1/events", lambda route: answer(route, full, 503, **{"Retry-After": "1"}), times=1)
    view.get_by_role("button", name="Start painting").click()
    view.get_by_text("The server is busy").wait_for()
    view.get_by_text("Done: 40 steps").wait_for()


def test_a_painting_that_fails_says_why(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    problem = {
        "type": "/problems/option_invalid",
        "title": "An option is not valid",
        "status": 422,
        "detail": "there is no layer conv9_9",
        "code": "option_invalid",
        "instance": "/stylize/optimize",
    }
    view = set_up_painting(visitor, photo_path, f"event: end\ndata: {json.dumps(job('failed', 3, problem=problem))}\n\n")
    view.get_by_role("alert").wait_for()
    assert "There is no layer conv9_9." in view.get_by_role("alert").inner_text()
