"""The task `calls`: cases that its schemas admit, and which answers are right."""

import json
from collections import Counter

import jsonschema
import pytest

from faquant.evaluation.tasks.calls import Case, groups, is_right
from faquant.evaluation.tasks.functions import FUNCTIONS
from faquant.structured.tools.parser import FunctionCall

CITY = Case("?", ("f", {"city": "Berlin", "days": 5, "names": ["Ada", "Bo"], "is_online": True}))


def call(name: str = "f", **changes: object) -> FunctionCall:
    assert CITY.right is not None
    return FunctionCall(name, json.dumps({**CITY.right[1], **changes}))


def test_right_arguments_follow_the_schemas_and_stand_in_the_question() -> None:
    schemas = {function.name: function.tool["function"]["parameters"] for function in FUNCTIONS}
    for group in groups(3):
        assert len(group.cases) == 3
        names = {function.name for function in group.offered}
        for case in group.cases:
            if case.right is None:
                continue
            name, values = case.right
            assert name in names
            jsonschema.validate(values, schemas[name])
            for value in values.values():
                for shown in value if isinstance(value, list) else [value]:
                    assert str(shown) in case.question


def test_every_function_is_asked_for_alone_among_others_and_where_it_is_missing() -> None:
    parts = Counter(group.part for group in groups(1))
    assert parts == {part: len(FUNCTIONS) for part in ("one function", "4 functions", "no function fits")}
    for number, group in enumerate(groups(1)):
        asked = FUNCTIONS[number // 3]
        assert (asked in group.offered) == (group.part != "no function fits")


def test_cases_are_the_same_each_time() -> None:
    assert list(groups(4)) == list(groups(4))
    assert [case.question for group in groups(4) for case in group.cases][:1] == [next(groups(1)).cases[0].question]


@pytest.mark.parametrize(
    "changes",
    [{}, {"city": " berlin. "}, {"days": 5.0}, {"names": ["ada", "BO"]}],
)
def test_values_are_compared_and_not_texts(changes: dict[str, object]) -> None:
    assert is_right(CITY, [call(**changes)])


@pytest.mark.parametrize(
    "changes",
    [
        {"city": "Bern"},
        {"days": 6},
        {"days": "5"},
        {"names": ["Bo", "Ada"]},
        {"names": ["Ada"]},
        {"is_online": False},
        {"is_online": 1},
        {"more": 1},
    ],
)
def test_wrong_arguments(changes: dict[str, object]) -> None:
    assert not is_right(CITY, [call(**changes)])


def test_one_call_of_the_right_function_is_right() -> None:
    assert not is_right(CITY, [])
    assert not is_right(CITY, [call(), call()])
    assert not is_right(CITY, [call("g")])
    assert not is_right(CITY, [FunctionCall("f", '{"city": "Ber')])


def test_no_call_is_right_where_no_function_fits() -> None:
    assert is_right(Case("?", None), [])
    assert not is_right(Case("?", None), [call()])
    assert not is_right(Case("?", None), [], is_complete=False)
