"""The validator of tool arguments, beside the packaged one and by its own sentences."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core.errors import InvalidParams
from goclaw.skills.catalog import Catalog
from goclaw.tools.schema import Validator

SCHEMA = "https://json-schema.org/draft/2020-12/schema"
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-4, 4), st.sampled_from([0.5, 1.0, 2.5]),
    st.sampled_from(["", "a", "ab", "b1", "é"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)
small = st.integers(0, 3)


def part_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of the keywords that are understood."""
    schemas = st.one_of(inner, st.booleans())
    several = st.lists(schemas, min_size=1, max_size=2)
    named = st.dictionaries(st.sampled_from("abc"), schemas, max_size=2)
    types = st.sampled_from(
        ["null", "boolean", "object", "array", "string", "number", "integer", ["string", "null"]]
    )
    return st.fixed_dictionaries(
        {},
        optional={
            "type": types,
            "enum": st.lists(values, min_size=1, max_size=2),
            "const": values,
            "properties": named,
            "patternProperties": st.dictionaries(st.just("^a"), schemas, max_size=1),
            "additionalProperties": schemas,
            "propertyNames": schemas,
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "dependentRequired": st.just({"a": ["b"]}),
            "minProperties": small, "maxProperties": small,
            "items": schemas, "prefixItems": several, "contains": schemas,
            "minItems": small, "maxItems": small, "uniqueItems": st.booleans(),
            "minLength": small, "maxLength": small, "pattern": st.sampled_from(["^a", "b", "1$"]),
            "minimum": small, "maximum": small, "exclusiveMinimum": small,
            "exclusiveMaximum": small, "multipleOf": st.sampled_from([1, 2, 0.5]),
            "allOf": several, "anyOf": several, "oneOf": several, "not": schemas,
            "if": schemas, "then": schemas, "else": schemas,
        },
    )  # fmt: skip


@pytest.mark.req("B-1")
@given(st.recursive(st.just({}), part_of, max_leaves=8), values)
def test_it_agrees_with_the_packaged_validator(schema: dict[str, Any], value: Any) -> None:
    expected = jsonschema.Draft202012Validator({"$schema": SCHEMA, **schema}).is_valid(value)
    assert (Validator(schema).misfit(value) is None) == expected


@pytest.mark.parametrize(
    ("schema", "value", "sentence"),
    [
        ({"type": "object", "required": ["file"]}, {}, "'file' is missing"),
        (
            {"properties": {"file": {}}, "additionalProperties": False},
            {"path": "x"},
            "'path' is not known; known are file",
        ),
        (
            {"properties": {"a": {"items": {"type": "string"}}}},
            {"a": ["x", 1]},
            "a.1: must be of type string",
        ),
        ({"properties": {"n": {"minimum": 1}}}, {"n": 0}, "n: must be at least 1"),
        ({"exclusiveMaximum": 1}, 1, "must be less than 1"),
        ({"oneOf": [{}, {}]}, 1, "fits 2 of the forms, and may fit only one"),
        ({"enum": ["a", 1]}, True, "must be one of ['a', 1]"),
        (False, 1, "nothing is allowed here"),
    ],
)
def test_a_misfit_is_said_in_words(schema: Any, value: Any, sentence: str) -> None:
    assert Validator(schema).misfit(value) == sentence


def test_references_are_followed_also_into_themselves() -> None:
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    }
    validator = Validator(tree)
    assert validator.misfit({"next": {"next": {}}}) is None
    assert validator.misfit({"next": {"next": 1}}) == "next.next: must be of type object"
    assert Validator({"$ref": "#"}).misfit(1) == "is nested too deep"


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"properties": {"a": {"requried": []}}}, "requried"),
        ({"type": "text"}, "text"),
        ({"pattern": "("}, "pattern"),
        ({"minimum": "1"}, "minimum"),
        ({"multipleOf": 0}, "multipleOf"),
        ({"properties": []}, "properties"),
        ({"$ref": "http://example.org/x"}, "$ref"),
        ({"$ref": "#/$defs/none"}, "$ref"),
        ({"items": 3}, "items"),
    ],
)
def test_a_schema_that_promises_nothing_is_refused(schema: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        Validator(schema)
    assert word in str(caught.value)


def test_a_schema_cannot_nest_for_ever() -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"not": deep}
    with pytest.raises(InvalidParams, match="nested too deep"):
        Validator(deep)


def test_numbers_beyond_a_float_are_compared_as_they_are() -> None:
    assert Validator({"type": "integer", "maximum": 10**400}).misfit(10**399) is None


def test_the_schemas_of_the_built_in_skills_are_understood() -> None:
    for skill in Catalog():
        Validator(skill.manifest.input)
        Validator(skill.manifest.output)
