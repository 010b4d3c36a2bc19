"""In which order the members of objects may come."""

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faquant.structured.json_schema import compile_schema
from oracles.schemas import Recognizer

NAMES = "abcd"
CHAINS = st.lists(st.lists(st.sampled_from(NAMES), unique=True, max_size=4), min_size=1, max_size=3)


def has(schema: Any, names: str) -> bool:
    return dict.fromkeys(names, 1) in Recognizer(compile_schema(schema, strict=True))


def test_properties_come_in_the_order_of_the_schema_and_others_last() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}, "required": ["a"]}
    assert has(schema, "bac")
    assert has(schema, "a")
    assert not has(schema, "ab")
    assert not has(schema, "ca")


@given(chains=CHAINS, required=st.lists(st.sampled_from(NAMES), unique=True, max_size=2))
@settings(max_examples=100, deadline=None)
def test_properties_of_several_schemas_come_in_the_order_of_each(chains: list[list[str]], required: list[str]) -> None:
    """If the schemas contradict each other, at least the first one's order holds."""
    parts = [{"properties": dict.fromkeys(chain, True)} for chain in chains]
    listed = dict.fromkeys(name for chain in chains for name in chain)
    needed = [name for name in required if name in listed]
    values = Recognizer(compile_schema({"type": "object", "allOf": parts, "required": needed}, strict=True))
    orders = [order for order in permutations(listed) if all(is_ordered(order, chain) for chain in chains)]
    for count in range(len(listed) + 1):
        for chosen in map(set, combinations(listed, count)):
            admitted = {order for order in permutations(chosen) if dict.fromkeys(order, 1) in values}
            if not set(needed) <= chosen:
                assert admitted == set()
            elif orders:
                assert admitted == {tuple(name for name in order if name in chosen) for order in orders}
            else:
                assert admitted
                assert all(is_ordered(order, chains[0]) for order in admitted)


def is_ordered(order: Sequence[str], chain: list[str]) -> bool:
    places = [chain.index(name) for name in order if name in chain]
    return places == sorted(places)


MERGED: list[dict[str, Any]] = [
    {"properties": {"a": {}, "b": {}}, "anyOf": [{"properties": {"x": {}, "y": {}}, "required": ["y"]}]},
    {"anyOf": [{"properties": {"x": {}, "y": {}}, "required": ["y"]}], "properties": {"a": {}, "b": {}}},
    {"$ref": "#/$defs/base", "$defs": {"base": {"properties": {"a": {}, "b": {}}}}, "properties": {"x": {}, "y": {}}},
]


@pytest.mark.parametrize("schema", MERGED, ids=str)
def test_properties_of_different_schemas_come_in_any_order(schema: Any) -> None:
    schema = {"type": "object", **schema}
    assert all(has(schema, names) for names in ("axby", "xyab", "abxy", "aybz", "yab"))
    assert not any(has(schema, names) for names in ("axbzy", "bay", "ayx", "yxa", "zy"))


def test_names_without_properties_come_last() -> None:
    schema = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}, "required": ["c"]}], "type": "object"}
    assert all(has(schema, names) for names in ("abc", "bac", "bc", "cd"))
    assert not any(has(schema, names) for names in ("cb", "ca", "ab"))


def test_counted_members_and_very_many_come_in_one_order() -> None:
    counted = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}], "maxProperties": 2, "type": "object"}
    assert has(counted, "ab")
    assert not has(counted, "ba")
    parts: list[Any] = [{"properties": {f"{letter}{place}": {} for place in range(40)}} for letter in "ab"]
    many = Recognizer(compile_schema({"allOf": parts, "type": "object"}, strict=True))
    assert {"a39": 1, "b0": 1} in many
    assert {"b0": 1, "a39": 1} not in many


def test_properties_of_sorted_keys_come_in_any_order_if_required_lists_them_in_another() -> None:
    """A program has sorted the keys, so that the order of properties is not the author's."""
    text = {"type": "string"}
    inner = {"properties": {"x": text, "y": text}, "type": "object"}
    schema = {"properties": {"answer": {}, "inner": inner, "why": {}}, "required": ["why", "answer"], "type": "object"}
    values = Recognizer(compile_schema(schema, strict=True))
    assert {"why": 1, "answer": 1} in values
    assert {"answer": 1, "inner": {"y": "", "x": ""}, "why": 1} in values
    assert {"why": 1} not in values
    for other in (
        {**schema, "required": ["answer", "why"]},  # sorted like all others
        {"type": "object", **schema},  # not all keys are sorted
        {**schema, "properties": {"answer": {}, "why": {}, "inner": inner}},
    ):
        values = Recognizer(compile_schema(other, strict=True))
        assert {"why": 1, "answer": 1} not in values
        assert {"answer": 1, "why": 1} in values
