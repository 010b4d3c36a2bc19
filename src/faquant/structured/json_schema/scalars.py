"""Terminals of llguidance's Lark dialect for numbers, strings and literal values."""

import json
import math
from fractions import Fraction
from typing import Any

from ...errors import UsageError
from ..patterns.text import DEFINITION, IN_JSON, PLAIN, Text, both, without
from .forms import NumberForm, StringForm
from .numbers import NUMBER, equal_to, integers, numbers

MAX_COMBINED = 4
"""Patterns that one string must match at once. The size of their intersection grows with their product."""
_PLAIN = Text(r"-?[0-9.]+", False)
_ANY_NUMBER = Text(NUMBER, False, name="NUMBER")
_NOT_INTEGRAL = Text(r"-?[0-9]+\.[0-9]*[1-9][0-9]*", False)
json_text = json.JSONEncoder(ensure_ascii=False).encode
"""json.dumps, which would create an encoder for each value."""
compact_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""The same without spaces."""
COMMA = '"," '
TERMINALS = f"""{DEFINITION}
STRING: "\\"" CHARS "\\""
NUMBER: /{NUMBER}/"""
"""The terminals to which others refer."""


def literal(text: str) -> str:
    """The terminal for a text."""
    return json_text(text).replace("\x7f", "\\u007f")


def value_terminal(value: Any) -> str:
    """The terminal for null, true, false, a number or a string."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        is_short = isinstance(value, float) or abs(value) < 2**53
        return f"/{equal_to(value)}/" if is_short else literal(str(value))
    return literal(json_text(value))


def string_body(form: StringForm, name: str, is_plain: bool = False) -> Text | None:
    """The JSON text of strings, without the quotes, or, if plain, the strings; None if there are none.

    name: what errors call the schema.
    """
    if len(form.patterns) > MAX_COMBINED:
        shown = ", ".join(repr(pattern.source[:40]) for pattern, _ in form.patterns[:2])
        raise UsageError(
            f"{name} combines more than {MAX_COMBINED} patterns or formats for one string ({shown}, …), which would "
            "take too long; merge them into one."
        )
    any_text = PLAIN.any if is_plain else IN_JSON.any
    text: Text | None = None
    if form.least or form.most is not None:
        bounds = f"{{{form.least},{'' if form.most is None else form.most}}}"
        text = Text(any_text.source.removesuffix("*") + bounds, not form.least)
    for pattern, wanted in form.patterns:
        part = pattern.plain_text if is_plain else pattern.text
        if wanted and part is None:
            return None
        if wanted and part is not None:
            text = part if text is None else both(text, part)
    found = text or any_text
    for pattern, wanted in form.patterns:
        part = pattern.plain_text if is_plain else pattern.text
        if not wanted and part is not None:
            found = without(found, part)
    if form.excluded:
        values = form.excluded if is_plain else [json_text(each)[1:-1] for each in form.excluded]
        bodies = [literal(value) for value in values]
        found = without(found, Text(" | ".join(bodies), "" in form.excluded, True))
    return found


def string_terminal(form: StringForm, name: str) -> str | None:
    """The terminal for strings with their quotes; None if there are none."""
    body = string_body(form, name)
    if body is None:
        return None
    if body is IN_JSON.any:
        return "STRING"
    return f'"\\"" {body.lark} "\\""' if body.is_lark else f'/"{body.source}"/'


def number_terminal(form: NumberForm) -> str | None:
    """The terminal for numbers, but for `multiples`; None if there are none."""
    if form.integral:
        source = integers(*integer_bounds(form))
        found = None if source is None else Text(source, False)
        excluded = [value for value in form.excluded if Fraction(value).denominator == 1]
        texts = [str(int(value)) for value in excluded]
    else:
        found = _ANY_NUMBER if form.low is None and form.high is None else numbers(form.low, form.high)
        texts = [equal_to(value) for value in form.excluded]
        found = both(found, _PLAIN) if found is not None and texts else found
    if found is None:
        return None
    if form.integral is False:
        found = both(found, _NOT_INTEGRAL)
    if texts:
        found = without(found, Text("|".join(texts), False))
    return found.lark


def integer_bounds(form: NumberForm) -> tuple[int | None, int | None]:
    """The bounds of integers, both inclusive."""
    low = high = None
    if form.low is not None:
        low = math.floor(form.low[0]) + 1 if form.low[1] else math.ceil(form.low[0])
    if form.high is not None:
        high = math.ceil(form.high[0]) - 1 if form.high[1] else math.floor(form.high[0])
    return low, high


def repeated(text: str, least: int, most: int | None) -> str:
    """An expression for a text from `least` to `most` times."""
    if most == 0:
        return ""
    return f"({text})" + ("*" if most is None and not least else f"{{{least},{'' if most is None else most}}}")
