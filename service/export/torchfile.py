"""Reads a state dict out of torch's legacy .pth format (before 1.6; not a zip archive) without torch and without trusting it.

The file is five pickles and then raw numbers:
    magic number, protocol 1001, {"little_endian": ...},
    the state dict, each tensor as (storage by key, offset, size, stride),
    the storages' keys; then for each of these keys an int64 count and that many little-endian numbers.
A pickle may name any function of the interpreter to be called. Here exactly three kinds of names are known, and none of
them runs anything: OrderedDict, torch's tensor constructor (which becomes a record), and the storage types (which become
strings). Any other name refuses the file. Reference: torch/serialization.py, `_legacy_load`.
"""

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import ExportFailed

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    key: str
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """A copy of this tensor's numbers, after checking that the view stays inside its storage."""
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if math.prod(self.size) > len(numbers) or (0 not in self.size and last >= len(numbers)):
            raise ExportFailed("a tensor reaches beyond its storage")
        strides = [step * numbers.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.size, strides).copy()


class _RebuildTensor:
    """Stands in for torch._utils._rebuild_tensor_v2."""

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> _Tensor:
        shaped = (
            isinstance(storage, _Storage) and isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        )
        if shaped and all(isinstance(number, int) and number >= 0 for number in (offset, *size, *stride)):
            return _Tensor(storage, offset, size, stride)
        raise ExportFailed("a tensor is described in a way that torch does not write")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict  # BUILD, which sets attributes, cannot change a type of the interpreter
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()  # a new one, so that BUILD changes nothing that stays
        if module == "torch" and name in DTYPES:
            return name
        raise ExportFailed(f"the pickle asks for {module}.{name}, which a state dict has no use for; refused")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", str(kind), str(key), str(), int(length), None) if kind in DTYPES and length >= 0:
                return _Storage(DTYPES[kind], key, length)
        raise ExportFailed(f"the pickle refers to {pid!r:.80}, which is not a storage")


def read_state_dict(path: Path) -> dict[str, NDArray[Any]]:
    """All tensors of a legacy .pth file by name, as C-contiguous arrays of their own dtype and shape.

    Raises ExportFailed where the file cannot be read, is damaged or cut short, is of another format, has bytes left over,
    or names anything but tensors. Nothing of the file is ever executed.
    """
    try:
        return _read(path.read_bytes())
    except ExportFailed as error:
        raise ExportFailed(f"{path}: {error}") from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise nearly anything
        raise ExportFailed(f"{path}: not a readable torch file: {type(error).__name__}: {error}") from None


def _read(data: bytes) -> dict[str, NDArray[Any]]:
    if data[:4] == b"PK\x03\x04":
        raise ExportFailed("torch's zip format; only the legacy format is read here")
    stream = io.BytesIO(data)
    magic, protocol, system = (_Unpickler(stream).load() for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ExportFailed("not a little-endian torch file in the legacy format")
    tensors, keys = _Unpickler(stream).load(), _Unpickler(stream).load()
    if not isinstance(tensors, dict) or not all(isinstance(k, str) and isinstance(t, _Tensor) for k, t in tensors.items()):
        raise ExportFailed("holds something other than a state dict of tensors")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if sorted(keys) != sorted(storages):
        raise ExportFailed("its list of storages does not match its tensors")
    numbers = {key: _read_storage(stream, storages[key]) for key in keys}
    if stream.read(1):
        raise ExportFailed("has bytes left over behind the last storage")
    return {name: tensor.view(numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_storage(stream: io.BytesIO, storage: _Storage) -> NDArray[Any]:
    length = int.from_bytes(stream.read(8), "little", signed=True)
    data = stream.read(storage.length * storage.dtype.itemsize)
    if length != storage.length or len(data) != storage.length * storage.dtype.itemsize:
        raise ExportFailed(f"storage {storage.key} is cut short or of another length than announced")
    return np.frombuffer(data, storage.dtype)
