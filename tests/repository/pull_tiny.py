"""A recipe, a runner and a command for the smallest model there is: y = x + w, where w are the first four bytes of its weights.

As a command: python pull_tiny.py REPOSITORY NAME builds that model with the environment's pip settings and prints its graph.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, load, numpy_helper

from service.export.recipes import RECIPES
from service.repository.progress import Plain
from service.repository.spec import load_spec
from service.repository.store import ensure
from service.settings import Settings


def export(files: Mapping[str, Path]) -> dict[str, ModelProto]:
    w = np.frombuffer(next(iter(files.values())).read_bytes()[:4], np.uint8).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(w, "w")],
    )
    return {"model": helper.make_model(graph)}


def run_graph(path: Path, feeds: Mapping[str, Any]) -> dict[str, Any]:
    w = numpy_helper.to_array(load(path).graph.initializer[0])
    return {"y": feeds["x"] + w}


if __name__ == "__main__":
    RECIPES["tiny"] = "__main__:export"
    repository = Path(sys.argv[1])
    names = tuple(path.parent.name for path in repository.glob("*/model.toml"))
    settings = Settings(model_repository=(repository,), models=names)
    built = ensure(load_spec(repository / sys.argv[2]), settings, run_graph, Plain(sys.stderr))
    sys.stdout.write(f"{built.graphs['model']}\n")
