"""All there is to know of a file: found, settled, proved."""

import logging
from dataclasses import replace
from pathlib import Path

from service.errors import ModelRefused, VisionError
from service.intake.finding import Finding, look
from service.intake.proof import prove
from service.intake.told import Told
from service.intake.words import Notes
from service.settings import Settings

logger = logging.getLogger(__name__)


def inspect(path: Path, told: Told, settings: Settings, notes: Notes | None = None) -> Finding:
    """What the ONNX file at `path` is, by what it tells and what its owner says. Nothing is kept on the disk.

    notes: collects facts and assumptions on the way, for those who want to show them where this fails too.
    Raises ModelRefused, ModelUnclear (naming the options to give), OptionInvalid, OSError.
    """
    notes = Notes() if notes is None else notes
    try:
        finding = prove(look(path, told, settings, notes), settings, notes)
    except (VisionError, OSError):
        raise
    except MemoryError:
        raise ModelRefused("to look at it takes more memory than there is") from None
    except Exception as error:  # a file of which nobody has thought yet is no fault of the service
        logger.warning("a model file cannot be read", exc_info=True)
        said = str(error).strip().splitlines() or [""]
        raise ModelRefused(f"it cannot be read as a model: {type(error).__name__}: {said[0]:.200}") from None
    return replace(finding, facts=tuple(notes.facts), assumptions=tuple(notes.assumptions))
