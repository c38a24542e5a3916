"""Sets a foreign graph's names apart from those of the house."""

from onnx import GraphProto, ModelProto, NodeProto

from service.export.adopt.tail import GIVEN, subgraphs


def set_apart(model: ModelProto) -> None:
    """Put GIVEN before the name of every tensor, in place, in the bodies of branches and loops too.

    onnx.compose.add_prefix forgets weights that only such a body reads.
    """
    _set_apart(model.graph)


def _set_apart(graph: GraphProto) -> None:
    for sparse in graph.sparse_initializer:
        sparse.values.name = GIVEN + sparse.values.name
    for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        named.name = GIVEN + named.name
    for node in graph.node:
        _rename(node)
        for inner in subgraphs(node):
            _set_apart(inner)
    del graph.quantization_annotation[:]  # notes on tensors by their old names, which no runtime needs


def _rename(node: NodeProto) -> None:
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            if name:  # an empty one is an input that was left out
                names[index] = GIVEN + name
