"""A foreign ONNX file, by its contract, as a graph of the house: see service.export.contract for both ends."""

from pathlib import Path

from onnx import ModelProto

from service.export.contract import Contract


def adopt(path: Path, contract: Contract) -> ModelProto:
    """The graph "model" made of the ONNX file at `path`. Raises ExportFailed naming what does not fit the contract."""
    from service.export.adopt.graph import rewritten

    return rewritten(path, contract)
