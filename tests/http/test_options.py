from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BeforeValidator, Field, field_validator, model_validator

from service.errors import OptionInvalid
from service.http.options import read_options
from service.tasks.classify import ClassifyOptions
from service.tasks.options import properties, range_of
from service.tasks.task import Strict


def split(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


class Paint(Strict):
    strength: float = Field(1.0, ge=0, le=1, description="how much")
    count: int = Field(5, ge=1)
    gain: float = Field(1.0, gt=0, lt=9)
    bold: bool = False
    kind: Literal["png", "jpeg"] = "png"
    names: Annotated[tuple[str, ...] | None, BeforeValidator(split)] = None
    model: str | None = None

    @field_validator("count")
    @classmethod
    def _lucky(cls, value: int) -> int:
        if value == 13:
            raise ValueError("not this one")
        return value

    @model_validator(mode="after")
    def _both(self) -> "Paint":
        if self.model == "none" and self.bold:
            raise ValueError("bold needs a model")
        return self


class Shade(Enum):
    LIGHT = "light"
    DARK = "dark"


class Rare(Strict):
    shade: Shade = Field(Shade.DARK, description="how dark")
    size: int | str | None = None


def test_enumerations_and_unions_are_plain_too() -> None:
    found = properties(Rare)
    assert found["shade"] == {"type": "string", "enum": ["light", "dark"], "default": "dark", "description": "how dark"}
    assert found["size"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert range_of(found["shade"]) == "one of light, dark"
    assert read_options(Rare, [], [("shade", "light")]).shade is Shade.LIGHT


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ([], [], {}),
        ([("strength", "0.5")], [], {"strength": 0.5}),
        ([], [("strength", "0.5"), ("count", "7")], {"strength": 0.5, "count": 7}),
        ([("count", "3")], [("bold", "true")], {"count": 3, "bold": True}),
        ([], [("bold", False), ("count", 2)], {"bold": False, "count": 2}),
        ([], [("names", "a,b")], {"names": ("a", "b")}),
        ([], [("names", ["a", "b"])], {"names": ("a", "b")}),
        ([("names", "a"), ("names", "b")], [], {"names": ("a", "b")}),
        ([("model", "")], [("count", ""), ("kind", None)], {}),
        ([("count", "3")], [("count", "")], {"count": 3}),
    ],
)
def test_options_are_read_from_both_places(query: list[Any], body: list[Any], expected: dict[str, Any]) -> None:
    options = read_options(Paint, query, body)
    assert options == Paint(**expected)
    assert options.model_fields_set == set(expected)


@pytest.mark.parametrize(
    ("query", "body", "option", "words"),
    [
        ([], [("strength", "3")], "strength", ["strength=3", "a number from 0 to 1"]),
        ([], [("strength", "nan")], "strength", ["strength=nan"]),
        ([], [("strength", float("inf"))], "strength", ["strength"]),
        ([], [("strength", "a lot")], "strength", ["strength=a lot", "a number from 0 to 1"]),
        ([], [("count", "0")], "count", ["count=0", "a whole number at least 1"]),
        ([], [("count", "2.5")], "count", ["count=2.5", "a whole number"]),
        ([], [("count", "13")], "count", ["count=13: not this one"]),
        ([], [("gain", "9")], "gain", ["a number above 0 and below 9"]),
        ([("kind", "gif")], [], "kind", ["kind=gif", "png", "jpeg"]),
        ([("bold", "maybe")], [], "bold", ["true or false"]),
        ([], [("size", "3")], "size", ["no option 'size'", "strength, count, gain, bold, kind, names, model", "image"]),
        ([("size", "3")], [], "size", ["no option 'size'"]),
        ([("count", "1"), ("count", "2")], [], "count", ["more than once"]),
        ([("count", "1")], [("count", "1")], "count", ["both in the query and in the body"]),
        ([("names", "a")], [("names", "b")], "names", ["both"]),
        ([], [("model", "none"), ("bold", "1")], "options", ["bold needs a model"]),
        ([], [("model", "x" * 5000)] * 2, "model", ["more than once"]),
        ([], [("kind", "x" * 5000)], "kind", ["xxx..."]),
        ([], [("model", {"a": 1})], "model", ['{"a": 1}']),
        ([], [("names", ["a"] * 1001)], "names", ["1001 values", "1000"]),
        ([], [("names", "a," * 1000)], "names", ["1001 values", "1000"]),
        ([("names", "a")] * 1001, [], "names", ["1001 values", "1000"]),
        ([], [("names", "x" * 40_000)] * 2, "names", ["names is too long", "65536"]),
        ([("x" * 5000, "1")] * 2, [], "x" * 57 + "...", ["no option 'xxx"]),
    ],
)
def test_what_is_wrong_is_named(query: list[Any], body: list[Any], option: str, words: list[str]) -> None:
    with pytest.raises(OptionInvalid) as caught:
        read_options(Paint, query, body, ("image",))
    assert caught.value.option == option
    assert len(str(caught.value)) < 300
    for word in words:
        assert word in str(caught.value)


def test_properties_are_plain_schemas_with_descriptions() -> None:
    found = properties(Paint)
    assert found["strength"] == {"type": "number", "minimum": 0, "maximum": 1, "default": 1.0, "description": "how much"}
    assert found["model"] == {"type": "string"}
    assert found["names"]["type"] == "array"
    assert range_of(found["kind"]) == "one of png, jpeg"
    assert range_of(found["model"]) == ""


@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_no_numbers(value: bool) -> None:
    with pytest.raises(OptionInvalid, match=r"top_k=(true|false): give a whole number from 1 to 1000"):
        read_options(ClassifyOptions, [], [("top_k", value)])
