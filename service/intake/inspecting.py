"""All there is to know of a file: found, settled, proved."""

from dataclasses import replace
from pathlib import Path

from service.intake.finding import Finding, look
from service.intake.proof import prove
from service.intake.told import Told
from service.intake.words import Notes
from service.settings import Settings


def inspect(path: Path, told: Told, settings: Settings, notes: Notes | None = None) -> Finding:
    """What the ONNX file at `path` is, by what it tells and what its owner says. Nothing is kept on the disk.

    notes: collects facts and assumptions on the way, for those who want to show them where this fails too.
    Raises ModelRefused, ModelUnclear (naming the options to give), OptionInvalid, OSError.
    """
    notes = Notes() if notes is None else notes
    finding = prove(look(path, told, settings, notes), settings, notes)
    return replace(finding, facts=tuple(notes.facts), assumptions=tuple(notes.assumptions))
