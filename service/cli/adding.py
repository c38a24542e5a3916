"""`vision-service models add | inspect | remove`: others' ONNX files, what they are, and their place among the models."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from service.cli.verbs import Verbs
from service.errors import ModelUnclear, ModelUnknown, OptionInvalid, VisionError
from service.intake.told import Told, read_labels, read_told
from service.repository.progress import terminal_progress
from service.repository.public import is_public, remove_pulled
from service.repository.store import added_models, manifests
from service.runtime.session import run_once
from service.settings import Settings

SETS = ("coco", "imagenet", "voc", "numbers")


def add_to(actions: Verbs) -> None:
    adding = actions.add_parser("add", help="add an ONNX file to the models: it is looked into, tried, and built")
    adding.add_argument("file", type=Path, metavar="FILE")
    _options(adding)
    adding.add_argument("--replace", action="store_true", help="take the place of an added model of the same name")
    adding.set_defaults(run=add)

    looking = actions.add_parser("inspect", help="say what an ONNX file is, and why")
    looking.add_argument("file", type=Path, metavar="FILE")
    _options(looking)
    looking.add_argument("--json", action="store_true", help="what is inside, as JSON: inputs, outputs, operators, metadata")
    looking.set_defaults(run=inspect)

    removing = actions.add_parser("remove", help="delete a model that was added, with its file")
    removing.add_argument("name", metavar="NAME")
    removing.set_defaults(run=remove)


def _options(parser: argparse.ArgumentParser) -> None:
    """One flag for each thing that can be told; what is right is Told's to say."""
    for name, field in Told.model_fields.items():
        text = (field.description or "").replace("%", "%%")
        if name == "labels":
            text = "a file with one class a line, the classes separated by commas, or coco, imagenet, voc, numbers"
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar=name.upper(), help=text)


def read_options(arguments: argparse.Namespace) -> Told:
    """What is told on the command line. Raises OptionInvalid naming the flag."""
    given = {name: getattr(arguments, name) for name in Told.model_fields}
    labels = given["labels"]
    if labels and labels not in SETS and not _are_names(labels):
        try:
            given["labels"] = read_labels(Path(labels))
        except OptionInvalid as error:
            ways = f"give a text file, the classes separated by commas, or one of {', '.join(SETS)}"
            raise OptionInvalid("labels", f"--labels {labels:.80}: {error}; {ways}") from None
    try:
        return read_told(given)
    except OptionInvalid as error:
        raise OptionInvalid(error.option, f"--{str(error).replace('_', '-', error.option.count('_'))}") from None


def _are_names(labels: str) -> bool:
    """Classes themselves, "bolt,nut", or the only one, "bolt": no file is there, and without a comma it does not look like one."""
    try:
        there = Path(labels).exists()
    except (OSError, ValueError):  # no name that a file could have: a long list
        return True
    return not there and ("," in labels or not set(labels) & set("./\\"))


def add(arguments: argparse.Namespace) -> int:
    from service.intake import place  # with onnx, 0.2 s that other verbs save

    settings, told = Settings.from_env(), read_options(arguments)
    root = added_models(settings)
    spec = place(
        arguments.file, told, root, settings, replace=arguments.replace, run_graph=run_once, progress=terminal_progress()
    )  # fmt: skip
    print(f"{spec.name}: {spec.summary}; ready at {spec.folder}")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Exit status 1 where the file is refused, or something has to be told; what was found is printed all the same."""
    if arguments.json:
        print(json.dumps(look_inside(arguments.file)))
        return 0
    from service.intake.inspecting import inspect as look
    from service.intake.words import Notes

    notes, told = Notes(), read_options(arguments)
    try:
        finding = look(arguments.file, told, Settings.from_env(), notes)
    except (VisionError, OSError) as error:
        _print("found", notes.facts)
        _print("taken to be so", notes.assumptions)
        if not isinstance(error, ModelUnclear):
            raise
        _print("to be said", [f"--{option.replace('_', '-')}: {meaning}" for option, meaning in notes.asked.items()])
        flags = ", ".join(f"--{option.replace('_', '-')}" for option in error.missing)
        print(f"vision-service: {arguments.file} needs {flags}", file=sys.stderr)
        return 1
    print(f"{finding.name}: {finding.task}, {finding.summary}")
    _print("found", finding.facts)
    _print("taken to be so", finding.assumptions)
    return 0


def _print(title: str, lines: Any) -> None:
    if lines:
        print(f"{title}:")
        print("\n".join(f"  - {line}" for line in lines))


def remove(arguments: argparse.Namespace) -> int:
    from service.intake import remove as delete

    settings = Settings.from_env()
    found = manifests(settings)
    folder = found.get(arguments.name) or added_models(settings) / arguments.name
    if Path(arguments.name).name != arguments.name or not folder.is_dir():
        raise ModelUnknown(arguments.name, list(found))
    if is_public(folder):
        remove_pulled(folder.name, settings)
    else:
        delete(folder, settings)
    print(f"{arguments.name}: removed from {folder.parent}")
    return 0


def look_inside(path: Path) -> dict[str, Any]:
    """Digest, opsets, inputs, outputs, operators and parameter count of an ONNX file. Raises OptionInvalid when it is none."""
    import hashlib
    import math

    import onnx
    from google.protobuf.message import DecodeError

    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise OptionInvalid("FILE", f"{path} is not a valid ONNX model: {error}") from None
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    operators = Counter(node.op_type for node in graph.node)
    return {
        "file": str(path),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "producer": f"{model.producer_name} {model.producer_version}".strip() or "unknown",
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_tensor(value) for value in graph.input if value.name not in weights],
        "outputs": [_tensor(value) for value in graph.output],
        "parameters": sum(math.prod(tensor.dims) for tensor in graph.initializer),
        "operators": dict(operators.most_common()),
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


def _tensor(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return {"name": value.name, "dtype": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), "shape": shape}
