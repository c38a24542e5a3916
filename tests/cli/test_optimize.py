"""`stylize --optimize` on a painting that is made up: what is written, told, refused, and kept at Ctrl-C."""

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from service.cli import main, optimize
from service.errors import ImageTooSmall
from service.photo import open_photo
from service.settings import Settings
from service.tasks.optimize import Step
from service.tasks.task import ModelInfo

PathOf = Callable[[str], Path]


class FakePainting:
    """All grey, lighter with each iteration; `before(n)` is called before iteration n."""

    model = ModelInfo(name="vgg16-hed", version="1", digest="ab" * 32, provider="CPUExecutionProvider", precision="float32")
    before: Callable[[int], object] = staticmethod(lambda _: None)

    def __init__(self, size: tuple[int, int], options: Any) -> None:
        self.size, self.options, self.closed = size, options, False
        self._steps = self._paint(options.iterations)

    def _paint(self, iterations: int) -> Iterator[Step]:
        for number in range(1, iterations + 1):
            FakePainting.before(number)
            picture = partial(np.full, (*self.size, 3), number, np.uint8)
            yield Step(number, iterations, *self.size, 1.5, 2.5, 0.5, 4.5, number / iterations, picture)

    def __iter__(self) -> Iterator[Step]:
        return self._steps

    def close(self) -> None:
        self.closed = True


class FakeEngine:
    made: list[FakePainting]

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def optimize(self, image: Path, style_image: bytes, options: Any) -> FakePainting:
        pixels = open_photo(image, Settings()).pixels
        open_photo(style_image, Settings())
        if pixels.shape[0] < 64:
            raise ImageTooSmall("the photo is too small")
        self.made.append(FakePainting(pixels.shape[:2], options))
        return self.made[-1]


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakePainting]:
    """Every painting that the command begins."""
    monkeypatch.setattr(FakeEngine, "made", [], raising=False)
    monkeypatch.setattr(FakePainting, "before", staticmethod(lambda _: None))
    monkeypatch.setattr(optimize, "Engine", FakeEngine)
    return FakeEngine.made


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = main(["stylize", *map(str, argv)])
    return status, *capsys.readouterr()


def grey(path: Path) -> int:
    with Image.open(path) as image:
        return int(np.asarray(image.convert("RGB"))[0, 0, 0])


def test_a_photo_is_painted_with_the_options_given(
    capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path, made: list[FakePainting]
) -> None:
    options = (
        "--optimize",
        "--iterations",
        7,
        "--style-weight",
        3,
        "--no-multi-scale",
        "--max-side",
        128,
        "--out",
        tmp_path / "p.jpg",
    )
    status, out, err = run(capsys, photo_path("chelsea"), "--style-image", photo_path("coffee"), *options)
    assert (status, err) == (0, "")
    asked = made[0].options
    assert (asked.iterations, asked.style_weight, asked.multi_scale, asked.max_side) == (7, 3.0, False, 128)
    assert made[0].closed
    with Image.open(tmp_path / "p.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (451, 300))
    assert "content loss 1.5, style loss 2.5" in out
    assert "by vgg16-hed on CPUExecutionProvider" in out
    assert "stopped" not in out


def test_several_photos_as_json_and_one_that_cannot_be_painted(
    capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "small.png")
    photos = photo_path("chelsea"), tmp_path / "small.png", photo_path("coffee")
    options = ("--style-image", photo_path("rocket"), "--optimize", "--iterations", 3, "--json", "--out", tmp_path / "painted")
    status, out, _ = run(capsys, *photos, *options)
    first, second, third = map(json.loads, out.splitlines())
    assert status == 1
    assert second["error"]["code"] == "image_too_small"
    assert (first["iteration"], first["iterations"], first["stopped"]) == (3, 3, False)
    assert first["losses"] == {"content": 1.5, "style": 2.5, "variation": 0.5, "total": 4.5}
    assert [grey(Path(record["written"])) for record in (first, third)] == [3, 3]


def test_ctrl_c_keeps_what_is_painted_so_far_and_says_so(
    capsys: pytest.CaptureFixture[str],
    photo_path: PathOf,
    tmp_path: Path,
    made: list[FakePainting],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(number: int) -> None:
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FakePainting, "before", staticmethod(interrupt))
    before = signal.getsignal(signal.SIGINT)
    photos = photo_path("chelsea"), photo_path("coffee")
    options = ("--style-image", photo_path("rocket"), "--optimize", "--iterations", 100, "--out", tmp_path)
    status, out, _ = run(capsys, *photos, *options)
    assert status == 130
    assert "stopped after 5 of 100 iterations; this is what was painted so far" in out
    assert grey(tmp_path / "chelsea.png") == 5
    assert len(made) == 1
    assert made[0].closed
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_at_once(
    capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insist(_: int) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FakePainting, "before", staticmethod(insist))
    options = ("--style-image", photo_path("rocket"), "--optimize", "--out", tmp_path / "p.png")
    assert run(capsys, photo_path("chelsea"), *options)[0] == 130
    assert not (tmp_path / "p.png").exists()


def test_a_terminal_shows_both_losses(
    capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(optimize, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(FakePainting, "before", staticmethod(lambda _: time.sleep(0.02)))
    options = ("--style-image", photo_path("rocket"), "--optimize", "--iterations", 20, "--out", tmp_path / "p.png")
    assert run(capsys, photo_path("chelsea"), *options)[0] == 0
    assert "content 1.5  style 2.5" in screen.getvalue()
    assert "/20" in screen.getvalue()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--style", "ink-wash", "--iterations", "5"], "--iterations goes with --optimize"),
        (["--optimize"], "name one with --style-image"),
        (["--optimize", "--style-image", "{photo}", "--strength", "0.5"], "--strength does not go with --optimize"),
        (["--optimize", "--style-image", "{photo}", "--style", "ink-wash"], "--style does not go with --optimize"),
        (["--optimize", "--style-image", "{photo}", "--iterations", "0"], "--iterations=0"),
        (["--optimize", "--style-image", "{photo}", "--format", "webp"], "--format is webp"),
        (["--optimize", "--style-image", "nope.png"], "nope.png"),
    ],
)
def test_what_does_not_go_together_is_said(
    capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path, arguments: list[str], told: str
) -> None:
    given = [argument.format(photo=photo_path("coffee")) for argument in arguments]
    status, _, err = run(capsys, photo_path("chelsea"), *given, "--out", tmp_path / "p.png")
    assert (status, told in err) == (1, True), err
    assert not list(tmp_path.iterdir())
