"""vision-service: classify pictures, find objects, compare faces and paint photos, over HTTP, from a shell or from Python.

from service import Engine
with Engine() as engine:
    print(engine.classify("cat.jpg").predictions[0].label)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.engine import Engine as Engine
    from service.settings import Settings as Settings

__version__ = "0.1.0"
__all__ = ["Engine", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Engine` and `Settings` on first use, so that `import service` stays instant and needs no runtime."""
    if name == "Engine":
        from service.engine import Engine

        return Engine
    if name == "Settings":
        from service.settings import Settings

        return Settings
    raise AttributeError(f"module 'service' has no attribute {name!r}")
