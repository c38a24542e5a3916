"""`vision-service faces ...` with the real models and the real database, on parts of one photo."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.cli import main
from service.cli.faces_album import read_album
from service.cli.faces_enroll import enroll_album
from service.cli.faces_journal import Journal
from service.engine import Engine
from service.gallery import open_gallery
from service.settings import Settings
from service.tasks.people import EnrollOptions

FACE = (120, 0, 330, 260)  # in the photo of an astronaut: left, upper, right, lower


@pytest.fixture
def people(tmp_path: Path, photo: Callable[[str], Any]) -> Path:
    """One person, mirrored, enlarged and dark, and a coffee cup."""
    face = Image.fromarray(photo("astronaut")).crop(FACE)
    photos = {
        "Eileen/plain.png": face,
        "Eileen/more/mirrored.png": face.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "Eileen/large.png": face.resize((420, 520)),
        "cup/coffee.png": Image.fromarray(photo("coffee")),
        "twin/dark.png": Image.fromarray((np.asarray(face) * 0.7).astype(np.uint8)),
    }
    for name, picture in photos.items():
        path = tmp_path / "people" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return tmp_path / "people"


@pytest.fixture
def real(engine: Engine, new_gallery: Callable[..., Any]) -> Iterator[Engine]:
    """A real engine on a gallery in memory."""
    settings = Settings(device="cpu", precision="float", tune=False, models=("yunet", "sface"))
    with Engine(settings, gallery=new_gallery(model=engine.recognition.embedding_model)) as real:
        yield real


def test_real_photos_are_enrolled_and_known_again(real: Engine, people: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        results = list(enroll_album(real, read_album(people), EnrollOptions(), journal))
    reports = {one.subject: one for one in results if one is not None}
    assert {name: one.added for name, one in reports.items()} == {"Eileen": 3, "cup": 0, "twin": 1}
    assert reports["cup"].refused[0].code == "no_face"
    assert reports["twin"].warnings[0].startswith("the same face seems to stand under 'Eileen'")
    answer = real.identify(people / "Eileen" / "large.png", top_k=2)
    assert [one.subject for one in answer.faces[0].candidates] == ["Eileen", "twin"]
    assert answer.faces[0].candidates[0].similarity == pytest.approx(1, abs=1e-5)


def test_enroll_takes_paths_and_gives_the_same_faces(real: Engine, people: Path) -> None:
    path = people / "Eileen" / "plain.png"
    first = real.enroll("Eileen", {"image": path})
    again = real.enroll("Eileen", {"as text": str(path), "as bytes": path.read_bytes()})
    assert [face.known for face in (*first.faces, *again.faces)] == [False, True, True]
    assert [face.photo for face in again.faces] == ["as text", "as bytes"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, Any, str]]:
    """A command on a database of its own: exit status, each line of JSON or the text, and what was complained of."""
    settings = {"DEVICE": "cpu", "PRECISION": "float", "TUNE": "false", "MODELS": "yunet,sface", "DATA_DIR": str(tmp_path / "data")}
    for name, value in settings.items():
        monkeypatch.setenv(f"VISION_{name}", value)

    def command(*argv: object) -> tuple[int, Any, str]:
        status = main(["faces", *map(str, argv)])
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()] if "--json" in argv else out, err

    return command


Run = Callable[..., tuple[int, Any, str]]


def test_enroll_list_identify_export_forget_import(run: Run, people: Path, tmp_path: Path) -> None:
    status, records, _ = run("enroll", people, "--gallery", "site", "--json")
    assert (status, records[-1]["added"], records[-1]["refused"]) == (1, 4, 1)
    status, records, _ = run("list", "--json")
    assert [(one["gallery"], one["subjects"], one["faces"], one["usable"]) for one in records] == [("site", 2, 4, True)]

    photo, drawn = people / "Eileen" / "plain.png", tmp_path / "drawn.png"
    status, (record,), _ = run("identify", photo, "--gallery", "site", "--out", drawn, "--json")
    assert (status, record["faces"][0]["candidates"][0]["subject"]) == (0, "Eileen")
    assert not np.array_equal(np.asarray(Image.open(drawn)), np.asarray(Image.open(photo)))

    file = tmp_path / "faces.gz"
    status, _, err = run("export", file)
    assert (status, err) == (0, "4 faces exported\n")
    assert file.stat().st_mode & 0o777 == 0o600
    status, _, err = run("export", file)
    assert status == 1
    assert "--force" in err
    before = file.read_bytes()
    assert run("forget", "Eileen", "--gallery", "site")[:2] == (0, "3 faces deleted\n")
    assert run("import", file)[:2] == (0, "3 faces added, 1 there already\n")
    assert run("export", file, "--force", "--gallery", "site")[0] == 0
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    status, out, _ = run("list", "--gallery", "site")
    assert [line.split()[-1] for line in out.splitlines()] == ["Eileen", "twin"]
    status, out, _ = run("enroll", people, "--gallery", "site")
    assert status == 1
    assert "2 subjects: 0 faces added, 4 there already, 1 photos refused" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["enroll", "nowhere"], "nowhere is not a folder"),
        (["list", "--gallery", "nope"], "there is no gallery 'nope'"),
        (["list", "--gallery", ""], "--gallery is empty"),
        (["forget", "Nobody"], "there is no subject 'Nobody'"),
        (["import", "nowhere.gz"], "nowhere.gz"),
        (["export", "/nowhere/faces.gz"], "/nowhere"),
        (["identify", "nowhere.jpg"], "nowhere.jpg does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Run, argv: list[str], message: str) -> None:
    status, _, err = run(*argv)
    assert status == 1
    assert message in err
    assert "Traceback" not in err


def test_a_gallery_of_another_model_is_listed_refused_and_renewed(
    run: Run, people: Path, engine: Engine, face: Callable[..., Any]
) -> None:
    older = replace(engine.recognition.embedding_model, method="older", dimension=16)
    with closing(open_gallery(Settings.from_env(), older)) as gallery:
        gallery.import_([face(1, "Eileen"), face(2, "cup")])
    status, (record,), _ = run("list", "--json")
    assert (record["model"]["method"], record["usable"]) == ("older", False)
    for argv in (["enroll", people], ["identify", people]):
        status, _, err = run(*argv)
        assert status == 1
        assert err.count("faces reembed FOLDER") == 1
    status, out, err = run("reembed", people)
    assert status == 1
    assert "refused: cup/coffee.png: no_face" in out
    assert "nothing was changed" in err
    status, (record,), _ = run("reembed", people, "--partial", "--drop-missing", "--json")
    assert (status, record["faces"], record["dropped"], record["left_out"]) == (1, 3, ["cup"], ["twin"])
    status, (record,), _ = run("list", "--json")
    assert (record["model"]["method"], record["subjects"], record["faces"], record["usable"]) == ("aligned-1", 1, 3, True)
    assert run("forget", "Eileen")[0] == 0
