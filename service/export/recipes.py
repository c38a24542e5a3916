"""The table of export recipes: a name in a model.toml's [export] to the function that does it.

One more name is no row here: "adopt", service.export.adopt, which needs the manifest's [adapter] too.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from onnx import ModelProto

from service.errors import SpecInvalid

Recipe = Callable[[Mapping[str, Path]], dict[str, ModelProto]]
"""Takes the verified weight files by their names in model.toml; gives the graphs by the names in [export] graphs."""

RECIPES = {
    "darknet": "service.export.darknet:export",
    "efficientnet-lite": "service.export.efficientnet_lite:export",
    "vgg16-features": "service.export.backbones:export_vgg16",
    "darknet-features": "service.export.backbones:export_darknet",
    "yunet": "service.export.yunet:export",
    "sface": "service.export.sface:export",
    "multistyle": "service.export.multistyle:export",
    "magenta-arbitrary": "service.export.magenta:export",
}


def find_recipe(name: str) -> Recipe:
    """Import the recipe called `name`. Raises SpecInvalid naming the recipes that exist."""
    try:
        module, function = RECIPES[name].split(":")
    except KeyError:
        raise SpecInvalid(f"there is no export recipe {name!r}; the recipes are: {', '.join(RECIPES)}") from None
    recipe: Recipe = getattr(import_module(module), function)
    return recipe
