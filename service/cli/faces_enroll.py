"""`vision-service faces enroll FOLDER`: a folder per subject into the gallery, several photos at a time, resumable.

album -> photos not yet in the journal -> embeddings, in order -> one subject after the other into the gallery -> journal -> report
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from service.cli.faces_album import Album, Picture, printable, read_album, refuse
from service.cli.faces_journal import Journal, journal_path
from service.cli.files import in_order
from service.cli.pictures import bar
from service.cli.verbs import read_options
from service.engine import Engine
from service.errors import Busy, SetupError, SubjectUnknown, VisionError
from service.gallery.gallery import Gallery
from service.tasks.people import EnrolledFace, EnrollOptions, Prepared, Refusal, warn

CHUNK = 32
"""Faces that are stored together where a subject's photos need not stand or fall together."""


@dataclass(frozen=True)
class Task:
    """A photo to look at. `done`: its face is in the gallery already. `fingerprint`: of the file before it was read."""

    subject: str
    picture: Picture
    fingerprint: str = ""
    done: bool = False


@dataclass(frozen=True)
class Looked:
    """What came of it: a face that can be stored, why there is none, or nothing, where it is done."""

    task: Task
    face: Prepared | Refusal | None


@dataclass
class SubjectReport:
    """What became of a subject. `there`: photos whose face it had already; `withheld`: photos that were not enrolled only because
    others of the subject were refused."""

    subject: str
    faces: list[EnrolledFace] = field(default_factory=list)
    there: int = 0
    refused: list[Refusal] = field(default_factory=list)
    withheld: int = 0

    @property
    def added(self) -> int:
        return sum(not face.known for face in self.faces)

    @property
    def already(self) -> int:
        return self.there + sum(face.known for face in self.faces)

    @property
    def warnings(self) -> list[str]:
        return warn(self.faces, self.subject)

    def as_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "faces": [face.model_dump(mode="json") for face in self.faces],
            "added": self.added,
            "already_there": self.already,
            "withheld": self.withheld,
            "refused": [refusal.model_dump(exclude_none=True) for refusal in self.refused],
            "warnings": self.warnings,
        }


def run(arguments: argparse.Namespace) -> int:
    """0: every photo's face is in the gallery, 1: some photo was refused. Cut off, the same command goes on from there."""
    options = read_options(arguments, EnrollOptions)
    album = read_album(arguments.folder)
    with Engine() as engine:
        parts = engine.gallery.place, options.gallery, options.face, options.confidence
        path = journal_path(engine.settings.data_folder, arguments.folder, *parts)
        with Journal(path) as journal:
            return report(enroll_album(engine, album, options, journal), album, as_json=arguments.json)


def enroll_album(engine: Engine, album: Album, options: EnrollOptions, journal: Journal) -> Iterator[SubjectReport | None]:
    """A report a subject, once it is stored, and None after each photo that was looked at. Raises what the gallery raises."""
    looked = look(engine, _tasks(album, options.gallery, engine.gallery, journal), options)
    for subject, group in groupby(looked, key=lambda one: one.task.subject):
        yield from _enroll_subject(engine, SubjectReport(subject), group, options, journal)


def look(engine: Engine, tasks: Iterable[Task], options: EnrollOptions) -> Iterator[Looked]:
    """Each photo looked at, several at a time, in order. Raises SetupError; whatever else one photo meets is its refusal."""

    def attempt(task: Task) -> Looked:
        name = task.picture.name
        if task.done:
            return Looked(task, None)
        try:
            prepared, refused = engine.recognition.prepare_faces({name: task.picture.path}, options)
            return Looked(task, prepared[0] if prepared else refused[0])
        except SetupError:
            raise
        except (VisionError, OSError) as error:
            code = error.code if isinstance(error, VisionError) else "file_unusable"
            return Looked(task, refuse(name, code, str(error)))

    return in_order(attempt, tasks, engine.concurrency + 1)


def report(results: Iterable[SubjectReport | None], album: Album, as_json: bool) -> int:
    """Print what became of each subject, and all refusals again at the end; 1 when there were any. None of `results` are photos."""
    subjects = added = already = withheld = 0
    refused = list(album.refused)
    if as_json and refused:
        print(json.dumps({"subject": None, "refused": [refusal.model_dump(exclude_none=True) for refusal in refused]}))
    with stoppable(), bar(album.photos, as_json) as progress:
        task = progress.add_task("Enrolling...", total=album.photos)
        for result in results:
            if result is None:
                progress.advance(task)
                continue
            subjects += bool(result.added or result.already)
            added, already, withheld = added + result.added, already + result.already, withheld + result.withheld
            refused += result.refused
            print(json.dumps(result.as_json()) if as_json else "\n".join(_lines(result)), flush=True)
    totals = {"subjects": subjects, "added": added, "already_there": already, "withheld": withheld, "refused": len(refused)}
    if as_json:
        print(json.dumps({**totals, "empty": album.empty}))
    else:
        print(f"\n{subjects} subjects: {added} faces added, {already} there already, {len(refused)} photos refused")
        print("".join(f"no photos: {name}\n" for name in album.empty) + "".join(map(describe, refused)), end="")
        if withheld:
            print(f"{withheld} good photos were not enrolled because others of their subject were refused; --partial enrolls them")
    return 1 if refused else 0


def describe(refusal: Refusal) -> str:
    """A line about one refused photo."""
    limits = "" if refusal.limit is None else f" (measured {refusal.measured:g}, limit {refusal.limit:g})"
    return f"refused: {refusal.photo}: {refusal.code}{limits}: {refusal.detail}\n"


@contextmanager
def stoppable() -> Iterator[None]:
    """Says on stderr, when work that can be taken up again is cut off, how to do so."""
    try:
        yield
    except (KeyboardInterrupt, Busy):
        print("stopped; what is reported above is kept, and the same command goes on from there", file=sys.stderr)
        raise


def _tasks(album: Album, collection: str, gallery: Gallery, journal: Journal) -> Iterator[Task]:
    for subject, pictures in album.subjects.items():
        prints = [_fingerprint(picture) for picture in pictures]
        known = [journal.face_of(fingerprint) for fingerprint in prints]
        there = _face_ids(gallery, collection, subject) if any(known) else frozenset[str]()
        for picture, fingerprint, face in zip(pictures, prints, known, strict=True):
            yield Task(subject, picture, fingerprint, face in there)


def _fingerprint(picture: Picture) -> str:
    with suppress(OSError):  # whoever opens the photo will tell why it cannot be read
        return picture.fingerprint()
    return ""


def _face_ids(gallery: Gallery, collection: str, subject: str) -> frozenset[str]:
    try:
        return frozenset(face.face_id for face in gallery.subject(collection, subject)[1])
    except SubjectUnknown:
        return frozenset()


def _enroll_subject(
    engine: Engine, report: SubjectReport, group: Iterator[Looked], options: EnrollOptions, journal: Journal
) -> Iterator[SubjectReport | None]:
    ready = list[tuple[Task, Prepared]]()
    for one in group:
        if isinstance(one.face, Prepared):
            ready.append((one.task, one.face))
        elif isinstance(one.face, Refusal):
            report.refused.append(one.face)
        else:
            report.there += 1
        if options.partial and len(ready) == CHUNK:
            report.faces += _store(engine, report.subject, ready, options, journal)
            ready = []
        yield None
    if report.refused and not options.partial:
        report.withheld = len(ready)
    elif ready:
        report.faces += _store(engine, report.subject, ready, options, journal)
    yield report


def _store(
    engine: Engine, subject: str, ready: Sequence[tuple[Task, Prepared]], options: EnrollOptions, journal: Journal
) -> list[EnrolledFace]:
    faces = engine.recognition.store_faces(subject, [face for _, face in ready], options)
    journal.add((task.fingerprint, face.face_id) for (task, _), face in zip(ready, faces, strict=True) if task.fingerprint)
    return faces


def _lines(result: SubjectReport) -> list[str]:
    parts = {"added": result.added, "there already": result.already, "refused": len(result.refused), "withheld": result.withheld}
    counts = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    return [f"{printable(result.subject)}: {counts}", *(f"  warning: {printable(text)}" for text in result.warnings)]


def folder_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="holds a folder with photos for each subject, named as they are"
    )
