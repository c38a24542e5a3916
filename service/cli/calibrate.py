"""`vision-service calibrate`: how well faces are told apart on somebody's own photos, and the threshold for a false-match rate."""

import argparse
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from service.cli.calibration_report import Acquired, Failure, Report, for_target, rates_in_use, report
from service.cli.chart import draw_chart
from service.cli.files import in_order
from service.cli.pairs import Pairs, read_pairs
from service.cli.pictures import bar
from service.cli.verbs import Verbs
from service.engine import Engine
from service.errors import OptionInvalid
from service.imaging.transforms import use_one_thread
from service.repository.files import write_whole
from service.repository.spec import ModelSpec, Threshold
from service.repository.store import find_built, scan
from service.repository.thresholds import Calibrated, remove_calibrated, write_calibrated
from service.runtime.machine import usable_cores
from service.settings import Settings
from service.tasks.calibration import Scores, false_matches, false_non_matches, needed, rate_table, tell_people
from service.tasks.face_embedding import Pick, threshold_of
from service.tasks.face_quality import UNUSABLE_SIZE
from service.tasks.people import EnrollOptions, Refusal

CHARTS: Final[dict[str, Literal["svg", "png"]]] = {".svg": "svg", ".png": "png"}
Seen = NDArray[np.float32] | Refusal


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser("calibrate", help="how well are faces told apart on your own photos, and from which threshold on?")
    parser.add_argument(
        "pairs", nargs="?", type=Path, metavar="PAIRS.csv", help="columns file_a, file_b, same (1 or 0); names are relative to it"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the photos lie, if not beside PAIRS.csv")
    parser.add_argument("--face", choices=get_args(Pick), default="prominent", help="which face counts (default: prominent)")
    parser.add_argument("--threshold", type=_similarity, metavar="T", help="rate this threshold, not the one in use")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw similarities and ROC: .svg or .png")
    parser.add_argument(
        "--target-fmr",
        type=_share,
        default=1e-3,
        metavar="RATE",
        help="false-match rate whose threshold --write takes (default: 1e-3)",
    )
    parser.add_argument("--write", action="store_true", help="use --threshold, or that of --target-fmr, from the next start on")
    parser.add_argument("--reset", action="store_true", help="go back to the model's own threshold from the next start on")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0; 1 with a message where nothing can be measured, or the threshold to write cannot be told from these pairs."""
    if arguments.reset:
        if arguments.pairs or arguments.write:
            raise OptionInvalid("--reset", "--reset stands alone: it only removes what --write stored")
        return _reset(Settings.from_env())
    if arguments.pairs is None:
        raise OptionInvalid("PAIRS", "PAIRS.csv is missing; it has the columns file_a, file_b and same")
    chart: Path | None = arguments.chart
    if chart is not None and chart.suffix.lower() not in CHARTS:
        raise OptionInvalid("--chart", f"--chart: {chart} does not end in {' or '.join(CHARTS)}")
    pairs, folder = read_pairs(arguments.pairs), arguments.folder or arguments.pairs.parent
    with closing(Engine(_lenient(Settings.from_env()))) as engine:
        use_one_thread()
        model = engine.load(engine.recognition.embedding_model.name)
        seen = look_at(engine, pairs, folder, arguments.face, quiet=arguments.json)
        scores, acquired = compare(pairs, seen)
        if not scores.measurable:
            lost = f"; {acquired.failures[0].file}: {acquired.failures[0].detail}" if acquired.failures else ""
            raise OptionInvalid("PAIRS", f"{arguments.pairs}: no usable pair of one person, or none of two people, is left{lost}")
        usual = threshold_of(model)
        value, source = (usual.value, usual.origin) if arguments.threshold is None else (arguments.threshold, "--threshold")
        in_use = rates_in_use(scores, value, source)
        made_by = {
            "model": model.spec.name,
            "version": model.spec.version,
            "digest": model.digest,
            "method": engine.recognition.embedding_model.method,
        }
        made_by["precision"] = model.info.precision
        found = report(scores, acquired, made_by, in_use, arguments.target_fmr, pairs.notes)
        print(found.model_dump_json() if arguments.json else "\n".join(found.lines()))
        if chart is not None:
            write_whole(chart, draw_chart(scores, value, CHARTS[chart.suffix.lower()]))
        if arguments.write:
            threshold = value if arguments.threshold is not None else _for(scores, arguments.target_fmr)
            path = write_calibrated(model.folder, calibrated(scores, threshold, found))
            _say(f"{path}: the threshold is {threshold:.4g} from the next start on; a server that runs keeps its own until then")
    return 0


def look_at(engine: Engine, pairs: Pairs, folder: Path, pick: Pick, *, quiet: bool) -> dict[str, Seen]:
    """The embedding of the face that counts on each photo of `pairs`, or why there is none; each photo once, several at a time."""
    names = list(dict.fromkeys(name for a, b, _ in pairs.pairs for name in (a, b)))

    options = EnrollOptions.model_validate({"face": pick})

    def attempt(name: str) -> Seen:
        try:
            prepared, refused = engine.recognition.prepare_faces({name: folder / name}, options)
        except OSError as error:
            return Refusal(photo=name, code="file_unusable", detail=error.strerror or str(error), measured=None, limit=None)
        return prepared[0].embedding if prepared else refused[0]

    with bar(len(names), quiet) as progress:
        results = progress.track(in_order(attempt, names, usable_cores() + 1), total=len(names))
        return dict(zip(names, results, strict=True))


def compare(pairs: Pairs, seen: dict[str, Seen]) -> tuple[Scores, Acquired]:
    """The similarities of the pairs with a face on both photos, and what became of the others."""
    people = tell_people(pairs.pairs)
    rows: list[tuple[float, bool, int, int]] = []
    lost, wrong = Counter[str](), {name: of for name, of in seen.items() if isinstance(of, Refusal)}
    for a, b, same in pairs.pairs:
        first, second = seen[a], seen[b]
        if isinstance(first, Refusal) or isinstance(second, Refusal):
            lost.update(name for name in (a, b) if name in wrong)
        else:
            rows.append((float(np.clip(first.astype(np.float64) @ second.astype(np.float64), -1, 1)), same, people[a], people[b]))
    score, truth = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], bool)
    listed = sum(same for *_, same in pairs.pairs)
    contradictions = sum(not same and people[a] == people[b] for a, b, same in pairs.pairs)
    if contradictions:
        pairs.notes.append(f"{contradictions} pairs are said to be of two people whom other pairs say to be one; see to PAIRS.csv")
    acquired = Acquired(
        photos=len(seen),
        people=len(set(people.values())),
        listed_genuine=listed,
        listed_impostor=len(pairs.pairs) - listed,
        genuine=int(truth.sum()),
        impostor=int((~truth).sum()),
        failures=[Failure(file=name, pairs=lost[name], code=of.code, detail=of.detail) for name, of in wrong.items()],
    )
    return Scores(score, truth, np.array([row[2:] for row in rows], np.intp).reshape(-1, 2)), acquired


def calibrated(scores: Scores, threshold: float, found: Report) -> Calibrated:
    """`threshold` with its rates on these pairs, as it is stored."""
    today = datetime.now(UTC).date()
    pairs = found.pairs
    source = (
        f"Measured by `vision-service calibrate` on {today.isoformat()} with {found.model} {found.version} in {found.precision}: "
        f"{pairs.genuine} pairs of one person and {pairs.impostor} of two, {pairs.photos} photos of {pairs.people} people."
    )
    kept = Threshold(
        value=threshold,
        false_match_rate=false_matches(scores, threshold) / len(scores.impostor),
        false_non_match_rate=false_non_matches(scores, threshold) / len(scores.genuine),
        impostor_pairs=len(scores.impostor),
        calibrated=today,
        source=source,
        rates=rate_table(scores, threshold),
    )
    return Calibrated(digest=found.digest, method=found.method, threshold=kept)


def _for(scores: Scores, target: float) -> float:
    found = for_target(scores, target)
    if found.threshold is None:
        raise OptionInvalid(
            "--target-fmr",
            f"nothing was written: a false-match rate of {target:g} needs {needed(target):,} pairs of two people, there are "
            f"{len(scores.impostor):,}; add pairs, or give a higher --target-fmr or a --threshold",
        )
    return found.threshold


def _lenient(settings: Settings) -> Settings:
    """With every face that verification takes, be it too poor to be enrolled."""
    return settings.model_copy(update={"min_face_size": float(UNUSABLE_SIZE), "min_face_sharpness": 0.0})


def _reset(settings: Settings) -> int:
    """Needs no model to load, so that a threshold.toml which stops the service can be removed."""
    built = [found for spec in _embedders(settings) if (found := find_built(spec, settings))]
    removed = [model.spec.name for model in built if remove_calibrated(model.folder)]
    _say(
        f"{', '.join(removed)}: back to the model's own threshold from the next start on" if removed else "no threshold was stored"
    )
    return 0


def _embedders(settings: Settings) -> list[ModelSpec]:
    return [spec for spec in scan(settings).values() if spec.task == "embed-face"]


def _say(text: str) -> None:
    """Not on standard output, which may be JSON."""
    print(text, file=sys.stderr)


def _similarity(text: str) -> float:
    return _within(text, -1, 1, "a similarity")


def _share(text: str) -> float:
    value = _within(text, 0, 1, "a rate")
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no rate between 0 and 1")
    return value


def _within(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text} is not {what} between {low:g} and {high:g}")
    return value
