"""The tasks on files and whole folders: classify, detect, detect-faces, stylize, and verify-face on two photos."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import Progress

from service.annotate import draw_detections, draw_faces, draw_heat
from service.cli.files import Found, Target, find_photos, in_order
from service.cli.verbs import Verbs, add_options, read_options
from service.engine import Engine
from service.errors import InputError, OptionInvalid, SetupError, VisionError
from service.imaging.codec import Format, encode
from service.photo import Photo
from service.runtime.machine import usable_cores
from service.tasks.classify import ClassifyOptions
from service.tasks.detect import DetectOptions
from service.tasks.faces import DetectFacesOptions, VerifiedPhoto, VerifyFaceAnswer, VerifyFaceOptions
from service.tasks.stylize import StylizeOptions
from service.tasks.task import Box, Strict

FORMATS: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""What pictures can be written as, by the end of the file's name."""


@dataclass(frozen=True)
class Outcome:
    """What one photo gave: the answer as JSON, the same for people, and the picture to write where one was asked for."""

    answer: dict[str, Any]
    lines: list[str]
    picture: bytes | None = None
    suffix: str = ".png"


Work = Callable[[Engine, Path, Any, argparse.Namespace], Outcome]


def add_to(verbs: Verbs) -> None:
    for name, (kind, work, text) in TASKS.items():
        parser = verbs.add_parser(name, help=text)
        parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="photos, or folders that are searched for photos")
        add_options(parser, kind)
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
        if name == "stylize":
            parser.add_argument("--style-image", type=Path, metavar="FILE", help="any picture, whose style is taken")
            parser.add_argument("--out", type=Path, required=True, help="where paintings go: a folder, or a file for one photo")
        else:
            what = "heat maps (needs --explain or --sliding-window)" if name == "classify" else "boxes"
            parser.add_argument(
                "--out", type=Path, help=f"also write the photos with {what} drawn: a folder, or a file for one photo"
            )
        parser.set_defaults(run=run, kind=kind, work=work, out=None)

    parser = verbs.add_parser("verify-face", help="do two photos show the same person? (exit status 0: yes, 3: no)")
    parser.add_argument("image1", type=Path, metavar="PHOTO1")
    parser.add_argument("image2", type=Path, metavar="PHOTO2")
    add_options(parser, VerifyFaceOptions)
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=compare)


def run(arguments: argparse.Namespace) -> int:
    """One task over all photos, several at a time. A photo that fails is reported and the rest go on; 1 when any failed."""
    photos, options = find_photos(arguments.paths), read_options(arguments, arguments.kind)
    target = None if arguments.out is None else Target(arguments.out, photos)
    if target is not None and target.file:
        _check_format(arguments.out.suffix.lower(), options)
    if getattr(arguments, "style_image", None) is not None:
        arguments.style_image = arguments.style_image.read_bytes()  # once, and before any photo is blamed for it
    failed = 0
    with Engine() as engine:

        def attempt(photo: Found) -> Outcome | VisionError | OSError:
            try:
                return cast(Work, arguments.work)(engine, photo.path, options, arguments)
            except SetupError:  # no photo is to blame, and the next one would meet it too
                raise
            except (VisionError, OSError) as error:
                return error

        results = zip(photos, in_order(attempt, photos, usable_cores() + 1), strict=True)
        with bar(len(photos), arguments.json) as progress:
            for photo, result in progress.track(results, total=len(photos)):
                try:
                    _finish(photo, result, target, arguments.json)
                except (VisionError, OSError) as error:
                    failed += 1
                    _complain(photo.path, error, arguments.json)
    return 1 if failed else 0


def compare(arguments: argparse.Namespace) -> int:
    """0 when both photos show the same person, 3 when they do not."""
    options = read_options(arguments, VerifyFaceOptions)
    with Engine() as engine:
        first, second = (_decoded(engine, path) for path in (arguments.image1, arguments.image2))
        answer = engine.verify_face(first, second, options)
    print(answer.model_dump_json() if arguments.json else "\n".join(_verdict(answer)))
    return 0 if answer.verified else 3


def _decoded(engine: Engine, path: Path) -> Photo:
    try:
        return engine.decode(path)
    except InputError as error:
        error.args = (f"{path}: {error}",)
        raise


def _classify(engine: Engine, path: Path, options: ClassifyOptions, arguments: argparse.Namespace) -> Outcome:
    if arguments.out is not None and not options.looks:
        raise OptionInvalid("--out", "--out: there is something to draw only with --explain or --sliding-window")
    photo = engine.decode(path, None if arguments.out is not None else options)
    answer = engine.classify(photo, options)
    lines = [f"{p.confidence:6.1%}  {p.label}" for p in answer.predictions]
    if answer.localization is not None:
        lines.append(f"{answer.localization.label}: {corners(answer.localization.box)}")
    if answer.windows is not None:
        lines.append(f"windows: {', '.join(answer.windows.labels.values())}")
    picture, suffix = None, ".png"
    if arguments.out is not None and answer.heat is not None:
        picture, suffix = encoded(draw_heat(photo.pixels, answer.heat), path, arguments.out)
    return Outcome(answer.model_dump(mode="json"), lines, picture, suffix)


def _detect(engine: Engine, path: Path, options: DetectOptions, arguments: argparse.Namespace) -> Outcome:
    photo = engine.decode(path)
    answer = engine.detect(photo, options)
    lines = [f"{p.confidence:6.1%}  {p.label:<16} {corners(p.box)}" for p in answer.predictions] or ["nothing found"]
    picture, suffix = None, ".png"
    if arguments.out is not None:
        picture, suffix = encoded(draw_detections(photo.pixels, answer.predictions), path, arguments.out)
    return Outcome(answer.model_dump(mode="json"), lines, picture, suffix)


def _detect_faces(engine: Engine, path: Path, options: DetectFacesOptions, arguments: argparse.Namespace) -> Outcome:
    photo = engine.decode(path)
    answer = engine.detect_faces(photo, options)
    lines = [
        f"{face.confidence:6.1%}  face             {corners(face.box)}"
        + (f"  live {face.liveness.score:.1%}" if face.liveness else "")
        for face in answer.faces
    ] or ["no face found"]
    picture, suffix = None, ".png"
    if arguments.out is not None:
        picture, suffix = encoded(draw_faces(photo.pixels, answer.faces), path, arguments.out)
    return Outcome(answer.model_dump(mode="json"), lines, picture, suffix)


def _stylize(engine: Engine, path: Path, options: StylizeOptions, arguments: argparse.Namespace) -> Outcome:
    named = FORMATS.get(arguments.out.suffix.lower())
    if named is not None and "format" not in options.model_fields_set:  # --out painted.jpg says which format is meant
        options = options.model_copy(update={"format": named})
    answer = engine.stylize(path, options, style_image=arguments.style_image)
    size = f"{answer.image.width}x{answer.image.height}"
    record = {part: getattr(answer, part).model_dump(mode="json") for part in ("model", "image", "timing_ms")}
    lines = [f"painted {size} in {answer.timing_ms.total / 1e3:.1f} s by {answer.model.name} on {answer.model.provider}"]
    return Outcome(record, lines, answer.encode(), f".{options.format.replace('jpeg', 'jpg')}")


TASKS: dict[str, tuple[type[Strict], Work, str]] = {
    "classify": (ClassifyOptions, _classify, "what is on each photo?"),
    "detect": (DetectOptions, _detect, "which objects are on each photo, and where?"),
    "detect-faces": (DetectFacesOptions, _detect_faces, "where are the faces, with five landmarks each?"),
    "stylize": (StylizeOptions, _stylize, "paint photos in a built-in style or in the style of any picture"),
}


def encoded(pixels: Any, photo: Path, out: Path) -> tuple[bytes, str]:
    """The picture as a file and the end of its name, in the format that `out` names, or else as `photo` is."""
    suffix = next((s for s in (out.suffix.lower(), photo.suffix.lower()) if s in FORMATS), ".png")
    return encode(pixels, FORMATS[suffix]), suffix


def _check_format(suffix: str, options: Strict) -> None:
    """Raises OptionInvalid where `--out NAME` asks for what cannot be written, or for another format than `--format`."""
    if suffix not in FORMATS:
        raise OptionInvalid("--out", f"pictures are written as {', '.join(FORMATS)}, not as {suffix}")
    if "format" in options.model_fields_set and getattr(options, "format", None) != FORMATS[suffix]:
        raise OptionInvalid("--out", f"--out names a {suffix} file, but --format is {getattr(options, 'format', None)}")


def bar(photos: int, as_json: bool) -> Progress:
    """A bar on stderr where somebody sees it. On a terminal, plain answers go above it; everything else goes out untouched."""
    seen = sys.stdout.isatty()
    hidden = photos == 1 or not sys.stderr.isatty() or (as_json and seen)
    return Progress(console=Console(stderr=True), transient=True, disable=hidden, redirect_stdout=seen, redirect_stderr=not hidden)


def _finish(photo: Found, result: Outcome | VisionError | OSError, target: Target | None, as_json: bool) -> None:
    """Write the picture that there may be and print the answer. Raises the error that `result` may be, or that writing meets."""
    if not isinstance(result, Outcome):
        raise result
    written = None
    if target is not None and result.picture is not None:
        written = target.write(photo, result.picture, result.suffix)
    if as_json:
        record = {"file": str(photo.path), **result.answer}
        print(json.dumps(record if written is None else {**record, "written": str(written)}))
        return
    print(f"{photo.path}" if written is None else f"{photo.path} -> {written}")
    print("\n".join(f"  {line}" for line in result.lines))


def _complain(path: Path, error: VisionError | OSError, as_json: bool) -> None:
    code = error.code if isinstance(error, VisionError) else "file_unusable"
    if as_json:
        print(json.dumps({"file": str(path), "error": {"code": code, "detail": str(error)}}))
    else:
        print(f"{path}: {error}", file=sys.stderr)


def _verdict(answer: VerifyFaceAnswer) -> list[str]:
    word = "the same person" if answer.verified else "not the same person"
    lines = [f"{word}: similarity {answer.similarity:.3f}, threshold {answer.threshold:.3f}"]
    if answer.false_match_rate is not None:
        lines.append(f"  at this threshold {answer.false_match_rate:.2%} of pairs of different people were taken for one person")
    for name, photo in (("photo 1", answer.image1), ("photo 2", answer.image2)):
        lines.append(f"  {name}: {_described(photo)}")
    return lines


def _described(photo: VerifiedPhoto) -> str:
    warnings = f"; {'; '.join(photo.quality.warnings)}" if photo.quality.warnings else ""
    return f"{photo.faces} face(s), used {corners(photo.face.box)}{warnings}"


def corners(box: Box) -> str:
    return f"x {box.x_min:.0f}-{box.x_max:.0f}, y {box.y_min:.0f}-{box.y_max:.0f}"
