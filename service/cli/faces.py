"""`vision-service faces enroll | list | identify | export | import | reembed | forget`: the people that the gallery knows."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.annotate import draw_identified
from service.cli import faces_enroll, faces_reembed, pictures
from service.cli.faces_album import printable
from service.cli.faces_file import read_faces, write_faces
from service.cli.faces_reembed import subjects
from service.cli.pictures import Outcome, bar, corners, encoded
from service.cli.verbs import Verbs, add_options
from service.engine import Engine
from service.errors import OptionInvalid
from service.gallery import open_gallery
from service.gallery.gallery import Collection, Entry, Gallery
from service.gallery.names import DEFAULT, check_name
from service.repository.files import put_in_place, sync
from service.tasks.people import EnrollOptions, IdentifiedFace, IdentifyOptions

GALLERY = "name of a separate collection of faces"


def add_to(verbs: Verbs) -> None:
    actions = verbs.add_parser("faces", help="know people again: enroll, list, identify, export, import, reembed, forget")
    parts = actions.add_subparsers(title="actions", metavar="ACTION", required=True)

    parser = parts.add_parser("enroll", help="enroll a folder of photos per subject; cut off, it goes on where it stopped")
    faces_enroll.folder_argument(parser)
    add_options(parser, EnrollOptions)
    _finish(parser, faces_enroll.run)

    parser = parts.add_parser("list", help="the collections of the gallery, or the subjects of one")
    parser.add_argument("--gallery", metavar="NAME", help=f"{GALLERY}, whose subjects are listed")
    _finish(parser, show)

    parser = parts.add_parser("identify", help="who are the people on each photo?")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="photos, or folders that are searched for photos")
    add_options(parser, IdentifyOptions)
    parser.add_argument("--out", type=Path, help="also write the photos with names drawn: a folder, or a file for one photo")
    _finish(parser, pictures.run)
    parser.set_defaults(kind=IdentifyOptions, work=_identify)

    parser = parts.add_parser("export", help="write faces to one portable file")
    parser.add_argument("file", type=Path, metavar="FILE", help="where to; - is standard output")
    parser.add_argument("--gallery", metavar="NAME", help=f"{GALLERY} (default: all)")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    parser.set_defaults(run=export)

    parser = parts.add_parser("import", help="add the faces of such a file, all or none")
    parser.add_argument("file", type=Path, metavar="FILE", help="where from; - is standard input")
    parser.add_argument("--gallery", metavar="NAME", help="collection to put them into, where the file holds only one")
    parser.set_defaults(run=import_)

    parser = parts.add_parser("reembed", help="embed a gallery anew that another model made, from a folder of photos per subject")
    faces_enroll.folder_argument(parser)
    add_options(parser, EnrollOptions)
    parser.add_argument("--drop-missing", action="store_true", help="forget subjects without a usable photo in the folder")
    _finish(parser, faces_reembed.run)

    parser = parts.add_parser("forget", help="delete a subject with all faces")
    parser.add_argument("subject", metavar="SUBJECT")
    parser.add_argument("--gallery", metavar="NAME", default=DEFAULT, help=f"{GALLERY} (default: {DEFAULT})")
    parser.set_defaults(run=forget)


def _finish(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=run)


@contextmanager
def opened() -> Iterator[Gallery]:
    """The gallery, whatever model made what is in it; only the embedding model is loaded, to say which it is."""
    with closing(Engine()) as engine, closing(open_gallery(engine.settings, engine.recognition.embedding_model)) as gallery:
        yield gallery


def show(arguments: argparse.Namespace) -> int:
    name = None if arguments.gallery is None else check_name("--gallery", arguments.gallery)
    with opened() as gallery:
        if name is None:
            list_collections(gallery, arguments.json)
        else:
            list_subjects(gallery, name, arguments.json)
    return 0


def list_collections(gallery: Gallery, as_json: bool) -> None:
    """Print every collection with its model and counts."""
    table = Table("gallery", "subjects", "faces", "model", "usable here", box=None, pad_edge=False)
    for one in gallery.collections():
        usable = one.model == gallery.model
        if as_json:
            print(json.dumps({**_described(one), "usable": usable, "database": gallery.place}))
        table.add_row(Text(printable(one.name)), str(one.subjects), str(one.faces), Text(str(one.model)), "yes" if usable else "no")
    if not as_json:
        Console(width=None if sys.stdout.isatty() else 200).print(table)
        print(f"in {gallery.place}, with {gallery.model} here")


def list_subjects(gallery: Gallery, collection: str, as_json: bool) -> None:
    """Print every subject of a collection, in order. Raises OptionInvalid where there is no such collection."""
    _collection(gallery, collection)
    for subject in subjects(gallery, collection):
        if as_json:
            times = {"created_at": subject.created_at.isoformat(), "updated_at": subject.updated_at.isoformat()}
            print(json.dumps({"subject": subject.name, "faces": subject.faces, **times}))
        else:
            print(f"{subject.faces:6}  {subject.updated_at:%Y-%m-%d %H:%M}  {printable(subject.name)}")


def export(arguments: argparse.Namespace) -> int:
    name = None if arguments.gallery is None else check_name("--gallery", arguments.gallery)
    out = arguments.file
    if str(out) != "-":
        _check_target(out, arguments.force)
    elif sys.stdout.isatty():
        raise OptionInvalid("FILE", "the file is not fit for a terminal; name a file, or send standard output elsewhere")
    with opened() as gallery:
        if str(out) == "-":
            count = export_to(gallery, name, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with _whole(out, arguments.force) as file:
                count = export_to(gallery, name, file)
    print(f"{count} faces exported", file=sys.stderr)
    return 0


def export_to(gallery: Gallery, collection: str | None, file: BinaryIO) -> int:
    """Write the faces of one collection, or of all, as a portable file: how many."""
    chosen = gallery.collections() if collection is None else [_collection(gallery, collection)]
    total = sum(one.faces for one in chosen)
    with bar(total, as_json=False) as progress:
        entries = progress.track(gallery.export(collection), total=total, description="Exporting...")
        return write_faces(file, gallery.model, [one.name for one in chosen], total, entries)


def import_(arguments: argparse.Namespace) -> int:
    name = None if arguments.gallery is None else check_name("--gallery", arguments.gallery)
    with opened() as gallery:
        if str(arguments.file) == "-":
            new, faces = import_from(gallery, name, sys.stdin.buffer)
        else:
            with arguments.file.open("rb") as file:
                new, faces = import_from(gallery, name, file)
    print(f"{new} faces added, {faces - new} there already")
    return 0


def import_from(gallery: Gallery, collection: str | None, file: BinaryIO) -> tuple[int, int]:
    """Add the faces of a portable file, all or none: how many were new, and how many there are in it.

    `collection`: where to put them, if not where they were. Raises what read_faces and the gallery raise.
    """
    header, entries = read_faces(file, gallery.model)
    if collection is not None and len(header.collections) > 1:
        raise OptionInvalid("--gallery", f"the file holds {len(header.collections)} collections, which stay apart; leave it out")
    faces = 0

    def counted() -> Iterator[Entry]:
        nonlocal faces
        with bar(header.faces, as_json=False) as progress:
            for entry in progress.track(entries, total=header.faces, description="Importing..."):
                faces += 1
                yield entry if collection is None else Entry(**{**vars(entry), "collection": collection})

    return gallery.import_(counted()), faces


def forget(arguments: argparse.Namespace) -> int:
    with opened() as gallery:
        faces = gallery.delete_subject(check_name("--gallery", arguments.gallery), check_name("SUBJECT", arguments.subject))
    print(f"{faces} faces deleted")
    return 0


def _identify(engine: Engine, path: Path, options: IdentifyOptions, arguments: argparse.Namespace) -> Outcome:
    photo = engine.decode(path)
    answer = engine.identify(photo, options)
    lines = [line for face in answer.faces for line in _who(face)] or ["no face found"]
    picture, suffix = None, ".png"
    if arguments.out is not None:
        picture, suffix = encoded(draw_identified(photo.pixels, answer.faces), path, arguments.out)
    return Outcome(answer.model_dump(mode="json"), lines, picture, suffix)


def _who(face: IdentifiedFace) -> list[str]:
    if face.unknown:
        return [f"unknown           {corners(face.box)}"]
    return [f"{one.similarity:.3f}  {printable(one.subject)}  {corners(face.box)}" for one in face.candidates]


def _described(collection: Collection) -> dict[str, Any]:
    counts = {"subjects": collection.subjects, "faces": collection.faces}
    return {"gallery": collection.name, "model": vars(collection.model), **counts}


def _collection(gallery: Gallery, name: str) -> Collection:
    found = {one.name: one for one in gallery.collections()}
    if name not in found:
        raise OptionInvalid("--gallery", f"there is no gallery {name!r}; there are: {', '.join(map(repr, found)) or 'none'}")
    return found[name]


def _check_target(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise OptionInvalid("FILE", f"{path} is there already; name another file, or give --force to replace it")


@contextmanager
def _whole(path: Path, force: bool) -> Iterator[BinaryIO]:
    """A file that only its owner can read, which stands at `path` once all is written, or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        sync(part)
        _check_target(path, force)
        put_in_place(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
