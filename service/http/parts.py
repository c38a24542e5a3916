"""What app.create_app hands to the files that bring routes of their own: the protocols that other programs already speak.

Each of them is one file with a Protocol: the prefixes that it owns, its routes, and how it words an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from service.engine import Engine
from service.http.guards import UploadBudget, Workers
from service.http.openapi import Operation
from service.http.problems import Problem
from service.http.routes import Endpoint

Row = tuple[str, str, Endpoint, Operation]
"""Method, path, what stands behind it, and its entry on the API page."""


@dataclass(frozen=True)
class Parts:
    """`workers` carry tasks, `nice_workers` those that take seconds, `clerks` what waits for the gallery's database.

    `budget` is of the bodies of those who were admitted, `strangers`, where keys are set, of those whose key comes in the body.
    `admit` is asked where a key comes in the body, with the scopes of which one is needed and the key, or None where none was sent.
    It raises KeyMissing, KeyUnknown or ScopeMissing.
    """

    engine: Engine
    workers: Workers
    clerks: Workers
    budget: UploadBudget
    strangers: UploadBudget | None
    admit: Callable[[Scope, frozenset[str], str | None], None]
    nice_workers: Workers


@dataclass(frozen=True)
class Protocol:
    """`prefixes` of the paths that it owns. `rows(parts)` are its routes. `word(problem)` is the status and the JSON body by which
    it tells an error, whoever raised it: a route, the gate, or the server where nothing is at the path."""

    name: str
    prefixes: tuple[str, ...]
    rows: Callable[[Parts], list[Row]]
    word: Callable[[Problem], tuple[int, Mapping[str, Any]]]
