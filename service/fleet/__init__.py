"""The models of an engine, as they come and go; see service.fleet.fleet."""

from service.fleet.fleet import Fleet, prepare

__all__ = ["Fleet", "prepare"]
