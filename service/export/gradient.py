"""Reverse-mode differentiation of a graph: appends the nodes that compute the gradient of a scalar by one of the tensors.

    y = f(x, ...)   ->   dx = sum over the inputs of f that depend on x of (df/dx)^T dy

The nodes are walked backwards from the loss. Each passes the gradient dy of what it gives on to those of its inputs that depend on
the tensor asked for, by the rule of its operator (service.export.gradient_rules); what arrives at a tensor by several ways is
added. No gradient of weights is computed, nor of anything else that does not depend on that tensor.

References: Linnainmaa 1976; Griewank and Walther, "Evaluating derivatives", 2008, chapter 3.
"""

from collections.abc import Iterable

import numpy as np
from onnx import NodeProto

from service.errors import ExportFailed
from service.export.gradient_rules import RULES, Backward
from service.export.graph import Graph


def append_gradient(graph: Graph, loss: str, wrt: str) -> str:
    """Append the gradient of `loss`, a float32 tensor of one element, by the tensor `wrt`; gives its name. It has wrt's shape.

    Two axes whose length is known at run time only are taken to be equal where an operator joins them: neither is a 1 that
    broadcasts. Raises ExportFailed where the loss does not depend on `wrt`, has more than one element, or has a node on the way
    whose operator, or way of using it, has no rule; the message names it.
    """
    nodes = graph.made
    moved = _dependents(nodes, wrt)
    if loss not in moved:
        raise ExportFailed(f"{loss!r} does not depend on {wrt!r}")
    back = Backward(graph, graph.shapes())
    shape = back.shapes.get(loss)
    if shape is None or any(axis != 1 for axis in shape):
        raise ExportFailed(f"{loss!r} is no scalar: its shape is {shape}")
    arrived: dict[str, list[str]] = {loss: [graph.constant(np.ones([1] * len(shape), np.float32))]}
    for node in reversed(nodes):
        if node.output[0] == wrt:
            break
        parts = [arrived.pop(name, []) for name in node.output]
        if not any(parts):
            continue
        if any(parts[1:]):
            raise ExportFailed(f"{node.op_type} {node.output[0]!r}: only its first output can be differentiated")
        dy = _total(graph, parts[0])
        for index, name in enumerate(node.input):
            if name in moved:
                dx = _rule(back, node, dy, index)
                arrived.setdefault(name, []).extend([] if dx is None else [dx])
    return _total(graph, arrived[wrt])


def _dependents(nodes: Iterable[NodeProto], wrt: str) -> set[str]:
    """`wrt` and the names of all tensors that are computed from it, but for their shapes, which it does not move."""
    moved = {wrt}
    for node in nodes:
        if node.op_type not in ("Shape", "Size") and not moved.isdisjoint(node.input):
            moved.update(node.output)
    return moved


def _rule(back: Backward, node: NodeProto, dy: str, index: int) -> str | None:
    rule = RULES.get(node.op_type)
    if rule is None:
        raise ExportFailed(f"{node.op_type} {node.output[0]!r}: no rule for its gradient; there are rules for: {', '.join(RULES)}")
    return rule(back, node, dy, index)


def _total(graph: Graph, parts: list[str]) -> str:
    total, *rest = parts
    for part in rest:
        total = graph.node("Add", total, part)
    return total
