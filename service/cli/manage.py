"""`vision-service models list | pull | inspect`: what models there are, getting them, and looking inside an ONNX file."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from service.cli.verbs import Verbs
from service.errors import ModelUnknown, OptionInvalid
from service.repository.progress import terminal_progress
from service.repository.store import ensure, find_built, scan
from service.runtime.session import run_once
from service.settings import Settings


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser("models", help="list, pull or inspect models")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="every model found: task, licence, source, and whether it is built")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(run=show)

    pulling = actions.add_parser("pull", help="fetch weights and build models, so that serving needs no network")
    pulling.add_argument("names", nargs="*", metavar="NAME", help="models to pull (default: all)")
    pulling.set_defaults(run=pull)

    looking = actions.add_parser("inspect", help="say what is inside an ONNX file")
    looking.add_argument("file", type=Path, metavar="FILE")
    looking.add_argument("--json", action="store_true", help="as JSON")
    looking.set_defaults(run=inspect)


def show(arguments: argparse.Namespace) -> int:
    settings = Settings.from_env()
    table = Table("model", "task", "licence", "commercial use", "built", "precisions", "from", box=None, pad_edge=False)
    for name, spec in scan(settings).items():
        built = find_built(spec, settings)
        precisions = [] if built is None else list(built.variants)
        sources = list(dict.fromkeys(source.label for file in spec.files for source in file.sources))
        if arguments.json:
            card = spec.model_dump(mode="json", include={"name", "version", "task", "family", "summary", "default", "licence"})
            print(json.dumps({**card, "built": built is not None, "precisions": precisions, "sources": sources}))
        use = "yes" if spec.licence.commercial_use else "no"
        place = "yes" if built else "no"
        table.add_row(name, spec.task, spec.licence.spdx, use, place, ", ".join(precisions), ", ".join(sources))
    if not arguments.json:
        Console(width=None if sys.stdout.isatty() else 200).print(table)  # whole rows in a pipe
    return 0


def pull(arguments: argparse.Namespace) -> int:
    """Build the named models, or all; those already in place are only checked."""
    settings = Settings.from_env()
    specs = scan(settings)
    for name in arguments.names or specs:
        if name not in specs:
            raise ModelUnknown(name, list(specs))
        built = ensure(specs[name], settings, run_once, terminal_progress())
        print(f"{name}: ready at {built.folder}")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    found = look_inside(arguments.file)
    if arguments.json:
        print(json.dumps(found))
        return 0
    for key, value in found.items():
        if isinstance(value, list):
            print(f"{key}:")
            for item in value:
                print("    " + ("  ".join(str(part) for part in item.values()) if isinstance(item, dict) else str(item)))
        else:
            print(f"{key}: {value}")
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
