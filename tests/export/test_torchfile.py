"""The reader of torch's legacy files: what it reads, and everything that it must refuse without running it."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import ExportFailed
from service.export.torchfile import MAGIC, PROTOCOL, read_state_dict

FLOATS = np.arange(12, dtype=np.float32)
LONGS = np.array([7, 8], np.int64)
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def several(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


ORDERED = name("collections", "OrderedDict") + b")R"


def storage(kind: bytes = name("torch", "FloatStorage"), key: str = "a", length: int = 12) -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + whole(length) + b"Nt" + b"Q"


def tensor(where: bytes | None = None, offset: int = 0, size: tuple[int, ...] = (3, 4), stride: tuple[int, ...] = (4, 1)) -> bytes:
    """Opcodes that call torch._utils._rebuild_tensor_v2 as torch.save writes them."""
    arguments = (where or storage()) + whole(offset) + several(size) + several(stride) + b"\x89" + ORDERED
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def state(**tensors: bytes) -> bytes:
    return b"\x80\x02" + ORDERED + b"(" + b"".join(text(key) + value for key, value in tensors.items()) + b"u."


def numbers(*arrays: np.ndarray[Any, Any]) -> bytes:
    return b"".join(struct.pack("<q", len(array)) + array.tobytes() for array in arrays)


def legacy(tensors: bytes, keys: list[str], data: bytes, magic: int = MAGIC, system: object = None) -> bytes:
    head = b"".join(pickle.dumps(part, 2) for part in (magic, PROTOCOL, SYSTEM if system is None else system))
    return head + tensors + pickle.dumps(keys, 2) + data


GOOD = legacy(state(w=tensor()), ["a"], numbers(FLOATS))


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], dict[str, Any]]:
    def read_(data: bytes) -> dict[str, Any]:
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_state_dict(path)

    return read_


def test_tensors_come_back_as_they_were_saved(read: Callable[[bytes], dict[str, Any]]) -> None:
    longs = storage(name("torch", "LongStorage"), "b", 2)
    tensors = state(
        w=tensor(),
        transposed=tensor(size=(4, 3), stride=(1, 4)),
        tail=tensor(offset=9, size=(3,), stride=(1,)),
        empty=tensor(size=(0, 4), stride=(4, 1)),
        scalar=tensor(longs, offset=1, size=(), stride=()),
    )
    found = read(legacy(tensors, ["b", "a"], numbers(LONGS, FLOATS)))
    grid = FLOATS.reshape(3, 4)
    wanted = {"w": grid, "transposed": grid.T, "tail": FLOATS[9:], "empty": grid[:0], "scalar": LONGS[1]}
    assert list(found) == list(wanted)
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key], array)
        assert found[key].dtype == array.dtype
        assert found[key].flags.c_contiguous
        assert found[key].flags.writeable


def test_attributes_that_torch_puts_on_the_state_dict_are_no_harm(read: Callable[[bytes], dict[str, Any]]) -> None:
    metadata = b"}" + text("_metadata") + ORDERED + b"s" + b"b"
    tensors = state(w=tensor())[:-1] + metadata + b"."
    assert list(read(legacy(tensors, ["a"], numbers(FLOATS)))) == ["w"]


ROGUES = {
    "os.system": name("os", "system") + b"(" + text("touch pwned") + b"tR",
    "builtins.eval": name("builtins", "eval") + b"(" + text("open('pwned', 'w')") + b"tR",
    "builtins.exec by protocol 4": text("builtins") + text("exec") + b"\x93" + b"(" + text("open('pwned', 'w')") + b"tR",
    "dotted way to a module's globals": text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93",
    "another torch function": name("torch", "load") + b"(" + text("pwned") + b"tR",
    "numpy's pickle hook": name("numpy.core.multiarray", "_reconstruct"),
    "an instance by INST": b"(" + text("touch pwned") + b"ios\nsystem\n",
    "an instance by NEWOBJ": name("subprocess", "Popen") + text("touch pwned") + b"\x85\x81",
    "a subclass trick": name("collections", "OrderedDict.fromkeys"),
    "the copyreg registry": b"\x82\x01",
}


@pytest.mark.parametrize("rogue", ROGUES.values(), ids=list(ROGUES))
@pytest.mark.parametrize("place", ["first pickle", "state dict", "storage list"])
def test_no_pickle_runs_anything(
    rogue: bytes, place: str, read: Callable[[bytes], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = b"\x80\x04" + rogue + b"."
    data = {
        "first pickle": bad + GOOD,
        "state dict": legacy(state(w=tensor(), x=rogue), ["a"], numbers(FLOATS)),
        "storage list": legacy(state(w=tensor()), [], b"").removesuffix(pickle.dumps([], 2)) + bad + numbers(FLOATS),
    }[place]
    with pytest.raises(ExportFailed, match=r"weights\.pth"):
        read(data)
    assert os.listdir(tmp_path) == ["weights.pth"]  # noqa: PTH208


def test_a_pickle_cannot_change_the_reader(read: Callable[[bytes], dict[str, Any]]) -> None:
    """BUILD on one of the names that are known must not leave attributes behind for the next file."""
    for known in (name("torch._utils", "_rebuild_tensor_v2"), name("collections", "OrderedDict"), name("torch", "FloatStorage")):
        for poison in (b"}" + text("__call__") + b"Ns", b"N}" + text("__call__") + b"Ns\x86"):
            with pytest.raises(ExportFailed):
                read(legacy(b"\x80\x02" + known + poison + b"b.", ["a"], numbers(FLOATS)))
            np.testing.assert_array_equal(read(GOOD)["w"], FLOATS.reshape(3, 4))


DAMAGED = {
    "empty": (b"", "not a readable torch file"),
    "cut inside the state dict": (GOOD[:150], "not a readable torch file"),
    "cut inside a storage": (GOOD[:-1], "cut short"),
    "bytes left over": (GOOD + b"\0", "left over"),
    "zip format": (b"PK\x03\x04" + GOOD, "zip format"),
    "another magic": (legacy(state(w=tensor()), ["a"], numbers(FLOATS), magic=1), "legacy format"),
    "big-endian": (legacy(state(w=tensor()), ["a"], numbers(FLOATS), system={"little_endian": False}), "little-endian"),
    "no tensors": (legacy(pickle.dumps({"w": 1}, 2), [], b""), "other than a state dict"),
    "a list": (legacy(pickle.dumps([1], 2), [], b""), "other than a state dict"),
    "keys that do not match": (legacy(state(w=tensor()), ["a", "b"], numbers(FLOATS, FLOATS)), "does not match"),
    "keys that are numbers": (legacy(state(w=tensor()), [1], numbers(FLOATS)), "does not match"),
    "another length": (legacy(state(w=tensor()), ["a"], numbers(FLOATS[:5])), "cut short or of another length"),
    "reaches beyond": (legacy(state(w=tensor(offset=1)), ["a"], numbers(FLOATS)), "beyond its storage"),
    "strides beyond": (legacy(state(w=tensor(stride=(5, 1))), ["a"], numbers(FLOATS)), "beyond its storage"),
    "blown up by stride 0": (
        legacy(state(w=tensor(size=(1 << 30, 9), stride=(0, 0))), ["a"], numbers(FLOATS)),
        "beyond its storage",
    ),
    "negative stride": (legacy(state(w=tensor(stride=(-4, 1))), ["a"], numbers(FLOATS)), "torch does not write"),
    "negative offset": (legacy(state(w=tensor(offset=-1)), ["a"], numbers(FLOATS)), "torch does not write"),
    "more sizes than strides": (legacy(state(w=tensor(stride=(4,))), ["a"], numbers(FLOATS)), "torch does not write"),
    "negative length": (legacy(state(w=tensor(storage(length=-1))), ["a"], numbers(FLOATS)), "not a storage"),
    "unknown storage": (legacy(state(w=tensor(storage(text("Quantum")))), ["a"], numbers(FLOATS)), "not a storage"),
    "no storage": (legacy(state(w=tensor(b"N")), ["a"], numbers(FLOATS)), "torch does not write"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=list(DAMAGED))
def test_what_is_damaged_is_refused_by_name(data: bytes, message: str, read: Callable[[bytes], dict[str, Any]]) -> None:
    with pytest.raises(ExportFailed, match=rf"weights\.pth.*{message}"):
        read(data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match=r"absent\.pth"):
        read_state_dict(tmp_path / "absent.pth")
