from pathlib import Path
from typing import Any

import pytest

from service.errors import SpecInvalid
from service.repository.spec import load_spec


@pytest.fixture
def manifest(make_spec: Any) -> Path:
    return make_spec().folder / "model.toml"


def test_a_whole_manifest(make_spec: Any) -> None:
    spec = make_spec()
    assert (spec.name, spec.export.graphs, spec.batching.max_batch) == ("tiny", ("model",), 1)
    assert spec.files[0].sources[0].label == "shelfware 1.0"
    assert spec.folder.name == "tiny"
    assert "folder" not in spec.model_dump()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('version = "1"\n', "", "version: Field required"),
        ('version = "1"\n', 'version = "1"\ncolour = "red"\n', "colour: Extra inputs are not permitted"),
        ('task = "classify"', 'task = "guess"', "task: Input should be 'classify', "),
        ('recipe = "tiny"', 'recipe = "tiny"\ngraphs = ["first"]', 'graphs must start with "model"'),
        ('spdx = "Apache-2.0"\n', "", "licence.spdx: Field required"),
        ("size = 300000", "size = 0", "files.0.size: Input should be greater than 0"),
        ('name = "data.bin"', 'name = "../data.bin"', "files.0.name: String should match"),
        ('version = "1.0"\n', "", "files.0.sources.0.PackageSource.version: Field required"),
        ("atol = 1e-06", "atol = 0", "parity.atol: Input should be greater than 0"),
        ('name = "tiny"', 'name = "other"', "name: is 'other', but the folder is called 'tiny'; make them the same"),
        ('name = "tiny"', "name = tiny", "Invalid value"),
        ('recipe = "tiny"', 'recipe = "tiny"\nkept = ["model"]', 'kept must be among the graphs, and not "model"'),
        ('task = "classify"', 'task = "paint"', '[layers] belongs to the task "paint", and that task needs it'),
        ("[parity]", '[layers]\nknown = ["a"]\ncontent = ["a"]\nstyle = ["b"]\n[parity]', "'b' is not among the known layers: a"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(manifest: Path, before: str, after: str, said: str) -> None:
    text = manifest.read_text()
    assert before in text
    manifest.write_text(text.replace(before, after, 1))
    with pytest.raises(SpecInvalid) as error:
        load_spec(manifest.parent)
    assert str(error.value).startswith(f"{manifest}: ")
    assert said in str(error.value)


def test_a_manifest_without_files_is_refused(manifest: Path) -> None:
    manifest.write_text("files = []\n" + manifest.read_text().split("[[files]]")[0])
    with pytest.raises(SpecInvalid, match="files: Tuple should have at least 1 item"):
        load_spec(manifest.parent)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecInvalid, match=r"model\.toml: .*No such file"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.org/w.bin", True),
        ("http://127.0.0.1:8000/w.bin", True),
        ("http://localhost/w.bin", True),
        ("http://example.org/w.bin", False),
        ("http://localhost.example.org/w.bin", False),
        ("http://127.0.0.1@example.org/w.bin", False),
        ("ftp://example.org/w.bin", False),
        ("file:///etc/passwd", False),
    ],
)
def test_plain_http_goes_only_to_this_machine(make_spec: Any, url: str, allowed: bool) -> None:
    if allowed:
        assert make_spec("tiny", {"url": url}).files[0].sources[0].label == url
    else:
        with pytest.raises(SpecInvalid, match=r"UrlSource\.url"):
            make_spec("tiny", {"url": url})


@pytest.fixture
def labels(manifest: Path) -> Path:
    """Where the labels belong that the manifest names."""
    manifest.write_text(manifest.read_text().replace('family = "tiny"', 'family = "tiny"\nlabels = "labels.txt"'))
    return manifest.with_name("labels.txt")


def test_a_model_may_have_no_labels(make_spec: Any) -> None:
    assert make_spec().read_labels() == ()


@pytest.mark.parametrize("text", ["tabby cat\nÅland pony\n", "tabby cat\r\nÅland pony"])
def test_labels_are_lines_in_class_order(labels: Path, text: str) -> None:
    labels.write_bytes(text.encode())
    assert load_spec(labels.parent).read_labels() == ("tabby cat", "Åland pony")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "No such file"),
        (b"", "is empty; it needs one label a line"),
        (b"cat\n\ndog\n", "line 2 is empty"),
        (b"cat\ndog\n \n", "line 3 is empty"),
        ("jalapeño\n".encode("latin-1"), "codec can't decode"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_by_name(labels: Path, data: bytes | None, said: str) -> None:
    if data is not None:
        labels.write_bytes(data)
    with pytest.raises(SpecInvalid) as error:
        load_spec(labels.parent)
    assert str(error.value).startswith(f"{labels}: ")
    assert said in str(error.value)
