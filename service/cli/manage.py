"""`vision-service models list | pull`: what models there are, and getting them; see adding.py for the other actions."""

import argparse
import json
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from service.cli import adding
from service.cli.verbs import Verbs
from service.errors import ModelUnknown
from service.repository.preference import choose_detector, standing_detector
from service.repository.progress import terminal_progress
from service.repository.public import alike, find_public, public_models, wanted
from service.repository.spec import ModelSpec
from service.repository.store import ensure, find_built, scan
from service.runtime.session import run_once
from service.settings import Settings


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser("models", help="list, pull, add, inspect or remove models")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="every model found: task, licence, source, and whether it is built")
    listing.add_argument("--available", action="store_true", help="the public models that can be pulled by name")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(run=show)

    pulling = actions.add_parser("pull", help="fetch weights and build models, so that serving needs no network")
    pulling.add_argument("names", nargs="*", metavar="NAME", help="models to pull (default: all that serving needs)")
    pulling.add_argument(
        "--accept-licence",
        action="append",
        default=[],
        metavar="NAME",
        help="a model, or a licence by its SPDX name, whose terms forbid commercial use and suit you; may be repeated",
    )
    pulling.set_defaults(run=pull)

    adding.add_to(actions)


def show(arguments: argparse.Namespace) -> int:
    settings = Settings.from_env()
    if arguments.available:
        return _show_public(settings, arguments.json)
    choice = standing_detector(settings)
    table = Table("model", "task", "licence", "commercial use", "built", "precisions", "from", box=None, pad_edge=False)
    for name, spec in scan(settings).items():
        built = find_built(spec, settings)
        precisions = [] if built is None else list(built.variants)
        sources = list(dict.fromkeys(source.label for file in spec.files for source in file.sources))
        if arguments.json:
            card = spec.model_dump(mode="json", include={"name", "version", "task", "family", "summary", "default", "licence"})
            print(json.dumps({**card, "built": built is not None, "precisions": precisions, "sources": sources}))
        use = "yes" if spec.licence.commercial_use else "no"
        place = "yes" if built else "no"
        table.add_row(name, spec.task, spec.licence.spdx, use, place, ", ".join(precisions), ", ".join(sources))
    if not arguments.json:
        _wide().print(table)
        if choice is not None:
            print(f"the default detector is {choice.name}: {choice.why}")
    return 0


def _show_public(settings: Settings, as_json: bool) -> int:
    """The catalogue: what there is to pull, how large and how good it is, and under which licence."""
    pulled = wanted(settings.model_copy(update={"models": (), "detector": "auto"}))
    columns = ("model", "also called", "task", "MB", "accuracy", "licence", "commercial use", "built")
    table = Table(*columns, box=None, pad_edge=False)
    for name, spec in public_models().items():
        built, size = name in pulled, sum(file.size for file in spec.files)
        if as_json:
            card = spec.model_dump(mode="json", include={"name", "aliases", "task", "summary", "licence", "accuracy", "precision"})
            print(json.dumps({**card, "bytes": size, "built": built}))
        figure = next((f"{one.metric} {one.value:g}" for one in spec.accuracy), "")
        use, there = ("yes" if spec.licence.commercial_use else "no"), ("yes" if built else "no")
        table.add_row(name, ", ".join(spec.aliases), spec.task, f"{size / 1e6:.1f}", figure, spec.licence.spdx, use, there)
    if not as_json:
        _wide().print(table)
    return 0


def _wide() -> Console:
    return Console(width=None if sys.stdout.isatty() else 200)  # whole rows in a pipe


def pull(arguments: argparse.Namespace) -> int:
    """Build the named models, or all that serving loads; those already in place are only checked."""
    settings, progress = Settings.from_env(), terminal_progress()
    if not arguments.names:
        choose_detector(settings, progress, run_once)
    specs = scan(settings)
    for spec in [to_pull(name, specs) for name in arguments.names] or specs.values():
        built = ensure(spec, settings, run_once, progress, accepted=arguments.accept_licence)
        print(f"{spec.name}: ready at {built.folder}")
    return 0


def to_pull(name: str, specs: Mapping[str, ModelSpec]) -> ModelSpec:
    """The model of that name or alias among `specs`, else in the catalogue. Raises ModelUnknown with names like it."""
    named = specs.get(name) or next((spec for spec in specs.values() if name in spec.aliases), None)
    if named is not None:
        return named
    try:
        return find_public(name)
    except ModelUnknown:
        public = (alias for spec in public_models().values() for alias in (spec.name, *spec.aliases))
        raise ModelUnknown(name, alike(name, [*specs, *public]) or list(specs)) from None
