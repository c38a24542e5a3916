"""A task's options out of query parameters, form fields and JSON keys, by one set of rules.

- The names are the fields of the task's Options model; any other name is an error that lists them.
- An option is given once, in the query or in the body. A list may also be given as repeated parameters of one place.
- An empty text and null mean "not given", which is what forms send for a field that was left alone.
- An option has at most MAX_TEXT bytes and MAX_VALUES values; JSON is held to MAX_TEXT where it is parsed.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError

from service.errors import OptionInvalid
from service.http.forms import MAX_TEXT
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
        raise _invalid(kind, error) from None


def too_long(kind: type[Strict], name: str, fields: Sequence[str] = ()) -> OptionInvalid:
    """What to raise for an option of more than MAX_TEXT bytes."""
    if name not in kind.model_fields:
        return _unknown(kind, name, fields)
    return OptionInvalid(name, f"{name} is too long; an option has at most {MAX_TEXT} bytes")


def properties(kind: type[Strict]) -> dict[str, dict[str, Any]]:
    """Each option's JSON schema, without the "or null" of optional ones: {"type", "minimum", "default", "description", ...}."""
    return _properties(kind)


@cache
def _properties(kind: type[Strict]) -> dict[str, dict[str, Any]]:
    schema = kind.model_json_schema(ref_template="{model}")
    return {name: _plain(prop, schema.get("$defs", {})) for name, prop in schema.get("properties", {}).items()}


def _plain(prop: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    plain = dict(prop)
    choices = [choice for choice in plain.pop("anyOf", []) if choice.get("type") != "null"]
    if len(choices) == 1:
        plain = {**choices[0], **plain}
    elif choices:
        plain["anyOf"] = choices
    if "$ref" in plain:
        plain = {**definitions[plain.pop("$ref")], **plain}
    if plain.get("default", ...) is None:
        del plain["default"]
    plain.pop("title", None)
    return plain


def is_list(prop: Mapping[str, Any]) -> bool:
    """May this option hold several values?"""
    return any(choice.get("type") == "array" for choice in (prop, *prop.get("anyOf", ())))


def range_of(prop: Mapping[str, Any]) -> str:
    """The accepted values in words: "a number from 0 to 1", "one of png, jpeg, webp"; empty where the schema says nothing."""
    if "enum" in prop:
        return f"one of {', '.join(str(value) for value in prop['enum'])}"
    name = {"number": "a number", "integer": "a whole number", "boolean": "true or false"}.get(str(prop.get("type")), "")
    if "minimum" in prop and "maximum" in prop:
        return f"{name} from {prop['minimum']} to {prop['maximum']}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = " and ".join(f"{word} {prop[key]}" for key, word in words.items() if key in prop)
    return f"{name} {bounds}".strip()


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
        _check_size(kind, name, values[name])
    return values


def _check_size(kind: type[Strict], name: str, value: object) -> None:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise too_long(kind, name)
    count = value.count(",") + 1 if isinstance(value, str) else len(value) if isinstance(value, list) else 1
    if count > MAX_VALUES and is_list(properties(kind)[name]):
        raise OptionInvalid(name, f"{name} has {count} values; at most {MAX_VALUES} are taken")


def _unknown(kind: type[Strict], name: str, fields: Sequence[str]) -> OptionInvalid:
    also = f" (and the field{'s' if len(fields) > 1 else ''} {', '.join(fields)})" if fields else ""
    text = f"there is no option {name!r:.80} here; the options are: {', '.join(kind.model_fields)}{also}"
    return OptionInvalid(_short(name), text)


def _invalid(kind: type[Strict], error: ValidationError) -> OptionInvalid:
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not first["loc"]:
        return OptionInvalid("options", message)
    name = str(first["loc"][0])
    accepted = range_of(properties(kind)[name])
    if accepted and first["type"] != "value_error":
        message = f"give {accepted}"
    return OptionInvalid(name, f"{name}={_short(first['input'])}: {message}")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
