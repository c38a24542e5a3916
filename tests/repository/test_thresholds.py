"""threshold.toml: written, read back, and refused where it does not hold."""

import datetime
from pathlib import Path

import pytest

from service.errors import SpecInvalid
from service.repository.spec import Rate, Threshold
from service.repository.thresholds import THRESHOLD, Calibrated, read_calibrated, remove_calibrated, write_calibrated

FOUND = Calibrated(
    digest="ab" * 32,
    method="aligned-1",
    threshold=Threshold(
        value=0.3141,
        false_match_rate=1e-05,
        false_non_match_rate=0.1 + 0.2,
        impostor_pairs=300_000,
        calibrated=datetime.date(2026, 2, 3),
        source='on "doors"\\\nof the house, täglich\t\x7f',
        rates=(Rate(threshold=-1.0, false_match_rate=1.0), Rate(threshold=0.3141, false_match_rate=1e-05)),
    ),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert write_calibrated(tmp_path, FOUND) == tmp_path / THRESHOLD
    assert read_calibrated(tmp_path) == FOUND
    assert [path.name for path in tmp_path.iterdir()] == [THRESHOLD]


def test_where_nothing_is_stored_nothing_is_read(tmp_path: Path) -> None:
    assert read_calibrated(tmp_path) is None
    assert remove_calibrated(tmp_path) is False


def test_removed_it_is_gone(tmp_path: Path) -> None:
    write_calibrated(tmp_path, FOUND)
    assert remove_calibrated(tmp_path) is True
    assert read_calibrated(tmp_path) is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("value = 0.3141", "value = 'high'", "threshold.value"),
        ('method = "aligned-1"', "", "method"),
        ("[threshold]", "[threshold", "--reset"),
        ("source", "sauce", "threshold."),
    ],
)
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = write_calibrated(tmp_path, FOUND)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SpecInvalid, match=THRESHOLD) as caught:
        read_calibrated(tmp_path)
    assert says in str(caught.value)
    assert "calibrate --reset" in str(caught.value)


def test_it_holds_for_its_weights_and_method_only() -> None:
    assert FOUND.differs("ab" * 32, "aligned-1") is None
    assert "other weights" in str(FOUND.differs("cd" * 32, "aligned-1"))
    assert "aligned-1, now aligned-2" in str(FOUND.differs("ab" * 32, "aligned-2"))


def test_where_a_threshold_comes_from() -> None:
    assert FOUND.threshold.origin == "calibrated 2026-02-03"
    assert FOUND.threshold.model_copy(update={"calibrated": None}).origin == "model"
