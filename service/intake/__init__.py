"""Others' ONNX files: read without trust, found out, told in words, written down as model.toml, and put in their place."""

from service.intake.dropped import adopt_dropped
from service.intake.finding import Finding
from service.intake.inspecting import inspect
from service.intake.place import change, place, remove
from service.intake.told import Told, read_told

__all__ = ["Finding", "Told", "adopt_dropped", "change", "inspect", "place", "read_told", "remove"]
