"""threshold.toml: the threshold that `vision-service calibrate --write` found on somebody's own photos, beside the built model.

It takes the place of model.toml's [threshold] for the weights and the way of embedding that it was measured with, and no other.
"""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import SpecInvalid
from service.repository.files import write_whole
from service.repository.spec import Threshold

THRESHOLD = "threshold.toml"


class Calibrated(BaseModel):
    """A threshold with what it holds for: the model's `digest` (SHA-256 of its weights) and the `method` that makes embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    method: str
    threshold: Threshold

    def differs(self, digest: str, method: str) -> str | None:
        """Why it does not hold for these, in words; None where it does."""
        if self.digest != digest:
            return f"it was measured with other weights (SHA-256 {self.digest[:12]}, now {digest[:12]})"
        if self.method != method:
            return f"it was measured with faces embedded in another way ({self.method}, now {method})"
        return None


def read_calibrated(folder: Path) -> Calibrated | None:
    """What is stored in the build folder `folder`; None where nothing is. Raises SpecInvalid naming a file that cannot be used:
    a threshold that somebody chose is not to be dropped in silence."""
    path = folder / THRESHOLD
    try:
        return Calibrated.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecInvalid(f"{path}: {error}; {_REMEDY}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise SpecInvalid(f"{path}: {key}: {first['msg']}; {_REMEDY}") from None


def write_calibrated(folder: Path, found: Calibrated) -> Path:
    """Store it in one step; gives the file. Raises OSError."""
    path, of = folder / THRESHOLD, found.threshold
    lines = [
        "# Written by `vision-service calibrate --write`; `vision-service calibrate --reset` removes it.",
        f"digest = {_quoted(found.digest)}",
        f"method = {_quoted(found.method)}",
        "",
        "[threshold]",
        f"value = {of.value!r}",
        f"false_match_rate = {of.false_match_rate!r}",
        f"false_non_match_rate = {of.false_non_match_rate!r}",
        *([] if of.impostor_pairs is None else [f"impostor_pairs = {of.impostor_pairs}"]),
        *([] if of.calibrated is None else [f"calibrated = {of.calibrated.isoformat()}"]),
        f"source = {_quoted(of.source)}",
        "rates = [",
        *(f"    {{ threshold = {rate.threshold!r}, false_match_rate = {rate.false_match_rate!r} }}," for rate in of.rates),
        "]",
    ]
    write_whole(path, ("\n".join(lines) + "\n").encode())
    return path


def remove_calibrated(folder: Path) -> bool:
    """Remove it; was there one? Raises OSError."""
    try:
        (folder / THRESHOLD).unlink()
    except FileNotFoundError:
        return False
    return True


_REMEDY = "`vision-service calibrate --reset` removes it"


def _quoted(text: str) -> str:
    """`text` as a TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c for c in escaped) + '"'
