"""The chart of a calibration, as SVG and as PNG."""

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from service.cli.chart import HEIGHT, SCALE, WIDTH, draw_chart
from service.tasks.calibration import Scores

SVG = "{http://www.w3.org/2000/svg}"


def scores(genuine: int, impostor: int, *, apart: float = 0.6) -> Scores:
    random = np.random.default_rng(0)
    score = np.clip(np.concatenate([random.normal(apart, 0.1, genuine), random.normal(0, 0.1, impostor)]), -1, 1)
    return Scores(score, np.arange(genuine + impostor) < genuine, np.zeros((genuine + impostor, 2), np.intp))


def points(picture: ET.Element) -> Iterator[tuple[float, float]]:
    for shape in (*picture.iter(f"{SVG}polyline"), *picture.iter(f"{SVG}polygon")):
        for point in shape.attrib["points"].split():
            x, y = point.split(",")
            yield float(x), float(y)


@pytest.mark.parametrize(
    "of", [scores(100, 800), scores(1, 1), scores(3, 5000), scores(50, 50, apart=0.0), scores(20, 20, apart=-0.5)], ids=range(5)
)
@pytest.mark.parametrize("threshold", [0.363, -1.0, 1.0])
def test_every_point_lies_on_the_picture(of: Scores, threshold: float) -> None:
    picture = ET.fromstring(draw_chart(of, threshold, "svg").decode())
    for x, y in points(picture):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


def test_the_svg_is_labelled() -> None:
    picture = ET.fromstring(draw_chart(scores(100, 800), 0.363, "svg").decode())
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    wanted = [
        "one person (100)",
        "two people (800)",
        "ROC",
        "false-match rate (log scale)",
        "similarity (cosine)",
        "threshold 0.363",
    ]
    assert set(wanted) <= set(texts)
    assert "1e-3" in texts


def test_a_million_pairs_make_a_small_file() -> None:
    assert len(draw_chart(scores(2000, 200_000, apart=0.2), 0.1, "svg")) < 300_000


def test_the_png_shows_both_kinds_on_a_light_background() -> None:
    with Image.open(io.BytesIO(draw_chart(scores(100, 800), 0.363, "png"))) as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (WIDTH * SCALE, HEIGHT * SCALE), "RGB")
        pixels = np.asarray(picture).astype(int)
    assert np.median(pixels) == 255
    blue, orange = (pixels @ sign > 40 for sign in (np.array([-1, 0, 1]), np.array([1, 0, -1])))
    assert blue.sum() > 2000
    assert orange.sum() > 2000
    assert np.nonzero(orange)[1].mean() < np.nonzero(blue)[1].mean()
