"""What would tell faces apart better: other landmarks, other alignment, the mirrored face, other arithmetic.

    python benchmarks/faces.py --pairs PAIRS.csv [--folder DIR] [--only WAY ...] [--quick] [--json OUT]

PAIRS.csv has columns file_a,file_b,same (1 or 0); the photos lie below DIR, or beside it. Every photo is taken as it is and made
worse in ten ways, the same at every run: the face brought to 24, 32, 48 and 64 pixels, blurred, as a poor JPEG, turned, darkened
and brightened. Pairs are then plain with plain, and of each kind worse with plain (both ways round) and worse with worse.
Judged by d' (distance of the two means over their spread), AUC and the share of genuine pairs missed at a false-match rate of
1e-2 and 1e-3; differences from the first way come with a 95 % interval over people. Times are ratios taken in turns.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from service import Engine
from service.cli.pairs import read_pairs
from service.errors import InputError
from service.imaging.boxes import iou
from service.imaging.codec import decode, encode
from service.imaging.transforms import resize, similarity, warp
from service.settings import Settings
from service.tasks.calibration import Scores, area_under_roc, compared, decidability, false_non_matches, tell_people
from service.tasks.face_detector import Found, find_faces, look
from service.tasks.face_embedding import ALIGNED_SIDE, TEMPLATE, choose
from service.tasks.task import Model, Pixels, Timing

SCREEN = Console(stderr=True)
Points = NDArray[np.float64]  # landmarks [5, 2]
Warp = Callable[[Pixels, Points], Pixels]
Refine = Callable[[Pixels, Found, int, Model], Points]


@dataclass(frozen=True)
class Way:
    """How landmarks become an embedding: where they are looked for, how the face is cut out, with its mirror image or not."""

    name: str
    landmarks: Refine
    cut: Warp
    mirrored: bool = False
    precision: str = "float"


def _sized(size: int, pixels: Pixels, face: float) -> Pixels:
    scale = min(1.0, size / face)
    return resize(pixels, max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale)), "area")


def _blurred(pixels: Pixels, face: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), face / 30), np.uint8)


def _poor_jpeg(pixels: Pixels, face: float) -> Pixels:
    return decode(encode(_sized(96, pixels, face), "jpeg", 15))


def _turned(degrees: float, pixels: Pixels, _: float) -> Pixels:
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return np.asarray(cv2.warpAffine(pixels, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _lit(gain: float, gamma: float, pixels: Pixels, _: float) -> Pixels:
    return np.asarray(np.clip(255 * gain * (pixels / 255.0) ** gamma, 0, 255).round(), np.uint8)


WORSE: dict[str, Callable[[Pixels, float], Pixels]] = {
    **{f"{size} px": partial(_sized, size) for size in (24, 32, 48, 64)},
    "blur": _blurred,
    "jpeg": _poor_jpeg,
    "turned 12": partial(_turned, 12),
    "turned -25": partial(_turned, -25),
    "dark": partial(_lit, 0.5, 1.5),
    "bright": partial(_lit, 1.5, 0.8),
}


def _as_found(_pixels: Pixels, found: Found, row: int, _detector: Model) -> Points:
    return found.landmarks[row].reshape(5, 2).astype(np.float64)


def _looked_again(face: int, margin: float, mix: float, pixels: Pixels, found: Found, row: int, detector: Model) -> Points:
    """Landmarks from a look at a square around the face, the face `face` pixels large there; mixed with the first by `mix`."""
    first, box = _as_found(pixels, found, row, detector), found.boxes[row].astype(np.float64)
    centre, side = (box[:2] + box[2:]) / 2, float(max(box[2:] - box[:2]))
    canvas = round(face * margin / 32) * 32
    scale = canvas / (side * margin)
    shift = canvas / 2 - centre * scale
    seen = warp(pixels, np.array([[scale, 0, shift[0] + scale / 2 - 0.5], [0, scale, shift[1] + scale / 2 - 0.5]]), canvas, canvas)
    again = look(seen, canvas, 0.3, detector, Timing())
    if not len(again):
        return first
    overlap = iou((box * scale + np.tile(shift, 2))[None].astype(np.float32), again.boxes)[0]
    if overlap.max() < 0.4:
        return first
    points = (again.landmarks[overlap.argmax()].reshape(5, 2) - shift) / scale
    return first * (1 - mix) + points * mix


def _averaged(pixels: Pixels, found: Found, row: int, detector: Model) -> Points:
    """Mean of three looks at different sizes."""
    return np.asarray(np.mean([_looked_again(face, 2, 1, pixels, found, row, detector) for face in (96, 128, 160)], axis=0))


def _now(pixels: Pixels, points: Points) -> Pixels:
    return warp(pixels, similarity(points, TEMPLATE), ALIGNED_SIDE, ALIGNED_SIDE)


def _centred(photo: float, template: float, pixels: Pixels, points: Points) -> Pixels:
    """With landmarks and template moved onto pixel centres."""
    return warp(pixels, similarity(points - photo, TEMPLATE - template), ALIGNED_SIDE, ALIGNED_SIDE)


def _plain(flags: int, pixels: Pixels, points: Points) -> Pixels:
    """One interpolation with no averaging before it."""
    matrix = similarity(points, TEMPLATE)
    return np.asarray(cv2.warpAffine(pixels, matrix, (ALIGNED_SIDE, ALIGNED_SIDE), flags=flags), np.uint8)


def _supersampled(times: int, flags: int, pixels: Pixels, points: Points) -> Pixels:
    """Cut out `times` larger, then averaged."""
    grow = np.array([[times, 0, (times - 1) / 2], [0, times, (times - 1) / 2], [0, 0, 1]])
    matrix = (grow @ np.vstack([similarity(points, TEMPLATE), (0, 0, 1)]))[:2]
    side = ALIGNED_SIDE * times
    large = np.asarray(cv2.warpAffine(pixels, matrix, (side, side), flags=flags), np.uint8)
    return np.asarray(cv2.resize(large, (ALIGNED_SIDE, ALIGNED_SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def _bordered(pixels: Pixels, points: Points) -> Pixels:
    """What lies outside the photo repeats its edge instead of being black."""
    pad = max(pixels.shape[:2]) // 2
    framed = cv2.copyMakeBorder(pixels, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    return _now(np.asarray(framed, np.uint8), points + pad)


WAYS: tuple[Way, ...] = (
    Way("aligned-1", _as_found, _now),
    Way("mirrored", _as_found, _now, mirrored=True),
    Way("half-pixel photo", _as_found, partial(_centred, 0.5, 0)),
    Way("half-pixel both", _as_found, partial(_centred, 0.5, 0.5)),
    Way("bilinear only", _as_found, partial(_plain, cv2.INTER_LINEAR)),
    Way("bicubic only", _as_found, partial(_plain, cv2.INTER_CUBIC)),
    Way("Lanczos only", _as_found, partial(_plain, cv2.INTER_LANCZOS4)),
    Way("supersampled 4x", _as_found, partial(_supersampled, 4, cv2.INTER_LINEAR)),
    Way("supersampled 4x cubic", _as_found, partial(_supersampled, 4, cv2.INTER_CUBIC)),
    Way("edge repeated", _as_found, _bordered),
    Way("second look 96", partial(_looked_again, 96, 2, 1), _now),
    Way("second look 128", partial(_looked_again, 128, 2, 1), _now),
    Way("second look 160", partial(_looked_again, 160, 2, 1), _now),
    Way("second look 128, mean", partial(_looked_again, 128, 2, 0.5), _now),
    Way("second look 160, mean", partial(_looked_again, 160, 2, 0.5), _now),
    Way("second look mean, mirrored", partial(_looked_again, 128, 2, 0.5), _now, mirrored=True),
    Way("three looks", _averaged, _now),
    Way("three looks, mirrored", _averaged, _now, mirrored=True),
    Way("second look 128, mirrored", partial(_looked_again, 128, 2, 1), _now, mirrored=True),
    Way("int8", _as_found, _now, precision="int8"),
    Way("int8, mirrored", _as_found, _now, mirrored=True, precision="int8"),
)


@dataclass(frozen=True)
class Sample:
    """A photo, perhaps made worse, with the face that counts."""

    pixels: Pixels
    found: Found
    row: int


def embedded(sample: Sample, way: Way, detector: Model, embedder: Model) -> NDArray[np.float64]:
    """The embedding [d] of length 1 of the sample's face."""
    crop = way.cut(sample.pixels, way.landmarks(sample.pixels, sample.found, sample.row, detector))
    crops = np.stack([crop, crop[:, ::-1]]) if way.mirrored else crop[None]
    raw = embedder.run({"pixels": np.ascontiguousarray(crops)}, Timing())["embedding"].astype(np.float64)
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    mean: NDArray[np.float64] = raw.mean(axis=0)
    return mean / np.linalg.norm(mean)


def prepare(engine: Engine, photos: Sequence[Path], kinds: Sequence[str]) -> dict[tuple[Path, str], Sample]:
    """Every photo as it is ("plain") and in each kind of worse, where a face is found."""
    detector, samples = engine.load("yunet"), dict[tuple[Path, str], Sample]()
    for path in track(photos, "photos", console=SCREEN, transient=True):
        pixels, face = engine.decode(path).pixels, 0.0
        for kind in ("plain", *kinds):
            made = pixels if kind == "plain" else np.ascontiguousarray(WORSE[kind](pixels, face))
            found = find_faces(made, 0.6, detector, Timing())
            try:
                row = choose(path.name, found, made, "prominent", 0.6)
            except InputError:
                if kind == "plain":
                    break
                continue
            if kind == "plain":
                face = float(min(found.boxes[row, 2:] - found.boxes[row, :2]))
            samples[path, kind] = Sample(made, found, row)
    return samples


def pair_up(
    pairs: Sequence[tuple[Path, Path, bool]], kind: str, samples: dict[tuple[Path, str], Sample]
) -> list[tuple[tuple[Path, str], tuple[Path, str], bool]]:
    """The pairs of one kind that have a face on both photos."""
    mixes = [("plain", "plain")] if kind == "plain" else [(kind, "plain"), ("plain", kind), (kind, kind)]
    made = [((a, x), (b, y), same) for x, y in mixes for a, b, same in pairs]
    return [pair for pair in made if pair[0] in samples and pair[1] in samples]


def missed_at(fmr: float, scores: Scores) -> float:
    """FNMR at the threshold where the impostor pairs reach `fmr`."""
    return false_non_matches(scores, float(np.quantile(scores.impostor, 1 - fmr))) / len(scores.genuine)


STATISTICS: dict[str, Callable[[Scores], float]] = {
    "d'": decidability,
    "AUC": area_under_roc,
    "FNMR@1e-2": partial(missed_at, 1e-2),
    "FNMR@1e-3": partial(missed_at, 1e-3),
}


def timed(samples: Sequence[Sample], ways: Sequence[Way], engines: dict[str, Engine], rounds: int = 3) -> dict[str, float]:
    """Milliseconds for finding, choosing, aligning and embedding one face: medians, the ways taking turns."""
    taken: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for sample in samples:
            for way in ways:
                detector, embedder = (engines[way.precision].load(name) for name in ("yunet", "sface"))
                start = time.perf_counter()
                found = find_faces(sample.pixels, 0.6, detector, Timing())
                embedded(
                    Sample(sample.pixels, found, choose("photo", found, sample.pixels, "prominent", 0.6)), way, detector, embedder
                )
                taken[way.name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(times)) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=[way.name for way in WAYS], help="these ways, next to the first")
    parser.add_argument("--quick", action="store_true", help="without intervals and times")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    ways = [way for way in WAYS if way is WAYS[0] or not arguments.only or way.name in arguments.only]
    folder = arguments.folder or arguments.pairs.parent
    pairs = [(folder / a, folder / b, same) for a, b, same in read_pairs(arguments.pairs).pairs]
    people = tell_people([(str(a), str(b), same) for a, b, same in pairs])
    photos = sorted({path for pair in pairs for path in pair[:2]})

    def settings(precision: str) -> Settings:
        return Settings.from_env().model_copy(update={"precision": precision, "tune": False, "models": ["yunet", "sface"]})

    engines = {precision: Engine(settings(precision)) for precision in dict.fromkeys(way.precision for way in ways)}
    for engine in engines.values():
        engine.start()
    detector = engines["float"].load("yunet")
    samples = prepare(engines["float"], photos, list(WORSE))
    missing = {kind: sum((path, kind) not in samples for path in photos) for kind in ("plain", *WORSE)}
    print(f"{len(photos)} photos, {len(pairs)} pairs; no face found: {missing}")

    scored: dict[str, dict[str, Scores]] = {}
    for way in track(ways, "ways", console=SCREEN, transient=True):
        embedder = engines[way.precision].load("sface")
        vectors = {key: embedded(sample, way, detector, embedder) for key, sample in samples.items()}
        scored[way.name] = {}
        made = {kind: pair_up(pairs, kind, samples) for kind in ("plain", *WORSE)}
        made["all worse"] = [pair for kind in WORSE for pair in made[kind]]
        for kind, of in made.items():
            score = np.array([vectors[a] @ vectors[b] for a, b, _ in of])
            persons = np.array([(people[str(a[0])], people[str(b[0])]) for a, b, _ in of])
            scored[way.name][kind] = Scores(score, np.array([same for *_, same in of]), persons)
    times = (
        {}
        if arguments.quick
        else timed([samples[path, "plain"] for path in photos[::6] if (path, "plain") in samples], ways, engines)
    )
    figures = report(scored, times, quick=arguments.quick)
    for engine in engines.values():
        engine.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def report(scored: dict[str, dict[str, Scores]], times: dict[str, float], *, quick: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Print a table for each kind of photo; the figures by way, kind and statistic."""
    base = next(iter(scored))
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for kind in scored[base]:
        first = scored[base][kind]
        print(f"\n{kind}: {len(first.genuine)} genuine, {len(first.impostor)} impostor pairs")
        for name, kinds in scored.items():
            values = {title: statistic(kinds[kind]) for title, statistic in STATISTICS.items()}
            figures.setdefault(name, {})[kind] = values
            line = f"  {name:<27}" + "".join(f" {title} {value:8.5f}" for title, value in values.items())
            if not quick and name != base and kind in {"plain", "all worse"}:
                for title in ("d'", "FNMR@1e-2", "FNMR@1e-3"):
                    change, over = compared(first, kinds[kind], STATISTICS[title])
                    line += f"  {title} {change:+.4f}" + (f" [{over[0]:+.4f}, {over[1]:+.4f}]" if over else "")
            print(line)
    for name, value in times.items():
        print(f"{name:<29}{value:7.1f} ms{value / times[base]:7.2f}x")
    return figures


if __name__ == "__main__":
    sys.exit(main())
