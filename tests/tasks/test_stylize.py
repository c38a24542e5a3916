"""The stylize task: which style, which model, how strong, which size; on fakes, and on the real models where looks matter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from service.errors import ImageTooSmall, ModelUnknown, OptionInvalid, SpecInvalid, StyleUnknown
from service.export.contract import Contract
from service.loaded import LoadedModel
from service.repository.spec import ModelSpec, load_spec
from service.repository.store import own_manifests
from service.tasks.stylize import (
    BY_NAME,
    BY_PICTURE,
    ONE,
    SAMPLE,
    TWO,
    StyleInfo,
    StylizeOptions,
    example,
    families_for,
    list_styles,
    pick_painter,
    style_vector,
    stylize,
    thumbnail,
    weights,
)
from service.tasks.task import Tensors, Timing

Pixels = NDArray[np.uint8]
Photo = Callable[[str], Pixels]
Loaded = Callable[[str], LoadedModel]

MULTISTYLE, MAGENTA = (load_spec(own_manifests() / name) for name in ("multistyle26", "magenta-arbitrary"))
FOUR = [StyleInfo(name=name, title=name, description="", model="m") for name in ("ink", "dots", "blue-wave", "dusk")]


@dataclass
class Fake:
    """Paints every pixel in one grey; "predict" answers with the mean of the picture as a hundred equal numbers."""

    spec: ModelSpec
    grey: int = 200
    feeds: list[tuple[str, Tensors]] = field(default_factory=list)
    labels: tuple[str, ...] = ()

    def run(self, feeds: Tensors, timing: Timing, graph: str = "model") -> Tensors:
        self.feeds.append((graph, feeds))
        if graph == "predict":
            return {"style": np.full((1, 100), feeds["pixels"].mean(), np.float32)}
        return {"painted": np.full_like(feeds["pixels"], self.grey)}

    def style(self) -> NDArray[np.generic]:
        """The style that the last painting was made with."""
        return next(feeds["style"] for graph, feeds in reversed(self.feeds) if graph == "model")


def flat(level: int, height: int = 40, width: int = 60) -> Pixels:
    return np.full((height, width, 3), level, np.uint8)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("dots", [0, 1, 0, 0]),
        (" Blue-Wave ", [0, 0, 1, 0]),
        ("ink,dusk", [0.5, 0, 0, 0.5]),
        ("ink,dots,dusk", [1 / 3, 1 / 3, 0, 1 / 3]),
        ("ink:0.6, dusk:0.4", [0.6, 0, 0, 0.4]),
        ("ink:3,dusk:1", [0.75, 0, 0, 0.25]),
        ("ink:1,ink:1,dots:2", [0.5, 0.5, 0, 0]),
        ("ink:0,dots:1e-3", [0, 1, 0, 0]),
        ("dots:7", [0, 1, 0, 0]),
    ],
)
def test_a_name_or_a_blend_becomes_weights_that_sum_to_one(text: str, wanted: list[float]) -> None:
    found = weights(text, FOUR)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [wanted], atol=1e-7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ink:0.5,dots", "every style of a blend a weight, or none"),
        ("ink:-1,dots:2", "'-1' is not a number of 0 or more"),
        ("ink:half", "'half' is not a number"),
        ("ink:nan,dots:1", "'nan' is not a number"),
        ("ink:inf", "'inf' is not a number"),
        ("ink:,dots:1", "'' is not a number"),
        ("ink:0", "at least one weight must be above 0"),
        ("", "a name is missing"),
        ("ink,", "a name is missing"),
        (":0.5,ink:0.5", "a name is missing"),
    ],
)
def test_a_broken_blend_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(OptionInvalid, match=message) as caught:
        weights(text, FOUR)
    assert caught.value.option == "style"


def test_an_unknown_style_is_answered_with_all_names_the_likeliest_first() -> None:
    with pytest.raises(StyleUnknown) as caught:
        weights("blue-waves:1", FOUR)
    assert caught.value.name == "blue-waves"
    assert caught.value.known[0] == "blue-wave"
    assert sorted(caught.value.known) == sorted(style.name for style in FOUR)


@pytest.mark.parametrize(("style", "has_image", "family"), [("ink-wash", False, BY_NAME), (None, True, BY_PICTURE)])
def test_the_style_says_which_families_can_paint(style: str | None, has_image: bool, family: tuple[str, ...]) -> None:
    assert families_for(StylizeOptions(style=style), has_image) == family


@pytest.mark.parametrize(
    ("style", "has_image", "message"), [("ink-wash", True, "not both"), (None, False, "style_image, any picture")]
)
def test_both_or_neither_style_is_refused(style: str | None, has_image: bool, message: str) -> None:
    options = StylizeOptions(style=style)
    for model in (MULTISTYLE, MAGENTA):
        with pytest.raises(OptionInvalid, match=message) as caught:
            stylize(flat(1), options, flat(2) if has_image else None, Fake(model), Timing(), 2048)
        assert caught.value.option == "style"
    with pytest.raises(OptionInvalid, match=message):
        pick_painter([MULTISTYLE, MAGENTA], options, has_image)


@pytest.mark.parametrize(
    ("options", "has_image", "wanted"),
    [
        ({"style": "ink-wash"}, False, "multistyle26"),
        ({}, True, "magenta-arbitrary"),
        ({"style": "ink-wash", "model": "multistyle26"}, False, "multistyle26"),
        ({"model": "magenta-arbitrary"}, True, "magenta-arbitrary"),
    ],
)
def test_the_model_is_picked_by_the_style(options: dict[str, str], has_image: bool, wanted: str) -> None:
    specs = [MAGENTA, load_spec(own_manifests() / "yolov3-tiny"), MULTISTYLE]
    assert pick_painter(specs, StylizeOptions(**options), has_image).name == wanted


def test_the_default_model_of_the_family_is_preferred() -> None:
    other = MULTISTYLE.model_copy(update={"name": "other", "default": False})
    assert pick_painter([other, MULTISTYLE], StylizeOptions(style="ink-wash"), False).name == "multistyle26"
    assert pick_painter([other], StylizeOptions(style="ink-wash"), False).name == "other"


@pytest.mark.parametrize(
    ("options", "has_image", "message"),
    [
        (
            {"style": "ink-wash", "model": "magenta-arbitrary"},
            False,
            "magenta-arbitrary: it takes a style_image, not a style by name",
        ),
        ({"model": "multistyle26"}, True, "multistyle26: it takes a style by name, not a style_image"),
    ],
)
def test_a_model_that_cannot_paint_the_style_is_refused(options: dict[str, str], has_image: bool, message: str) -> None:
    with pytest.raises(OptionInvalid, match=message) as caught:
        pick_painter([MULTISTYLE, MAGENTA], StylizeOptions(**options), has_image)
    assert caught.value.option == "model"
    wrong = Fake(MULTISTYLE if has_image else MAGENTA)
    with pytest.raises(OptionInvalid, match=message):
        stylize(flat(1), StylizeOptions(**options), flat(2) if has_image else None, wrong, Timing(), 2048)
    assert not wrong.feeds


@pytest.mark.parametrize("options", [{"style": "ink-wash"}, {"style": "ink-wash", "model": "yolov3-tiny"}])
def test_no_fitting_model_names_those_that_exist(options: dict[str, str]) -> None:
    with pytest.raises(ModelUnknown) as caught:
        pick_painter([MAGENTA, load_spec(own_manifests() / "yolov3-tiny")], StylizeOptions(**options), False)
    assert caught.value.known == ("magenta-arbitrary",)


@pytest.mark.parametrize(
    ("given", "limit", "wanted"), [(None, 2048, (40, 60)), (None, 30, (20, 30)), (1000, 2048, (40, 60)), (64, 2048, (43, 64))]
)
def test_the_answer_has_the_photos_size_up_to_max_side(given: int | None, limit: int, wanted: tuple[int, int]) -> None:
    photo = flat(9) if given != 64 else flat(9, 100, 150)
    painted = stylize(photo, StylizeOptions(style="ink-wash", max_side=given), None, Fake(MULTISTYLE), Timing(), limit)
    assert painted.shape == (*wanted, 3)
    assert painted.dtype == np.uint8
    assert painted.flags["C_CONTIGUOUS"]


def test_max_side_over_the_limit_is_refused() -> None:
    with pytest.raises(OptionInvalid, match="give 64 to 512") as caught:
        stylize(flat(9), StylizeOptions(style="ink-wash", max_side=513), None, Fake(MULTISTYLE), Timing(), 512)
    assert caught.value.option == "max_side"


@pytest.mark.parametrize(("height", "width", "max_side"), [(15, 80, 2048), (600, 15, 2048), (40, 900, 300)])
def test_too_small_a_photo_is_refused(height: int, width: int, max_side: int) -> None:
    with pytest.raises(ImageTooSmall, match="at least 16"):
        stylize(flat(9, height, width), StylizeOptions(style="ink-wash"), None, Fake(MULTISTYLE), Timing(), max_side)


@pytest.mark.parametrize(("strength", "wanted"), [(0.0, 100), (0.3, 130), (1.0, 200)])
def test_strength_of_a_built_in_style_is_its_opacity(strength: float, wanted: int) -> None:
    model = Fake(MULTISTYLE)
    painted = stylize(flat(100), StylizeOptions(style="ink-wash", strength=strength), None, model, Timing(), 2048)
    assert painted.tolist() == flat(wanted).tolist()
    assert model.style().tolist() == weights("ink-wash", list_styles(MULTISTYLE)).tolist()


@pytest.mark.parametrize(("strength", "style", "wanted"), [(0.0, 100, 100), (0.25, 95, 150), (0.5, 90, 200), (1.0, 80, 200)])
def test_strength_of_a_style_picture_mixes_styles_and_below_half_fades(strength: float, style: int, wanted: int) -> None:
    model = Fake(MAGENTA)
    painted = stylize(flat(100), StylizeOptions(strength=strength), flat(80), model, Timing(), 2048)
    np.testing.assert_allclose(model.style(), np.full((1, 100), style), atol=1e-4)
    assert painted.tolist() == flat(wanted).tolist()


def test_preserve_color_keeps_the_photos_hue() -> None:
    photo = np.full((40, 60, 3), (120, 60, 30), np.uint8)
    painted = stylize(
        photo, StylizeOptions(style="ink-wash", preserve_color=True), None, Fake(MULTISTYLE, grey=110), Timing(), 2048
    )
    red, green, blue = painted[20, 30].astype(int)
    assert red - green == pytest.approx(60, abs=2)
    assert green - blue == pytest.approx(30, abs=2)
    assert 0.299 * red + 0.587 * green + 0.114 * blue == pytest.approx(110, abs=2)


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        (256, 256, (256, 256)),
        (900, 900, (256, 256)),
        (40, 40, (256, 256)),
        (400, 600, (224, 320)),
        (2000, 100, (512, 128)),
        (9, 3000, (128, 512)),
    ],
)
def test_a_style_picture_keeps_its_proportions(height: int, width: int, wanted: tuple[int, int]) -> None:
    model = Fake(MAGENTA)
    style_vector(flat(7, height, width), model, Timing())
    ((graph, feeds),) = model.feeds
    assert graph == "predict"
    assert feeds["pixels"].shape == (1, *wanted, 3)


@pytest.mark.parametrize(
    "given",
    [{"strength": 1.1}, {"strength": -0.1}, {"max_side": 63}, {"quality": 0}, {"quality": 101}, {"format": "gif"}, {"stile": "x"}],
)
def test_options_out_of_range_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        StylizeOptions(**given)
    assert caught.value.errors()[0]["loc"] == tuple(given)


def other(name: str, family: str, size: tuple[int, int] | None = None) -> ModelSpec:
    wanted = MULTISTYLE.input.model_copy(update={"size": size})
    given = {"name": name, "family": family, "default": False, "styles": None, "summary": f"{name} in words", "input": wanted}
    return MULTISTYLE.model_copy(update=given)


MOSAIC, UDNIE, PAIR = other("mosaic-8.onnx", ONE), other("udnie", ONE, (224, 224)), other("pair", TWO, (32, 64))


def test_a_network_of_one_style_lends_it_its_name() -> None:
    (style,) = list_styles(MOSAIC)
    assert style == StyleInfo(
        name="mosaic-8.onnx", title="Mosaic 8.onnx", description="mosaic-8.onnx in words", model="mosaic-8.onnx"
    )


@pytest.mark.parametrize(
    ("options", "has_image", "wanted"),
    [
        ({"style": "ink-wash"}, False, "multistyle26"),
        ({"style": "udnie"}, False, "udnie"),
        ({"style": " Mosaic-8.onnx:2 "}, False, "mosaic-8.onnx"),
        ({"style": "ink-wash,"}, False, "multistyle26"),
        ({"model": "udnie"}, False, "udnie"),
        ({"model": "pair"}, True, "pair"),
        ({}, True, "magenta-arbitrary"),
    ],
)
def test_a_style_is_painted_by_the_model_that_has_it(options: dict[str, str], has_image: bool, wanted: str) -> None:
    specs = [MOSAIC, PAIR, UDNIE, MAGENTA, MULTISTYLE]
    assert pick_painter(specs, StylizeOptions(**options), has_image).name == wanted


def test_a_style_picture_goes_to_the_first_model_for_one_where_none_is_the_default() -> None:
    assert pick_painter([UDNIE, PAIR], StylizeOptions(), True).name == "pair"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"style": "ink-wash,udnie"}, OptionInvalid, "styles of one model; ink-wash is of multistyle26, udnie is of udnie"),
        ({"style": "undie"}, StyleUnknown, "no style 'undie'; use one of: udnie,"),
        ({"style": "undie", "model": "udnie"}, None, ""),
        ({"model": "pair"}, OptionInvalid, "say what to paint like"),
    ],
)
def test_a_style_that_no_model_has_is_refused(options: dict[str, str], error: type[Exception] | None, message: str) -> None:
    specs = [MULTISTYLE, UDNIE, PAIR]
    if error is None:  # the model is named: it says itself what it has
        with pytest.raises(StyleUnknown, match="use one of: udnie"):
            stylize(flat(9), StylizeOptions(**options), None, Fake(UDNIE), Timing(), 2048)
    else:
        with pytest.raises(error, match=message):
            pick_painter(specs, StylizeOptions(**options), False)


@pytest.mark.parametrize(("strength", "wanted"), [(0.0, 100), (0.3, 130), (1.0, 200)])
@pytest.mark.parametrize("spec", [MOSAIC, UDNIE, PAIR])
def test_other_peoples_networks_are_laid_over_the_photo(spec: ModelSpec, strength: float, wanted: int) -> None:
    model, style = Fake(spec), flat(80, 90, 30) if spec is PAIR else None
    options = StylizeOptions(style=None if spec is PAIR else spec.name, strength=strength, max_side=64)
    painted = stylize(flat(100, 80, 128), options, style, model, Timing(), 2048)
    assert painted.tolist() == flat(wanted, 40, 64).tolist()
    ((graph, feeds),) = model.feeds
    assert (graph, feeds["pixels"].shape[1:3]) == ("model", spec.input.size or (40, 64))
    assert ("style_pixels" in feeds) == (spec is PAIR)
    if spec is PAIR:
        assert feeds["style_pixels"].tolist() == flat(80, 32, 64)[None].tolist()


def test_a_style_picture_of_any_size_keeps_its_proportions_for_a_network_of_two_pictures() -> None:
    model = Fake(other("pair", TWO))
    stylize(flat(100), StylizeOptions(), flat(80, 400, 600), model, Timing(), 2048)
    assert model.feeds[0][1]["style_pixels"].shape == (1, 224, 320, 3)


def test_a_style_picture_is_brought_to_the_size_that_the_network_has_for_it() -> None:
    pair = other("pair", TWO, (32, 64))
    adapter = Contract(decoder="picture-and-style", size=(32, 64), style_size=(48, 40))
    model = Fake(pair.model_copy(update={"adapter": adapter}))
    stylize(flat(100), StylizeOptions(), flat(80, 400, 600), model, Timing(), 2048)
    assert model.feeds[0][1]["style_pixels"].shape == (1, 48, 40, 3)


def test_thumbnails_of_one_style_need_no_weights_of_styles() -> None:
    sample = example()
    with Image.open(BytesIO(thumbnail("udnie", sample, Fake(UDNIE), Timing()))) as opened:
        assert opened.size == (192, 144)
        assert opened.getpixel((90, 70)) == pytest.approx((200, 200, 200), abs=3)
    assert sample.std(axis=(0, 1)).min() > 10  # there is something to be painted


def test_every_built_in_style_has_its_own_name_and_words() -> None:
    styles = list_styles(MULTISTYLE)
    assert len(styles) == 26
    for part in ("name", "title", "description"):
        assert len({getattr(style, part) for style in styles}) == 26
    assert {style.model for style in styles} == {"multistyle26"}
    assert list_styles(MAGENTA) == ()


@pytest.mark.parametrize("text", ["styles = 3", '[[styles]]\nname = "Not A Slug"\ntitle = ""\ndescription = ""', "[[", ""])
def test_a_broken_list_of_styles_names_the_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "styles.toml").write_text(text)
    with pytest.raises(SpecInvalid, match=r"styles\.toml"):
        list_styles(MULTISTYLE.model_copy(update={"folder": tmp_path}))


def test_real_styles_paint_the_photo_and_differ(loaded: Loaded, photo: Photo) -> None:
    model, picture = loaded("multistyle26"), photo("chelsea")[:151, :203]
    painted = {
        text: stylize(picture, StylizeOptions(style=text), None, model, Timing(), 2048)
        for text in ("ink-wash", "crimson-night", "ink-wash,crimson-night")
    }
    assert all(result.shape == picture.shape for result in painted.values())
    ink, crimson = painted["ink-wash"].astype(int), painted["crimson-night"].astype(int)
    assert crimson[..., 0].mean() > crimson[..., 1].mean() + 30  # it is red
    assert np.ptp(ink.mean(axis=(0, 1))) < 40  # it is not
    assert np.corrcoef(ink.mean(axis=2).ravel(), picture.mean(axis=2).ravel())[0, 1] > 0.5  # the cat is still there


def test_a_style_picture_lends_its_colours(loaded: Loaded, photo: Photo) -> None:
    model, picture = loaded("magenta-arbitrary"), photo("china")[:200, :300]
    coffee = stylize(picture, StylizeOptions(), photo("coffee"), model, Timing(), 2048).astype(int)
    rocket = stylize(picture, StylizeOptions(), photo("rocket"), model, Timing(), 2048).astype(int)
    assert (coffee[..., 0] - coffee[..., 2]).mean() > (rocket[..., 0] - rocket[..., 2]).mean() + 40  # brown and night blue
    faint = stylize(picture, StylizeOptions(strength=0), photo("coffee"), model, Timing(), 2048)
    assert np.array_equal(faint, picture)


def test_thumbnails_are_small_jpegs_of_the_sample(loaded: Loaded) -> None:
    model = loaded("multistyle26")
    with Image.open(model.spec.folder / "weights" / SAMPLE) as sample:
        pixels = np.asarray(sample.convert("RGB"))
    pictures = {name: thumbnail(name, pixels, model, Timing()) for name in ("ink-wash", "brick-weave")}
    for data in pictures.values():
        with Image.open(BytesIO(data)) as picture:
            assert picture.format == "JPEG"
            assert picture.size == (192, 128)
        assert len(data) < 30_000
    with pytest.raises(StyleUnknown):
        thumbnail("no-such-style", pixels, model, Timing())
