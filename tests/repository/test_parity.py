from typing import Any

import numpy as np
import pytest

from service.errors import ParityFailed, SpecInvalid
from service.repository.parity import Case, load_cases, sort_cases, worst_difference

WANTED = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


def case(**outputs: Any) -> Case:
    return Case(feeds={}, outputs=outputs)


@pytest.mark.parametrize(
    ("got", "value", "at"),
    [
        (WANTED, 0.0, 0),
        (WANTED + np.array([[0, 0], [0.5, 0]], np.float32), 0.5, 2),
        (WANTED - np.array([[0, 2], [0.5, 0]], np.float32), 2.0, 1),
        (np.array([[1, np.nan], [3, 4]], np.float32), np.inf, 1),
        (np.array([[1, 2], [3, -np.inf]], np.float32), np.inf, 3),
        (WANTED.astype(np.float64), 0.0, 0),
    ],
)
def test_worst_difference_finds_the_worst_value(got: Any, value: float, at: int) -> None:
    worst = worst_difference(case(y=WANTED), {"y": got})
    assert (worst.output, worst.value, worst.at) == ("y", value, at)


def test_stored_nan_never_passes() -> None:
    stored = np.array([np.nan], np.float32)
    assert worst_difference(case(y=stored), {"y": stored}).value == np.inf


def test_unsigned_bytes_do_not_wrap_around() -> None:
    assert worst_difference(case(y=np.array([0], np.uint8)), {"y": np.array([255], np.uint8)}).value == 255


def test_the_worst_of_several_outputs_is_named() -> None:
    outputs = {"a": WANTED + 0.1, "b": WANTED + 3, "unstored": WANTED * 9}
    worst = worst_difference(case(a=WANTED, b=WANTED), outputs)
    assert (worst.output, round(worst.value, 6)) == ("b", 3.0)


def test_an_empty_output_is_no_difference() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert worst_difference(case(y=empty), {"y": empty}).value == 0.0


def test_samples_compare_flat_indices() -> None:
    stored = Case({}, {}, {"y": (np.array([0, 3]), np.array([1.0, 4.5], np.float32))})
    worst = worst_difference(stored, {"y": WANTED})
    assert (worst.output, worst.value, worst.at) == ("y", 0.5, 3)


@pytest.mark.parametrize(
    ("stored", "outputs", "message"),
    [
        (case(y=WANTED), {"z": WANTED}, "no output 'y'; the outputs are: z"),
        (case(y=WANTED), {}, r"no output 'y'; the outputs are: \(none\)"),
        (case(y=WANTED), {"y": WANTED.ravel()}, r"'y' has the shape \(4,\), stored is \(2, 2\)"),
        (Case({}, {}, {"y": (np.array([4]), np.array([0.0]))}), {"y": WANTED}, "'y' has 4 values, stored is one at 4"),
        (Case({}, {}, {"y": (np.array([-1]), np.array([0.0]))}), {"y": WANTED}, "'y' has 4 values"),
        (Case({}, {}, {"q": (np.array([0]), np.array([0.0]))}), {"y": WANTED}, "no output 'q'"),
    ],
)
def test_answers_of_another_form_fail(stored: Case, outputs: Any, message: str) -> None:
    with pytest.raises(ParityFailed, match=message):
        worst_difference(stored, outputs)


def test_sort_cases_by_graph_and_kind() -> None:
    one, at = np.ones(3), np.array([0, 2, 5])
    cases = sort_cases(
        {
            "model/in/image": one,
            "model/out/scores/raw": one,
            "predict/in/style:0": one,
            "predict/at/code": at,
            "predict/values/code": one,
        }
    )
    assert set(cases) == {"model", "predict"}
    assert set(cases["model"].outputs) == {"scores/raw"}
    assert set(cases["predict"].feeds) == {"style:0"}
    assert cases["predict"].samples["code"][0] is at
    assert not cases["predict"].outputs


@pytest.mark.parametrize(
    "arrays",
    [
        {"model/in": np.ones(1)},
        {"pixels": np.ones(1)},
        {"model/output/y": np.ones(1)},
        {"model/at/y": np.array([0])},
        {"model/values/y": np.ones(1)},
        {"model/at/y": np.array([0, 1]), "model/values/y": np.ones(1)},
        {"model/at/y": np.array([0.0]), "model/values/y": np.ones(1)},
    ],
)
def test_names_that_mean_nothing_are_refused(arrays: Any) -> None:
    with pytest.raises(ValueError, match=r"means anything|whole numbers"):
        sort_cases(arrays)


@pytest.mark.parametrize(
    "arrays",
    [None, {}, {"model/in/x": np.ones(1)}, {"model/out/y": np.ones(1)}, {"other/in/x": np.ones(1), "other/out/y": np.ones(1)}],
)
def test_a_parity_file_must_guard_every_graph(make_spec: Any, arrays: Any) -> None:
    spec = make_spec()
    path = spec.folder / "parity.npz"
    if arrays is None:
        path.unlink()
    else:
        np.savez(path, **arrays)
    with pytest.raises(SpecInvalid, match=r"parity\.npz"):
        load_cases(spec)


@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no zip"])
def test_a_damaged_parity_file_is_named(make_spec: Any, harm: Any) -> None:
    spec = make_spec()
    path = spec.folder / "parity.npz"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(SpecInvalid, match=r"parity\.npz"):
        load_cases(spec)


def test_a_parity_file_with_a_wrong_name_in_it_is_named(make_spec: Any) -> None:
    spec = make_spec()
    np.savez(spec.folder / "parity.npz", pixels=np.ones(1))
    with pytest.raises(SpecInvalid, match=r"parity\.npz: \"pixels\" is not a name"):
        load_cases(spec)


def test_a_parity_file_is_never_unpickled(make_spec: Any) -> None:
    spec = make_spec()
    np.savez(spec.folder / "parity.npz", **{"model/in/x": np.array([{}], object), "model/out/y": np.ones(1)})
    with pytest.raises(SpecInvalid, match=r"parity\.npz"):
        load_cases(spec)


def test_differences_can_be_shares_of_each_output_s_largest_value() -> None:
    stored = case(a=np.array([0.0, 1e-6]), b=np.array([1000.0, -2000.0]))
    outputs = {"a": np.array([0.0, 1.1e-6]), "b": np.array([1001.0, -2000.0])}
    worst = worst_difference(stored, outputs, relative=True)
    assert (worst.output, worst.at) == ("a", 1)
    assert worst.value == pytest.approx(0.1)
    assert worst_difference(stored, outputs).output == "b"
