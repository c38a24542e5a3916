"""Options of a task in words: their schemas, their ranges, and what is wrong with a value, the same over HTTP and elsewhere."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError

from service.errors import OptionInvalid
from service.tasks.task import Strict

Options = TypeVar("Options", bound=Strict)


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


def explain(kind: type[Strict], error: ValidationError) -> OptionInvalid:
    """The first of pydantic's errors as ours, naming the option, the value and what would be right."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not first["loc"]:
        return OptionInvalid("options", message)
    name = str(first["loc"][0])
    if name not in kind.model_fields:
        return OptionInvalid(name, f"there is no option {name!r:.80} here; the options are: {', '.join(kind.model_fields)}")
    if first["type"] == "missing":
        return OptionInvalid(name, f"{name} is missing; it is needed here")
    accepted = range_of(properties(kind)[name])
    if accepted and first["type"] != "value_error":
        message = f"give {accepted}"
    return OptionInvalid(name, f"{name}={shortened(first['input'])}: {message}")


def shortened(value: object) -> str:
    """A value as a message may repeat it."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def merged(kind: type[Options], options: Options | None, given: dict[str, Any]) -> Options:
    """`options` with what is `given` by name, which wins. Raises OptionInvalid."""
    if options is not None and not given:
        return options
    base = {} if options is None else options.model_dump(exclude_unset=True)
    try:
        return kind(**{**base, **given})
    except ValidationError as error:
        raise explain(kind, error) from None
