"""A task's options out of query parameters, form fields and JSON keys, by one set of rules.

- The names are the fields of the task's Options model; any other name is an error that lists them.
- An option is given once, in the query or in the body. A list may also be given as repeated parameters of one place.
- An empty text and null mean "not given", which is what forms send for a field that was left alone.
- An option has at most MAX_TEXT bytes and MAX_VALUES values; JSON is held to MAX_TEXT where it is parsed.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from service.errors import OptionInvalid
from service.http.forms import MAX_TEXT
from service.tasks.options import explain, is_list, properties, range_of, shortened
from service.tasks.task import Strict

Options = TypeVar("Options", bound=Strict)
Given = Sequence[tuple[str, Any]]
MAX_VALUES = 1000  # of a list


def read_options(kind: type[Options], query: Given, body: Given, fields: Sequence[str] = ()) -> Options:
    """Validated options. `fields` are names that the body may carry besides, for the message only.

    Raises OptionInvalid naming the option and its range, or the names that exist.
    """
    values: dict[str, Any] = {}
    for place in (query, body):
        for name, value in _gather(kind, place, fields).items():
            if name in values:
                raise OptionInvalid(name, f"{name} is given both in the query and in the body; give it once")
            values[name] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(kind, error) from None


def too_long(kind: type[Strict], name: str, fields: Sequence[str] = ()) -> OptionInvalid:
    """What to raise for an option of more than MAX_TEXT bytes."""
    if name not in kind.model_fields:
        return _unknown(kind, name, fields)
    return OptionInvalid(name, f"{name} is too long; an option has at most {MAX_TEXT} bytes")


def _gather(kind: type[Strict], place: Given, fields: Sequence[str]) -> dict[str, Any]:
    """Values by name, empty ones left out, the repeated values of a list put together."""
    values: dict[str, Any] = {}
    for name, value in place:
        if value is None or value == "":
            continue
        if name not in kind.model_fields:
            raise _unknown(kind, name, fields)
        if name not in values:
            values[name] = value
        elif is_list(properties(kind).get(name, {})):
            values[name] = f"{values[name]},{value}"
        else:
            raise OptionInvalid(name, f"{name} is given more than once; give it once")
        _check_value(kind, name, values[name])
    return values


def _check_value(kind: type[Strict], name: str, value: object) -> None:
    prop = properties(kind)[name]
    if isinstance(value, bool) and prop.get("type") != "boolean":  # which pydantic would take for 0 or 1
        raise OptionInvalid(name, f"{name}={str(value).lower()}: give {range_of(prop) or 'another value'}")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise too_long(kind, name)
    count = value.count(",") + 1 if isinstance(value, str) else len(value) if isinstance(value, list) else 1
    if count > MAX_VALUES and is_list(prop):
        raise OptionInvalid(name, f"{name} has {count} values; at most {MAX_VALUES} are taken")


def _unknown(kind: type[Strict], name: str, fields: Sequence[str]) -> OptionInvalid:
    also = f" (and the field{'s' if len(fields) > 1 else ''} {', '.join(fields)})" if fields else ""
    text = f"there is no option {name!r:.80} here; the options are: {', '.join(kind.model_fields)}{also}"
    return OptionInvalid(shortened(name), text)
