"""`vision-service calibrate`: pairs in, error rates out, and the threshold stored; on an engine that reads text files as faces."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.cli import calibrate, main
from service.cli.calibrate import calibrated, compare, look_at
from service.cli.calibration_report import Report, for_target, rates_in_use, report
from service.cli.pairs import Pairs, read_pairs
from service.engine import Engine
from service.errors import OptionInvalid
from service.repository.thresholds import THRESHOLD
from service.tasks.calibration import Scores
from service.tasks.people import Refusal

MADE_BY = {"model": "sface", "version": "2021dec", "digest": "ab" * 32, "method": "aligned-1", "precision": "int8"}
FAR = Refusal(photo="x", code="no_face", detail="no face was found in x", measured=None, limit=None)


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CSV of lines."""

    def write(*lines: str) -> Path:
        path = tmp_path / "pairs.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def towards(degrees: float) -> Any:
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)


@pytest.mark.parametrize("word", ["1", "true", "YES", " True "])
def test_pairs_of_one_person(table: Callable[..., Path], word: str) -> None:
    assert read_pairs(table("file_a,file_b,same", f"a.jpg,b.jpg,{word}")).pairs == [("a.jpg", "b.jpg", True)]


def test_columns_may_stand_anywhere_and_others_are_noted(table: Callable[..., Path]) -> None:
    found = read_pairs(table("\ufeffsource, same ,file_b,file_a", 'x,no,"b, c.jpg",a.jpg', "y,0,a.jpg,ä.jpg"))
    assert found.pairs == [("a.jpg", "b, c.jpg", False), ("ä.jpg", "a.jpg", False)]
    assert found.notes == ["columns that are not used: source"]


def test_repeated_pairs_count_once_whichever_way_round(table: Callable[..., Path]) -> None:
    found = read_pairs(table("file_a,file_b,same", "a,b,1", "b,a,1", "a,b,yes", "a,c,0"))
    assert found.pairs == [("a", "b", True), ("a", "c", False)]
    assert found.notes == ["2 repeated pairs count once"]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["a,b,1"], "line 1: there is no column file_a, file_b, same"),
        (["file_a,file_b,same", "a,b,1", "a,c,perhaps"], "line 3: same is 'perhaps'"),
        (["file_a,file_b,same", "a,a,1"], "line 2: a is paired with itself"),
        (["file_a,file_b,same", ",a,1"], "line 2: a file name is missing"),
        (["file_a,file_b,same", "a,b"], "line 2: same is ''"),
        (["file_a,file_b,same", "a,b,1", "b,a,0"], "line 3: b and a were a pair of one person before"),
        (["file_a,file_b,same"], "has no pairs"),
    ],
)
def test_a_wrong_line_is_named(table: Callable[..., Path], lines: list[str], says: str) -> None:
    with pytest.raises(OptionInvalid, match=r"pairs\.csv") as caught:
        read_pairs(table(*lines))
    assert says in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(b"file_a,file_b,same\n\xff,b,1\n")
    with pytest.raises(OptionInvalid, match="not CSV in UTF-8"):
        read_pairs(path)


def test_pairs_without_a_face_are_counted_and_not_scored() -> None:
    pairs = Pairs([("a", "b", True), ("a", "x", True), ("x", "b", False), ("a", "c", False)])
    scores, acquired = compare(pairs, {"a": towards(0), "b": towards(10), "c": towards(90), "x": FAR})
    np.testing.assert_allclose(scores.score, [np.cos(np.radians(10)), 0], atol=1e-6)
    assert (acquired.listed_genuine, acquired.listed_impostor, acquired.genuine, acquired.impostor) == (2, 2, 1, 1)
    assert [(lost.file, lost.pairs, lost.code) for lost in acquired.failures] == [("x", 2, "no_face")]


def test_pairs_that_contradict_others_are_noted() -> None:
    pairs = Pairs([("a", "b", True), ("b", "c", True), ("a", "c", False)])
    compare(pairs, {name: towards(0) for name in "abc"})
    assert pairs.notes == ["1 pairs are said to be of two people whom other pairs say to be one; see to PAIRS.csv"]


def test_every_photo_is_looked_at_once(reader: Engine, tmp_path: Path) -> None:
    for name, text in {"a": "1", "b": "2", "c": "none"}.items():
        (tmp_path / name).write_text(text)
    pairs = Pairs([("a", "b", False), ("b", "a", False), ("a", "c", True), ("a", "gone", True)])
    seen = look_at(reader, pairs, tmp_path, "prominent", quiet=True)
    assert sorted(reader.looked) == ["a", "b", "c", "gone"]  # type: ignore[attr-defined]
    assert [of.code for of in seen.values() if isinstance(of, Refusal)] == ["no_face", "file_unusable"]


def many(impostor: int = 400) -> tuple[Scores, Report]:
    """40 pairs of one person from 0.4 to 0.9, and `impostor` of two people from 0 to 0.5."""
    people = [(n, n) for n in range(40)] + [(n % 40, (n + 1 + n // 40) % 40) for n in range(impostor)]
    score = np.concatenate([np.linspace(0.4, 0.9, 40), np.linspace(0, 0.5, impostor)])
    scores = Scores(score, np.arange(len(score)) < 40, np.array(people, np.intp))
    acquired = calibrate.Acquired(
        photos=80, people=40, listed_genuine=40, listed_impostor=impostor, genuine=40, impostor=impostor, failures=[]
    )
    return scores, report(scores, acquired, MADE_BY, rates_in_use(scores, 0.45, "model"), 1e-3, ["a note"])


def test_the_report_says_what_cannot_be_told() -> None:
    text = "\n".join(many()[1].lines())
    assert "40 pairs of one person, 400 of two; 80 photos of 40 people" in text
    assert "over people" in text
    assert "0.001   not resolved: needs 3,000 pairs of two people or more, there are 400" in text
    assert text.endswith("note: a note")


def test_the_report_rates_the_threshold_in_use_and_the_targets() -> None:
    scores, found = many()
    used, first = found.in_use, found.targets[0]
    assert used.false_match_rate.events == int((np.linspace(0, 0.5, 400) >= 0.45).sum())
    assert used.false_non_match_rate.events == 4
    assert used.false_match_rate.interval[0] < used.false_match_rate.value < used.false_match_rate.interval[1]
    assert [target.target for target in found.targets] == [0.01, 0.001, 0.0001]
    assert first.false_match_rate == 0.01
    assert first.threshold is not None
    assert 0.494 < first.threshold < 0.5
    assert found.best.accuracy >= used.accuracy
    assert for_target(scores, 0.001).threshold is None


def test_what_is_stored_says_how_it_was_measured() -> None:
    scores, found = many()
    kept = calibrated(scores, 0.45, found)
    assert (kept.digest, kept.method, kept.threshold.value) == (MADE_BY["digest"], "aligned-1", 0.45)
    assert kept.threshold.impostor_pairs == 400
    assert kept.threshold.false_non_match_rate == 0.1
    assert "40 pairs of one person and 400 of two" in kept.threshold.source
    assert kept.threshold.origin == f"calibrated {kept.threshold.calibrated}"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "PAIRS.csv is missing"),
        (["pairs.csv", "--reset"], "--reset stands alone"),
        (["pairs.csv", "--chart", "chart.jpg"], "does not end in .svg or .png"),
    ],
)
def test_a_wrong_command_line_is_explained(capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    assert main(["calibrate", *argv]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "1", "2", "nan", "some"])
def test_a_rate_lies_between_0_and_1(capsys: pytest.CaptureFixture[str], rate: str) -> None:
    with pytest.raises(SystemExit):
        main(["calibrate", "pairs.csv", "--target-fmr", rate])
    assert "--target-fmr" in capsys.readouterr().err


@pytest.fixture
def portraits(tmp_path: Path, photo: Callable[[str], Any], models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """PAIRS.csv of one person's face, cut out and mirrored, and of a cat; the models in a repository of their own."""
    from PIL import Image

    face = Image.fromarray(photo("astronaut")[0:200, 120:330])
    face.save(tmp_path / "a.png")
    face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    Image.fromarray(photo("astronaut")[300:500, 0:200]).save(tmp_path / "none.png")
    second = Image.fromarray(np.ascontiguousarray(photo("astronaut")[::-1]))
    second.rotate(180).save(tmp_path / "c.png")
    for name in ("yunet", "sface"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        for file in models(name).iterdir():
            if file.is_file() and not file.name.startswith(".") and file.name not in {THRESHOLD, "tuning.json"}:
                os.link(file, folder / file.name)
    monkeypatch.setenv("VISION_MODEL_REPOSITORY", str(tmp_path / "models"))
    monkeypatch.setenv("VISION_MODELS", "yunet,sface")
    monkeypatch.setenv("VISION_DEVICE", "cpu")
    monkeypatch.setenv("VISION_PRECISION", "float")
    monkeypatch.setenv("VISION_TUNE", "false")
    with (tmp_path / "pairs.csv").open("w", newline="") as lines:
        # the mirrored face stands for "two people" here: it is only known that the verb measures what it is told
        csv.writer(lines).writerows(
            [("file_a", "file_b", "same"), ("a.png", "c.png", 1), ("b.png", "c.png", 0), ("a.png", "none.png", 0)]
        )
    return tmp_path / "pairs.csv"


def test_calibrate_on_photos_writes_what_the_next_start_uses(capsys: pytest.CaptureFixture[str], portraits: Path) -> None:
    folder, chart = portraits.parent, portraits.parent / "chart.svg"
    status = main(["calibrate", str(portraits), "--json", "--chart", str(chart), "--threshold", "0.25", "--write"])
    out, _ = capsys.readouterr()
    found = json.loads(out)
    assert status == 0
    assert (found["pairs"]["genuine"], found["pairs"]["impostor"]) == (1, 1)
    assert [(lost["file"], lost["pairs"]) for lost in found["pairs"]["failures"]] == [("none.png", 1)]
    assert found["in_use"]["source"] == "--threshold"
    assert chart.read_text().startswith("<svg")
    with Engine() as engine:
        answer = engine.verify_face(folder / "a.png", folder / "b.png")
    assert answer.threshold == 0.25
    assert answer.threshold_source.startswith("calibrated 2")
    assert answer.false_match_pairs == 1
    assert main(["calibrate", "--reset"]) == 0
    with Engine() as engine:
        answer = engine.verify_face(folder / "a.png", folder / "b.png")
    assert (answer.threshold, answer.threshold_source) == (0.363, "model")


def test_a_rate_that_the_pairs_cannot_tell_is_not_written(capsys: pytest.CaptureFixture[str], portraits: Path) -> None:
    assert main(["calibrate", str(portraits), "--write"]) == 1
    assert "a false-match rate of 0.001 needs 3,000 pairs of two people, there are 1" in capsys.readouterr().err
    assert not (portraits.parent / "models" / "sface" / THRESHOLD).exists()


def test_pairs_of_one_kind_measure_nothing(capsys: pytest.CaptureFixture[str], portraits: Path) -> None:
    portraits.write_text("file_a,file_b,same\na.png,c.png,1\na.png,none.png,0\n")
    assert main(["calibrate", str(portraits)]) == 1
    assert "no usable pair of one person, or none of two people, is left; none.png: no face" in capsys.readouterr().err
