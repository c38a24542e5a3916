"""Everybody can use the page: small screens, keyboards, screen readers, either colours; and it is small itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Photo = Callable[[str], Path]
Visit = Callable[..., Any]
VIEWS = ("classify", "detect", "faces", "stylize", "models")
LARGEST = 100_000  # bytes of the page with all that a first visit loads of it


def fill(visitor: Any, view: str, photo_path: Photo) -> Any:
    """A view that shows an answer."""
    root = visitor.go(view)
    ready = {
        "classify": ".bars .row-button",
        "detect": ".found .row-button",
        "faces": ".verdict",
        "stylize": ".finish",
        "models": ".model",
    }
    if view == "stylize":
        root.locator(".style").first.click()
    if view != "models":
        visitor.put(photo_path("astronaut" if view == "faces" else "coffee"))
    if view == "faces":
        root.locator(".summary").wait_for()
        visitor.put(photo_path("astronaut"), 1)
    root.locator(ready[view]).first.wait_for()
    return root


def serious(page: Any) -> list[str]:
    """What axe finds that keeps somebody out, each with the first element that it is about."""
    import axe_playwright_python

    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_that_keeps_somebody_out(visit: Visit, photo_path: Photo, view: str, colours: str) -> None:
    visitor = visit(color_scheme=colours)
    root = visitor.go(view)
    assert serious(visitor.page) == []  # while it is empty
    fill(visitor, view, photo_path)
    if view == "models":
        root.locator("summary").first.click()
    assert serious(visitor.page) == []


def test_axe_finds_nothing_in_dialog_notice_and_gallery(visit: Visit, tmp_path: Path) -> None:
    visitor = visit()
    visitor.expected = ("415",)
    root = visitor.go("faces")
    root.get_by_label("Know people again").check()
    (tmp_path / "notes.png").write_text("these are notes")
    visitor.put(tmp_path / "notes.png")
    root.get_by_role("alert").wait_for()
    assert serious(visitor.page) == []
    visitor.page.get_by_role("button", name="API key").click()
    assert serious(visitor.page) == []


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_cut_off_on_a_phone(visit: Visit, photo_path: Photo, view: str) -> None:
    visitor = visit(has_touch=True)
    visitor.page.set_viewport_size({"width": 360, "height": 740})
    fill(visitor, view, photo_path)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = """[...document.querySelectorAll("main *, header *, footer *")].filter((one) => {
        const box = one.getBoundingClientRect();
        return box.width > 0 && !one.closest(".layer, .hidden-text, .styles, [hidden]") && (box.right > 361 || box.left < -1);
    }).map((one) => one.outerHTML.slice(0, 120))"""
    assert visitor.page.evaluate(wide) == []
    tabs = visitor.page.locator(".tabs").bounding_box()
    assert tabs["y"] + tabs["height"] == pytest.approx(740, abs=1)


def test_the_colours_follow_the_system_until_somebody_chooses(visit: Visit) -> None:
    visitor = visit(color_scheme="dark")
    visitor.go("classify")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert visitor.page.evaluate(paper) == "rgb(19, 20, 21)"
    toggle = visitor.page.get_by_role("button", name="Colours")
    toggle.click()
    assert visitor.page.evaluate(paper) == "rgb(247, 246, 242)"
    visitor.page.reload()
    assert visitor.page.evaluate(paper) == "rgb(247, 246, 242)"
    toggle.click()
    toggle.click()
    assert toggle.get_attribute("aria-label") == "Colours: as the system has them"
    assert visitor.page.evaluate(paper) == "rgb(19, 20, 21)"


def test_a_photo_is_classified_and_its_list_walked_with_the_keyboard_alone(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    page = visitor.page
    visitor.go("classify")
    focused = "document.activeElement.textContent.trim() || document.activeElement.getAttribute('aria-label')"
    order = []
    for _ in range(14):
        page.keyboard.press("Tab")
        order.append(page.evaluate(focused))
        if order[-1] == "Choose a photo":
            break
    assert order[0] == "Skip to the content"
    assert order[2:7] == ["Classify", "Detect", "Faces", "Stylize", "Models"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert (order[-1], outline) == ("Choose a photo", "solid")
    with page.expect_file_chooser() as chooser:
        page.locator(":focus").press("Enter")
    chooser.value.set_files(photo_path("coffee"))
    page.locator(".bars li").first.wait_for()
    assert page.evaluate(focused) == "Change"
    page.locator("#live", has_text="%").wait_for(state="attached")
    page.locator(".tabs a", has_text="Detect").focus()
    page.keyboard.press("Enter")
    view = visitor.view("detect")
    view.locator(".found .row-button").first.wait_for()
    slider = view.get_by_label("Confidence")
    slider.focus()
    before = slider.input_value()
    page.keyboard.press("ArrowRight")
    assert float(slider.input_value()) == pytest.approx(float(before) + 0.01)
    view.locator(".found .row-button").first.focus()
    assert view.locator(".box.lit").count() == 1


def test_a_picture_is_taken_by_drop_and_by_paste(visit: Visit, photo_path: Photo) -> None:
    visitor = visit()
    view = visitor.go("classify")
    put = """async ([kind, target]) => {
        const canvas = new OffscreenCanvas(64, 48);
        canvas.getContext("2d").fillRect(0, 0, 9, 9);
        const transfer = new DataTransfer();
        transfer.items.add(new File([await canvas.convertToBlob()], `${kind}.png`, { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
        document.querySelector(target).dispatchEvent(event);
    }"""
    for kind, target in (("drop", ".stage"), ("paste", "body"), ("drop", "footer")):
        visitor.page.evaluate(put, [kind, target])
        view.locator(".caption", has_text=f"{kind}.png").wait_for()
        view.get_by_role("button", name="Remove").click()
        view.locator(".empty").wait_for()


def test_the_photo_stays_upright_as_its_exif_says(visit: Visit, tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (80, 40), "teal").save(tmp_path / "turned.jpg", exif=exif)
    visitor = visit()
    view = visitor.go("classify")
    visitor.put(tmp_path / "turned.jpg")
    view.get_by_text("40 \u00d7 80 · ").wait_for()


LOADED = """() => Object.fromEntries([...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .filter((one) => one.name === location.href || one.name.includes("/static/")).map((one) => [one.name, one.transferSize]))"""


def test_a_first_visit_is_small_and_a_second_loads_nothing_again(visit: Visit) -> None:
    visitor = visit()
    visitor.go("classify")
    visitor.page.locator(".status.good").wait_for()
    first = visitor.page.evaluate(LOADED)
    assert len([url for url in visitor.asked if "/static/" in url]) >= len(first) - 1 >= 10  # each once
    assert 50_000 < sum(first.values()) < LARGEST, first
    visitor.page.reload()
    visitor.page.locator(".status.good").wait_for()
    again = visitor.page.evaluate(LOADED)
    assert again.keys() == first.keys()
    assert {url for url, size in again.items() if size > 0 and "/static/" in url} == set()
    assert sum(again.values()) < 1_000  # the page itself: 304
