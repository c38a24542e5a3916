"""What Ultralytics writes into an export: names, size, task. Untrusted data: parsed as literals, checked, else left out."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.intake.words import printable

LONGEST = 2**20  # characters of one entry
RT_DETR = "RTDETRDecoder"
"""What `head` is in RT-DETR's exports."""


@dataclass(frozen=True)
class Metadata:
    """names: in class order. size: height and width in pixels. Anything that is not there, or not well formed, is empty."""

    names: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    task: str = ""
    end_to_end: bool = False
    licence: str = ""
    is_ultralytics: bool = False
    head: str = ""


def parse(entries: Mapping[str, str]) -> Metadata:
    author = f"{entries.get('author', '')} {entries.get('description', '')}"
    arguments = _literal(entries.get("args", ""))
    nms = isinstance(arguments, dict) and arguments.get("nms") is True
    return Metadata(
        _names(_literal(entries.get("names", ""))),
        _size(_literal(entries.get("imgsz", ""))),
        entries.get("task", "").strip().lower(),
        nms or entries.get("end2end", "").strip().lower() == "true" or entries.get("nms", "").strip().lower() == "true",
        entries.get("license", ""),
        "ultralytics" in author.lower() or ("stride" in entries and "names" in entries),
        entries.get("head", "").strip(),
    )


def _literal(text: str) -> Any:
    if not text or len(text) > LONGEST:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _names(found: Any) -> tuple[str, ...]:
    """From {0: "cat", 1: "dog"} or ["cat", "dog"], one line each; empty where there are gaps or other things in it."""
    if isinstance(found, list | tuple):
        found = dict(enumerate(found))
    if not isinstance(found, dict) or set(found) != set(range(len(found))):
        return ()
    return tuple(printable(" ".join(str(found[index]).split())) or f"class {index}" for index in range(len(found)))


def _size(found: Any) -> tuple[int, int] | None:
    if isinstance(found, int):
        found = [found, found]
    if isinstance(found, list | tuple) and len(found) == 2 and all(isinstance(side, int) and 8 <= side <= 8192 for side in found):
        return found[0], found[1]
    return None
