"""Numbers within bounds, exactly: against Python's comparisons, and with texts that readers convert back."""

import json
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faquant.errors import UsageError
from faquant.structured.json_schema import compile_schema
from oracles.schemas import Recognizer

FAR = st.integers(-(10**25), 10**25)
INTEGERS = st.one_of(st.integers(-1000, 1000), FAR, st.sampled_from([2**53, 2**53 + 1, -(2**63), 2**64 - 1, 10**100]))
FLOATS = st.one_of(
    st.floats(-100, 100),
    st.integers(-50, 50),
    st.sampled_from([0, 0.1, -0.5, 99.5, 1e-5, 1e-320, 1e16, 2**53 + 1, 1e308, -1e308, 1.7976931348623157e308]),
)


@given(low=st.none() | INTEGERS, high=st.none() | INTEGERS, values=st.lists(INTEGERS, max_size=9))
@settings(max_examples=150, deadline=None)
def test_integers(low: int | None, high: int | None, values: list[int]) -> None:
    bounds = {"minimum": low, "maximum": high}
    schema = {"type": "integer", **{key: bound for key, bound in bounds.items() if bound is not None}}
    if low is not None and high is not None and low > high:
        return
    admitted = Recognizer(compile_schema(schema, strict=True))
    near = [bound + step for bound in (low, high) if bound is not None for step in (-1, 0, 1, 10)]
    for value in (*values, *near):
        fits = (low is None or value >= low) and (high is None or value <= high)
        if abs(value) < 10**100:
            assert admitted.has_text(str(value)) == fits
    assert not any(map(admitted.has_text, ("-0", "01", "+1", "1e3", "1.0", "1" * 110)))


@given(
    low=st.none() | FLOATS,
    high=st.none() | FLOATS,
    excluded=st.tuples(st.booleans(), st.booleans()),
    values=st.lists(FLOATS, max_size=9),
)
@settings(max_examples=200, deadline=None)
def test_numbers(low: float | None, high: float | None, excluded: tuple[bool, bool], values: list[float]) -> None:
    names = ("exclusiveMinimum" if excluded[0] else "minimum", "exclusiveMaximum" if excluded[1] else "maximum")
    bounds = dict(zip(names, (low, high), strict=True))
    schema = {"anyOf": [{"type": "null"}, {"type": "number", **{k: v for k, v in bounds.items() if v is not None}}]}
    admitted = Recognizer(compile_schema(schema, strict=True))
    near = [math.nextafter(bound, way) for bound in (low, high) if bound is not None for way in (-math.inf, math.inf)]
    for value in (*values, *near, *(bound for bound in (low, high) if bound is not None)):
        for text in {json.dumps(value), f"{value:.3f}", f"{value:.20g}"} - {"inf", "-inf", "Infinity", "-Infinity"}:
            read = Fraction(json.loads(text))
            above = low is None or read > low or (read == low and not excluded[0])
            below = high is None or read < high or (read == high and not excluded[1])
            if admitted.has_text(text):
                assert above
                assert below
            elif above and below and text == json.dumps(value):
                # What may be missing is an exponent, a negative zero, or an integer that no float is equal to.
                assert "e" in text or text == "-0.0" or abs(value) > 2**53


@pytest.mark.parametrize(
    ("text", "is_admitted"),
    [
        ("1e999", False),
        ("-1E+400", False),
        ("12e307", False),
        ("9" * 400, False),
        ("9.9e307", True),
        ("-1.5E+5", True),
        ("1e-07", True),
        ("1e+22", True),
        ("9" * 100, True),
        ("-0.0", True),
        ("0.1", True),
        ("1.", False),
        (".5", False),
        ("00", False),
    ],
)
@pytest.mark.parametrize("schema", [{"type": "number"}, {"type": ["number", "string"]}, {}], ids=str)
def test_texts_of_numbers(text: str, is_admitted: bool, schema: Any) -> None:
    assert Recognizer(compile_schema(schema, strict=True)).has_text(text) == is_admitted


@pytest.mark.parametrize(
    ("schema", "admitted", "refused"),
    [
        ({"type": "integer", "multipleOf": 7, "minimum": 1}, [7, 700], [0, 8, -7]),
        ({"type": "integer", "multipleOf": 10, "exclusiveMaximum": 50}, [0, 40, -10], [50, 5]),
        ({"type": "number", "multipleOf": 0.25, "exclusiveMinimum": 0}, [0.25, 1.5, 3.0, 7], [0, 0.3]),
        ({"type": "number", "multipleOf": 0.01, "maximum": 1}, [0.07, 1, -3.25], [0.001, 1.01]),
        ({"type": "number", "multipleOf": 1}, [5, -3], [0.5]),
        ({"allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "type": "integer"}, [12, 0], [4, 6, 8]),
        ({"enum": [1, 2.5, 1e22]}, [1, 2.5, 1e22], [2, 10]),
        ({"const": 9007199254740993}, [9007199254740993], [9007199254740992, 9007199254740994]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, [2**63 - 1, -(2**63)], [2**63, -(2**63) - 1]),
    ],
    ids=str,
)
def test_multiples_and_values(schema: Any, admitted: list[float], refused: list[float]) -> None:
    values = Recognizer(compile_schema(schema, strict=True))
    for value in admitted:
        assert value in values
    for value in refused:
        assert value not in values


@pytest.mark.parametrize("step", ["0.25", "0.75", "0.3", "1.5", "2.5", "0.1", "0.01", "0.125", "3", "3.75"])
@pytest.mark.parametrize("bounds", [{}, {"minimum": -3, "exclusiveMaximum": 9}, {"exclusiveMinimum": 0.75}], ids=str)
def test_multiples_are_admitted_as_they_are_usually_written(step: str, bounds: dict[str, float]) -> None:
    """Without zeros at the end, and, if they are whole, with and without `.0`."""
    values = Recognizer(compile_schema({"type": "number", "multipleOf": float(step), **bounds}, strict=True))
    low = bounds.get("minimum", bounds.get("exclusiveMinimum", -100))
    for hundredths in range(-400, 1300, 5):
        value = Fraction(hundredths, 100)
        within = low < value < bounds.get("exclusiveMaximum", 100) or value == bounds.get("minimum")
        is_right = within and (value / Fraction(step)).denominator == 1
        assert values.has_text(repr(float(value)).removesuffix(".0")) == is_right, value
        if value.denominator == 1 and Fraction(step).denominator > 1:
            assert values.has_text(f"{int(value)}.0") == is_right, value


@pytest.mark.parametrize("places", range(11))
@pytest.mark.parametrize("digits", [2, 3, 5, 7, 11, 15, 25, 123, 123456])
@pytest.mark.parametrize("kind", ["number", "integer"])
def test_steps_are_exact_or_left_out(kind: str, digits: int, places: int) -> None:
    """llguidance misreads some steps; of these, no multiple is promised, and `strict` refuses them by name."""
    step = Fraction(digits, 10**places)
    schema = {"type": kind, "multipleOf": float(step)}
    compiled = compile_schema(schema)
    admitted = Recognizer(compiled)
    for count in (0, 1, 3, 17, 101):
        value = step * count
        if kind == "number" or value.denominator == 1:
            text = str(value.numerator) if value.denominator == 1 else f"{float(value):.{places}f}"
            assert admitted.has_text(text), text
    others = [text for text in ("1", "7", "8", "10.01", "24.68", "0.3") if Fraction(text) % step]
    if compiled.unenforced:
        with pytest.raises(UsageError, match="multipleOf"):
            compile_schema(schema, strict=True)
    else:
        assert not any(map(admitted.has_text, others))


def test_usual_steps_are_enforced() -> None:
    for step in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.5, 2, 5, 0.001, 0.0011, 1.5e-5):
        assert not compile_schema({"type": "number", "multipleOf": step}, strict=True).unenforced
