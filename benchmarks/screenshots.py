"""Pictures of the page, for README: every view on photos that come with scikit-image, light, dark and as a phone shows it.

    make screenshots [ARGS="detect-light phone"]       only those whose names begin so

Needs the extra `browser` and a Chromium on the PATH. The painting takes as long as it takes.
"""

import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import skimage
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, sync_playwright
from servers import ROOT, running_server

PHOTOS: Final = Path(skimage.__file__).parent / "data"
IMAGES: Final = ROOT / "docs" / "images"
FLAGS: Final = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
SIZES: Final = {"desk": (1320, 860, 1.25), "phone": (360, 780, 1.75)}  # width, height, device pixels a pixel
LARGEST: Final = 100_000  # bytes of a picture
HOST: Final = "localhost:8000"  # as README has it
SETTLED: Final = 400  # milliseconds until nothing moves any more


@contextmanager
def chromium(port: int) -> Iterator[Browser]:
    """A browser without a window, to which this port is HOST."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("there is no chromium on the PATH: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[*FLAGS, f"--host-resolver-rules=MAP {HOST} 127.0.0.1:{port}"]
        )
        yield browser
        browser.close()


def put(page: Page, name: str, stage: int = 0) -> None:
    """Choose a photo on the stage of that number in the view that is shown."""
    inputs = page.locator("[data-view]:not([hidden]) .stage:visible input[type=file]:not([capture])")
    inputs.nth(stage).set_input_files(PHOTOS / name)


def classify(page: Page) -> None:
    put(page, "chelsea.png")
    page.locator(".bars .row-button").first.wait_for()


def windows(page: Page) -> None:
    put(page, "chelsea.png")
    page.get_by_label("Window by window").check()
    page.locator(".window-said").wait_for()


def detect(page: Page) -> None:
    put(page, "coffee.png")
    page.locator(".found .row-button").first.wait_for()
    page.get_by_label("Confidence").fill("0.08")


def compare(page: Page) -> None:
    put(page, "astronaut.png")
    page.locator(".summary").wait_for()
    file = io.BytesIO()
    with Image.open(PHOTOS / "astronaut.png") as image:
        ImageOps.mirror(image.convert("RGB")).resize((300, 300)).save(file, "JPEG", quality=80)
    other = {"name": "mirrored.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
    page.locator(".compact input[type=file]:not([capture])").nth(1).set_input_files(other)
    page.locator(".verdict").wait_for()


def gallery(page: Page) -> None:
    page.get_by_label("Know people again").check()
    put(page, "astronaut.png")
    page.locator(".people li").first.wait_for()
    if page.locator(".unknown-face").count():
        page.locator(".unknown-face input").fill("Eileen Collins")
        page.locator(".unknown-face button").click()
    page.locator(".people .row-button").first.wait_for()
    page.locator(".subjects .label").first.wait_for()


def stylize(page: Page) -> None:
    put(page, "coffee.png")
    page.locator(".style[data-name=midnight-swirl]").click()
    page.locator(".finish").wait_for()
    page.locator(".wipe").fill("38")
    page.wait_for_function("() => [...document.querySelectorAll('.style img')].slice(0, 8).every((image) => image.naturalWidth)")


def picture(page: Page) -> None:
    put(page, "chelsea.png")
    page.get_by_label("Any picture").check()
    put(page, "rocket.jpg", 1)
    page.locator(".finish").wait_for()


def painting(page: Page) -> None:
    put(page, "chelsea.png")
    page.get_by_label("Step by step").check()
    put(page, "coffee.png", 1)
    page.get_by_label("max side").fill("256")
    page.get_by_label("iterations").fill("60")
    page.get_by_role("button", name="Start painting").click()
    page.get_by_text("Done:").wait_for(timeout=600_000)


def models(page: Page) -> None:
    page.locator(".model summary").first.click()


def start(_: Page) -> None:
    """The page as it is first seen."""


VIEWS: Final[dict[str, tuple[str, Callable[[Page], None]]]] = {
    "start": ("classify", start),
    "classify": ("classify", classify),
    "windows": ("classify", windows),
    "detect": ("detect", detect),
    "compare": ("faces", compare),
    "gallery": ("faces", gallery),
    "stylize": ("stylize", stylize),
    "picture": ("stylize", picture),
    "painting": ("stylize", painting),
    "models": ("models", models),
}


def shoot(browser: Browser, name: str, look: str) -> bytes:
    """One view as a PNG. `look`: light, dark or phone."""
    width, height, scale = SIZES["phone" if look == "phone" else "desk"]
    view, act = VIEWS[name]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        device_scale_factor=scale,
        color_scheme="dark" if look == "dark" else "light",
        reduced_motion="reduce",
        has_touch=look == "phone",
        is_mobile=look == "phone",
    )
    page.goto(f"http://{HOST}/#{view}")
    page.locator("[data-view]").wait_for()
    page.locator(".status.good").wait_for(state="attached")
    act(page)
    page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
    page.wait_for_timeout(SETTLED)
    shot = page.screenshot()
    page.close()
    return shot


def small(shot: bytes) -> bytes:
    """The same as a WebP of at most LARGEST bytes."""
    with Image.open(io.BytesIO(shot)) as image:
        for quality in range(84, 30, -6):
            file = io.BytesIO()
            image.convert("RGB").save(file, "WEBP", quality=quality, method=6)
            if len(file.getvalue()) <= LARGEST:
                break
    return file.getvalue()


def main(wanted: list[str], folder: Path = IMAGES) -> None:
    """Write the pictures whose names begin with one of `wanted`; none given: all."""
    with tempfile.TemporaryDirectory() as data:
        environ = {"VISION_GALLERY_URL": f"sqlite:///{data}/gallery.sqlite3"}
        with running_server(environ) as port, chromium(port) as browser:
            for look in ("light", "dark", "phone"):
                for name in VIEWS:
                    title = f"page-{name}-{look}"
                    if wanted and not any(f"{name}-{look}".startswith(one) or look == one for one in wanted):
                        continue
                    body = small(shoot(browser, name, look))
                    (folder / f"{title}.webp").write_bytes(body)
                    print(f"{title}.webp  {len(body) / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
