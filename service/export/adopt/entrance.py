"""The way in: uint8 RGB pixels [n, h, w, 3] become what a foreign graph wants of a picture."""

import numpy as np
from onnx import TensorProto, ValueInfoProto

from service.errors import ExportFailed
from service.export.adopt.tail import GIVEN, PIXELS, Dim, Tail
from service.export.contract import Contract
from service.export.rewrite import BATCH, Array

LUMA = (0.299, 0.587, 0.114)
"""Shares of R, G and B in grey: ITU-R BT.601, as Pillow and OpenCV have them."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_INTEGERS = (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64)


def dims_of(value: ValueInfoProto) -> tuple[int | None, ...] | None:
    """Axis lengths, None for a free one; None for all where the file does not say how many axes there are."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)


def picture_size(value: ValueInfoProto, contract: Contract) -> tuple[int | None, int | None]:
    """Height and width that the pixels will have: the input's own, else the contract's, else None. Raises ExportFailed."""
    shape = _four_axes(value, contract)
    own = (shape[2], shape[3]) if contract.layout == "NCHW" else (shape[1], shape[2])
    if contract.size is not None:
        for axis, has, wanted in zip(("high", "wide"), own, contract.size, strict=True):
            if has not in (None, wanted):
                raise ExportFailed(f"the input {_label(value)} is {has} pixels {axis}, fixed by its file, and cannot be {wanted}")
        return contract.size
    return own


def fix_size(value: ValueInfoProto, contract: Contract) -> None:
    """Let the foreign picture input, in place, have the size that its pixels will have."""
    height, width = picture_size(value, contract)
    dims = value.type.tensor_type.shape.dim
    if not dims:  # not even the number of axes was said
        for _ in range(4):
            dims.add()
    first = len(dims) - (2 if contract.layout == "NCHW" else 3)
    for dim, side in zip(dims[first : first + 2], (height, width), strict=True):
        if side is not None:
            dim.dim_value = side


def enter(tail: Tail, value: ValueInfoProto, contract: Contract, pixels: str = PIXELS) -> None:
    """Replace the foreign picture input `value` by the input `pixels`, uint8 RGB [n, h, w, 3].

    It becomes (pixels * scale - mean) / std in float32, in the contract's colour order and layout, and last of all of its own type.
    A file that takes one picture without a batch axis gets it without. Raises ExportFailed where the input is none for pictures.
    """
    shape, dtype = _four_axes(value, contract), value.type.tensor_type.elem_type
    channels = 1 if contract.color == "GRAY" else 3
    if shape[1 if contract.layout == "NCHW" else 3] not in (None, channels):
        raise ExportFailed(f"the input {_label(value)} has no {channels} channels as {contract.color} in {contract.layout} needs")
    if dtype not in (*_FLOATS, *_INTEGERS):
        raise ExportFailed(f"the input {_label(value)} is of type {TensorProto.DataType.Name(dtype)}, which is none for pixels")
    alone = len(dims_of(value) or ()) == 3
    batch = shape[0]
    height, width = picture_size(value, contract)
    name = _free_names(pixels)
    tail.replace_input(value.name, _converted(tail, pixels, contract, dtype, alone))
    axes: list[Dim] = [BATCH if batch is None else batch, height or name[0], width or name[1], 3]
    tail.add_input(pixels, TensorProto.UINT8, axes)


def _free_names(pixels: str) -> tuple[str, str]:
    return ("height", "width") if pixels == PIXELS else (f"{pixels}_height", f"{pixels}_width")


def _converted(tail: Tail, pixels: str, contract: Contract, dtype: int, alone: bool) -> str:
    mean, std, grey = np.array(contract.mean), np.array(contract.std), contract.color == "GRAY"
    factor, shift = contract.scale / std, -mean / std
    plain = not ((factor != 1).any() or shift.any())
    if dtype in _INTEGERS and not plain:
        raise ExportFailed("the file takes whole numbers: scale, mean and std must be left as they are (1, 0, 1)")
    current = TensorProto.FLOAT if grey or dtype != TensorProto.UINT8 else TensorProto.UINT8
    x = tail.cast(pixels, current) if current == TensorProto.FLOAT else pixels
    if grey:
        x = tail.node("MatMul", x, tail.constant(np.array(LUMA)[:, None]))
        x = tail.node("Floor", tail.add(x, 0.5))  # a grey picture holds whole numbers
    if contract.layout == "NCHW":
        x = tail.transpose(x, 0, 3, 1, 2)
    if contract.color == "BGR":
        x = tail.gather(x, [2, 1, 0], axis=1 if contract.layout == "NCHW" else 3)
    if (factor != 1).any():
        x = tail.mul(x, tail.constant(_by_channel(factor, contract)))
    if shift.any():
        x = tail.add(x, tail.constant(_by_channel(shift, contract)))
    if alone:
        x = tail.squeeze(x, 0)
    return x if dtype == current else tail.cast(x, dtype)


def _by_channel(values: Array, contract: Contract) -> Array:
    """One value, or one for each channel, as it broadcasts over pictures."""
    if np.ptp(values) == 0:
        return np.array(values[0])
    return values.reshape(3, 1, 1) if contract.layout == "NCHW" else values


def _four_axes(value: ValueInfoProto, contract: Contract) -> tuple[int | None, ...]:
    """Axes of the picture input, a missing batch axis as 1. Raises ExportFailed."""
    shape = dims_of(value)
    if shape is None:
        return (None, None, None, None)
    if len(shape) == 3 and contract.free_batch:
        raise ExportFailed(f"the batch cannot be freed: the input {_label(value)} takes one picture, without a batch axis")
    if len(shape) == 3:
        return (1, *shape)
    if len(shape) != 4:
        raise ExportFailed(f"the input {_label(value)} has {len(shape)} axes; a picture has four ({contract.layout})")
    return shape


def _label(value: ValueInfoProto) -> str:
    return repr(value.name.removeprefix(GIVEN))
