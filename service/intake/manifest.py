"""A Finding as model.toml and labels.txt, and a minimal writer of TOML: tomllib only reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.intake.finding import Finding
from service.intake.told import LABELS, Told
from service.repository.files import digest_of, write_whole
from service.repository.spec import MANIFEST, ModelSpec, load_spec

Document = Mapping[str, Any]


def document(finding: Finding, told: Told, files: Mapping[str, Path]) -> Document:
    """What model.toml says. `files`: the weights by the name that they have beside it, the ONNX file first."""
    licence = finding.licence
    whole: dict[str, Any] = {
        "name": finding.name,
        "version": finding.file.sha256[:12],
        "task": finding.task,
        "family": finding.family,
        "summary": finding.summary,
        "precision": finding.precision,
        "nms": finding.nms,
    }
    if told.default:
        whole["default"] = True
    if finding.labels:
        whole["labels"] = LABELS
    if finding.alignment:
        whole["alignment"] = finding.alignment
    if finding.task == "face-liveness":
        whole["face_scale"] = finding.face_scale
    whole["licence"] = {"spdx": licence.spdx, "url": licence.url, "commercial_use": licence.commercial_use}
    whole["files"] = [{"name": name, "sha256": digest_of(path), "size": path.stat().st_size} for name, path in files.items()]
    whole["export"] = {"recipe": finding.recipe}
    if finding.contract is not None:
        whole["adapter"] = finding.contract.model_dump(exclude_defaults=True, exclude_none=True)
    whole["input"] = finding.input.model_dump(exclude_defaults=True, exclude_none=True)
    whole["batching"] = {"max_batch": finding.max_batch}
    whole["given"] = given(told)
    return whole


def given(told: Told) -> dict[str, Any]:
    """What was told, without the name; of labels that were listed, that they lie beside."""
    said = {name: value for name, value in told.said().items() if name != "name"}
    if "\n" in said.get("labels", "") or "," in said.get("labels", ""):
        said["labels"] = LABELS
    return said


def told_of(spec: ModelSpec) -> Told:
    """What was told when `spec` was written. Raises SpecInvalid where its labels cannot be read."""
    said = dict(spec.given)
    if said.get("labels") == LABELS:
        said["labels"] = "\n".join(spec.read_labels())
    return Told.model_validate({**said, "name": spec.name})


def write(folder: Path, finding: Finding, told: Told, files: Mapping[str, Path]) -> ModelSpec:
    """labels.txt and then model.toml in `folder`, each in one step, read back. Raises SpecInvalid where that does not fit."""
    if finding.labels:
        write_whole(folder / LABELS, ("\n".join(finding.labels) + "\n").encode())
    write_whole(folder / MANIFEST, to_toml(document(finding, told, files)).encode())
    return load_spec(folder)


def to_toml(table: Document) -> str:
    """TOML of a document of texts, numbers, truths, lists, tables, and lists of tables. What is None is left out."""
    lines: list[str] = []
    _table(table, (), lines)
    return "\n".join(lines).strip() + "\n"


def _table(table: Document, path: tuple[str, ...], lines: list[str]) -> None:
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping) or _is_tables(value)}
    lines.extend(f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in nested and value is not None)
    for key, value in nested.items():
        inner = (*path, _key(key))
        for one in [value] if isinstance(value, Mapping) else value:
            if one:
                lines.extend(["", f"[{'.'.join(inner)}]" if isinstance(value, Mapping) else f"[[{'.'.join(inner)}]]"])
                _table(one, inner, lines)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(_value(one) for one in value)}]"


def _text(text: str) -> str:
    """JSON's strings are TOML's, but for DEL and halves of characters that no text can hold."""
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")
