"""`vision-service stylize --optimize`: painting by optimisation, with a bar that shows what is being made smaller.

Ctrl-C ends a painting after the iteration that it is at, and what has been painted so far is written; a second one ends at once.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from service.cli.files import Found, Target, find_photos
from service.cli.pictures import FORMATS, Outcome, check_format, complain, finish
from service.cli.pictures import run as paint_at_once
from service.cli.verbs import Verbs, add_options, read_options
from service.engine import Engine
from service.errors import OptionInvalid, SetupError, VisionError
from service.imaging.codec import encode
from service.tasks.optimize import OptimizeOptions, Step
from service.tasks.stylize import StylizeOptions

SHARED = frozenset(StylizeOptions.model_fields)
OWN = tuple(name for name in OptimizeOptions.model_fields if name not in SHARED)
STOPPED = 130  # the exit status of a program that was interrupted


class Stop:
    """Whether somebody has asked by Ctrl-C to stop."""

    asked = False

    def __call__(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def add_to(verbs: Verbs) -> None:
    """Adds to the verb `stylize`, which is there already."""
    parser = verbs.choices["stylize"]
    parser.add_argument(
        "--optimize", action="store_true", help="paint by optimisation, which takes minutes; needs --style-image, and takes:"
    )
    add_options(parser, OptimizeOptions, leave_out=SHARED)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Paint all photos one after the other. 1 when any failed, 130 when stopped by Ctrl-C."""
    _check(arguments)
    if not arguments.optimize:
        return paint_at_once(arguments)
    photos, options = find_photos(arguments.paths), read_options(arguments, OptimizeOptions)
    target, style = Target(arguments.out, photos), arguments.style_image.read_bytes()
    if target.file:
        check_format(arguments.out.suffix.lower(), options)
        options = options.model_copy(update={"format": FORMATS[arguments.out.suffix.lower()]})
    failed = 0
    with Engine() as engine, _interrupts() as stop:
        for photo in photos:
            try:
                finish(photo, _paint(engine, photo, style, options, stop), target, arguments.json)
            except SetupError:
                raise
            except (VisionError, OSError) as error:
                failed += 1
                complain(photo.path, error, arguments.json)
            if stop.asked:
                return STOPPED
    return 1 if failed else 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises OptionInvalid where options do not go together."""
    given = [name for name in OWN if getattr(arguments, name) is not None]
    if given and not arguments.optimize:
        raise OptionInvalid(given[0], f"--{given[0].replace('_', '-')} goes with --optimize")
    if arguments.optimize and arguments.style_image is None:
        raise OptionInvalid("style_image", "--optimize paints like a picture: name one with --style-image")
    for name in SHARED.difference(OptimizeOptions.model_fields):
        if arguments.optimize and getattr(arguments, name) is not None:
            raise OptionInvalid(name, f"--{name} does not go with --optimize")


def _paint(engine: Engine, photo: Found, style: bytes, options: OptimizeOptions, stop: Stop) -> Outcome:
    started = time.perf_counter()
    last: Step | None = None
    with closing(engine.optimize(photo.path, style, options)) as painting, _bar() as bar:
        row = bar.add_task(photo.path.name, total=None, made="", losses="")
        for last in painting:
            losses = f"content {last.content:.4g}  style {last.style:.4g}"
            bar.update(row, total=1.0, completed=last.done, made=f"{last.iteration}/{last.iterations}", losses=losses)
            if stop.asked:
                break
    if last is None:
        raise VisionError("nothing was painted")
    model = {} if painting.model is None else painting.model.model_dump(mode="json")
    return _outcome(last, model, time.perf_counter() - started, options, stop.asked)


def _outcome(last: Step, model: dict[str, str], seconds: float, options: OptimizeOptions, stopped: bool) -> Outcome:
    pixels = last.picture()
    height, width = pixels.shape[:2]
    losses = {name: float(getattr(last, name)) for name in ("content", "style", "variation", "total")}
    done = {"iteration": last.iteration, "iterations": last.iterations}
    record = {"model": model, "image": {"width": width, "height": height}, **done, "stopped": stopped, "losses": losses}
    record["seconds"] = round(seconds, 3)
    lines = [
        f"painted {width}x{height} in {seconds:.1f} s by {model['name']} on {model['provider']}",
        f"content loss {last.content:.4g}, style loss {last.style:.4g}",
    ]
    if stopped:
        lines.append(f"stopped after {last.iteration} of {last.iterations} iterations; this is what was painted so far")
    return Outcome(record, lines, encode(pixels, options.format, options.quality), f".{options.format.replace('jpeg', 'jpg')}")


def _bar() -> Progress:
    """On stderr, where somebody sees it."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[made]}"), TextColumn("{task.fields[losses]}")
    hidden = not sys.stderr.isatty()
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=hidden)


@contextmanager
def _interrupts() -> Iterator[Stop]:
    """Has Ctrl-C ask to stop, until the block ends."""
    stop = Stop()
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
