"""What the verbs share: how a verb is added, and options made from a task's Options model."""

import argparse
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from service.errors import OptionInvalid
from service.tasks.options import explain
from service.tasks.task import Strict

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Verbs = argparse.Action

Options = TypeVar("Options", bound=Strict)


def add_options(parser: argparse.ArgumentParser, kind: type[Strict], leave_out: frozenset[str] = frozenset()) -> None:
    """One --flag for each field of `kind`; validation is left to the model, so that it is the same everywhere."""
    for name, field in kind.model_fields.items():
        if name in leave_out:
            continue
        flag, text = f"--{name.replace('_', '-')}", (field.description or "").replace("%", "%%")
        if field.annotation is bool and field.default:
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=f"{text} (default: on)")
        elif field.annotation is bool:
            parser.add_argument(flag, dest=name, action="store_true", default=None, help=text)
        else:
            default = "" if field.default is None else f" (default: {field.default})"
            parser.add_argument(flag, dest=name, default=None, metavar=name.upper(), help=text + default)


def read_options(arguments: argparse.Namespace, kind: type[Options]) -> Options:
    """The task's options as given on the command line. Raises OptionInvalid naming the flag."""
    given: dict[str, Any] = {name: getattr(arguments, name, None) for name in kind.model_fields}
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        invalid = explain(kind, error)
        raise OptionInvalid(invalid.option, f"--{str(invalid).replace('_', '-', invalid.option.count('_'))}") from None
