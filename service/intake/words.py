"""What was found in a file, what was taken to be so, and what has to be asked: in words."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from unicodedata import category

from service.errors import ModelUnclear

Axis = int | str | None


@dataclass(frozen=True)
class Port:
    """An input or output: `shape` holds an int for a fixed axis, a name or None for a free one; `dtype` as numpy says it."""

    name: str
    dtype: str
    shape: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"{self.name} {shape_text(self.shape)} {self.dtype}"


def shape_text(shape: Iterable[Axis]) -> str:
    return f"[{', '.join('?' if axis is None else str(axis) for axis in shape)}]"


def ports_text(ports: Iterable[Port]) -> str:
    return "; ".join(map(str, ports)) or "none"


def printable(text: str) -> str:
    """`text` on one line: what a terminal would obey, and a file may have in its names, is spelt out."""
    return "".join(repr(char)[1:-1] if category(char) == "Cc" else char for char in text)


@dataclass
class Notes:
    """Collected on the way through a file. `asked`: options that have to be given, with what each means."""

    facts: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    asked: dict[str, str] = field(default_factory=dict)

    def fact(self, text: str) -> None:
        self.facts.append(printable(text))

    def assume(self, text: str, option: str) -> None:
        """`option` is what says otherwise."""
        self.assumptions.append(f"{printable(text)} (--{option.replace('_', '-')} says otherwise)")

    def ask(self, option: str, meaning: str) -> None:
        self.asked.setdefault(option, printable(meaning))

    def settle(self) -> None:
        """Raises ModelUnclear where something has to be asked."""
        if self.asked:
            told = "; ".join(f"{option.replace('_', '-')}: {meaning}" for option, meaning in self.asked.items())
            raise ModelUnclear(f"the file does not tell all that has to be known; please say {told}", list(self.asked))
