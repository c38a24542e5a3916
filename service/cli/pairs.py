"""Pairs of photos to calibrate on, read from a CSV file."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.errors import OptionInvalid

COLUMNS: Final = ("file_a", "file_b", "same")
_WORDS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass
class Pairs:
    """Pairs as (photo, photo, are they of one person), each once; and what about the file should be known, in plain words."""

    pairs: list[tuple[str, str, bool]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_pairs(path: Path) -> Pairs:
    """The pairs in a CSV file with a header and the columns file_a, file_b and same (1/0, true/false, yes/no).

    Other columns are ignored and repeated pairs, also the other way round, count once; `notes` says so. Raises OptionInvalid naming
    the file and line for a column or value that is missing or wrong, a photo paired with itself, pairs that contradict each other,
    and a file without pairs.
    """
    found, known, repeated = Pairs(), dict[tuple[str, str], bool](), 0
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines, strict=True)
        try:
            header = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = header
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise _invalid(path, 1, f"there is no column {', '.join(missing)}; needed are {','.join(COLUMNS)}")
            for row in rows:
                a, b, same = _pair(path, rows.line_num, row)
                key = (min(a, b), max(a, b))
                if known.setdefault(key, same) is not same:
                    raise _invalid(
                        path, rows.line_num, f"{a} and {b} were a pair of {'two people' if same else 'one person'} before"
                    )
                repeated += len(known) == len(found.pairs)
                if len(known) > len(found.pairs):
                    found.pairs.append((a, b, same))
        except (csv.Error, UnicodeDecodeError) as error:
            raise _invalid(path, rows.line_num, f"not CSV in UTF-8: {error}") from None
    if not found.pairs:
        raise OptionInvalid("PAIRS", f"{path} has no pairs")
    others = [name for name in header if name not in COLUMNS]
    if others:
        found.notes.append(f"columns that are not used: {', '.join(others)}")
    if repeated:
        found.notes.append(f"{repeated} repeated pairs count once")
    return found


def _pair(path: Path, line: int, row: dict[str, str | None]) -> tuple[str, str, bool]:
    a, b, word = ((row[name] or "").strip() for name in COLUMNS)
    if not a or not b:
        raise _invalid(path, line, "a file name is missing")
    if a == b:
        raise _invalid(path, line, f"{a} is paired with itself")
    if word.lower() not in _WORDS:
        raise _invalid(path, line, f"same is {word!r}; use 1 or 0, true or false, yes or no")
    return a, b, _WORDS[word.lower()]


def _invalid(path: Path, line: int, text: str) -> OptionInvalid:
    return OptionInvalid("PAIRS", f"{path}, line {line}: {text}")
