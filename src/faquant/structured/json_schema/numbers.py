"""Regular expressions for the JSON text of numbers within bounds.

No text overflows: an integer has at most 100 digits beyond its bounds, and an exponent at most 307 stands after a
number with one digit before its point.
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

from ..patterns.text import Text

_DIGITS = 100
_FRACTION_DIGITS = 40
_MOST_INVERSES, _INVERSE_DIGITS = 1000, 9
_FRACTION = r"(?:\.[0-9]+)?"
_SCIENTIFIC = r"[1-9](?:\.[0-9]+)?[eE]"
_EXPONENT = r"[+-]?0?(?:30[0-7]|[12][0-9]{2}|[1-9]?[0-9])"
# Numbers from 10¹⁶, and numbers below 10⁻⁴, which Python and JavaScript write with exponents.
_LARGE, _SMALL = r"\+?(?:30[0-7]|[12][0-9]{2}|[2-9][0-9]|1[6-9])", r"-(?:30[0-7]|[12][0-9]{2}|[1-9][0-9]|0?[5-9])"
_POSITIVE = rf"(?:0\.0{{0,299}}[1-9][0-9]*|[1-9][0-9]{{0,{_DIGITS - 1}}}{_FRACTION})"
NOTHING = r"[^\x00-\x{10ffff}]"
_LARGEST = 1e308  # exceeds all of them
NUMBER = rf"-?(?:(?:0|[1-9][0-9]{{0,{_DIGITS - 1}}}){_FRACTION}|{_SCIENTIFIC}{_EXPONENT})"
"""Any number."""

Bound = tuple[Fraction, bool]
"""A bound, and whether it is exclusive."""
_BEYOND_ZERO: Bound = (Fraction(0), True)


def integers(low: int | None, high: int | None) -> str | None:
    """Integers from `low` to `high`, both included; None if there are none."""
    if low is not None and high is not None and low > high:
        return None
    parts = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        parts.append("-" + _naturals(least, None if low is None else -low))
    if high is None or high >= 0:
        parts.append(_naturals(max(low or 0, 0), high))
    return _either(parts)


def numbers(low: Bound | None, high: Bound | None) -> Text | None:
    """Numbers within bounds; None if there are none."""
    if low is None and high is None:
        return Text(NUMBER, False)
    least, most = None if low is None else _float_within(low, 1), None if high is None else _float_within(high, -1)
    if least == math.inf or most == -math.inf or (least is not None and most is not None and least > most):
        return None
    positive_only = low is not None and low == _BEYOND_ZERO
    negative_only = high is not None and high == _BEYOND_ZERO
    signs = []
    if most is None or most >= 0:
        text = _magnitudes(least if least is not None and least > 0 else None, most, positive_only)
        signs.append((text, ""))
    if least is None or least < 0:
        near = -most if most is not None and most < 0 else None
        signs.append((_magnitudes(near, None if least is None else -least, negative_only), "-"))
    found = [Text(sign + text.source, False) if not text.is_lark else _signed(sign, text) for text, sign in signs]
    if len(found) == 1:
        return found[0]
    if any(text.is_lark for text in found):
        return Text(" | ".join(text.lark for text in found), False, True)
    return Text(_either([text.source for text in found]), False)


def multiples_of_inverse(divisor: int) -> str | None:
    """Multiples of 1/divisor, without exponents; None if they are too many to list, or have no end as decimals."""
    if divisor > _MOST_INVERSES or 10**_INVERSE_DIGITS % divisor:
        return None
    fractions = [format(Decimal(part) / divisor, "f").partition(".")[2].rstrip("0") for part in range(1, divisor)]
    return rf"-?(?:0|[1-9][0-9]{{0,{_DIGITS - 1}}})(?:\.(?:{'|'.join(['0', *fractions])})0*)?"


def equal_to(value: float) -> str:
    """Texts of a number that are equal to it: without an exponent, and as Python writes it."""
    whole, _, fraction = _plain(value).lstrip("-").partition(".")
    sign = "-?" if value == 0 else "-" if value < 0 else ""
    end = rf"\.{fraction}0*" if fraction else r"(?:\.0+)?"
    plain = f"{sign}{whole}{end}" if len(whole) <= _DIGITS else ""
    return _either([text for text in (plain, _escaped(repr(value)) if "e" in repr(value) else "") if text])


def _signed(sign: str, text: Text) -> Text:
    return Text(f'"{sign}" {text.lark}' if sign else text.source, False, True)


def _float_within(bound: Bound, direction: int) -> float:
    """The first float on the inner side of a bound, so that the float of a text between such floats is within it."""
    value, exclusive = bound
    try:
        found = float(value)
    except OverflowError:
        found = math.copysign(math.inf, value)
    outside = (Fraction(found) - value) * direction if math.isfinite(found) else -math.copysign(1, value) * -direction
    if outside < 0 or (exclusive and outside == 0):
        found = math.nextafter(found, direction * math.inf)
    return found


def _magnitudes(least: float | None, most: float | None, is_nonzero: bool) -> Text:
    """Numbers without a sign, from `least` to `most`. Exponents are used where they cannot exceed a bound."""
    if most is not None and most >= _LARGEST:
        most = None
    if least is not None and least == 0:
        least = None
    plain = [Text(_at_least(least), False)] if least is not None else []
    plain += [Text(_at_most(most), False)] if most is not None else []
    if is_nonzero or not plain:
        plain.append(Text(_POSITIVE if is_nonzero else rf"(?:0|[1-9][0-9]{{0,{_DIGITS - 1}}}){_FRACTION}", False))
    exponents = [_LARGE] if most is None and (least or 0) <= 1e16 else []
    exponents += [_SMALL] if least is None and (most is None or most >= 1e-4) else []
    scientific = f"{_SCIENTIFIC}(?:{'|'.join(exponents)})" if exponents else ""
    if len(plain) == 1:
        return Text(_either([plain[0].source, *([scientific] if scientific else [])]), False)
    both = " & ".join(text.lark for text in plain)
    return Text(f"({both}) | /{scientific}/" if scientific else both, False, True)


def _at_least(bound: float) -> str:
    whole, _, fraction = _plain(bound, ROUND_CEILING).partition(".")
    more = _naturals(int(whole) + 1, None) + _FRACTION
    rest = _FRACTION if not fraction else rf"\.{_fraction_at_least(fraction)}"
    return _either([more, whole + rest])


def _at_most(bound: float) -> str:
    whole, _, fraction = _plain(bound, ROUND_FLOOR).partition(".")
    less = [_naturals(0, int(whole) - 1) + _FRACTION] if int(whole) else []
    rest = r"(?:\.0+)?" if not fraction else rf"(?:\.{_fraction_at_most(fraction)})?"
    return _either([*less, whole + rest])


def _fraction_at_least(digits: str) -> str:
    found = digits[-1] + "[0-9]*"
    for place in range(len(digits) - 1, -1, -1):
        digit = digits[place]
        more = f"[{int(digit) + 1}-9][0-9]*" if digit != "9" else ""
        found = _either([text for text in (more, found if place == len(digits) - 1 else digit + found) if text])
    return found


def _fraction_at_most(digits: str) -> str:
    found = digits[-1] + "0*"
    for place in range(len(digits) - 1, -1, -1):
        digit = digits[place]
        less = f"[0-{int(digit) - 1}][0-9]*" if digit != "0" else ""
        found = _either(
            [text for text in (less, found if place == len(digits) - 1 else f"{digit}(?:{found})?") if text]
        )
    return found


def _naturals(low: int, high: int | None) -> str:
    """Integers from `low` ≥ 0; a missing `high` means that there may be 100 digits, or more than in `low`.

    Bounds beyond 100 digits are moved inwards to a power of ten, because expressions must not be nested too deeply.
    """
    if high is None and low <= 1:
        return f"[1-9][0-9]{{0,{_DIGITS - 1}}}" if low else f"(?:0|[1-9][0-9]{{0,{_DIGITS - 1}}})"
    first = str(low) if low < 10**_DIGITS else "1" + "0" * len(str(low))
    last = "9" * max(_DIGITS, len(first)) if high is None else str(high)
    if len(last) > _DIGITS:
        last = "9" * (len(last) - (high is not None))
    if int(first) > int(last):
        return NOTHING
    if high is None and len(first) < len(last):
        return _either([_digits(first, "9" * len(first)), f"[1-9][0-9]{{{len(first)},{len(last) - 1}}}"])
    if len(first) == len(last):
        return _digits(first, last)
    parts = [_digits(first, "9" * len(first))]
    if len(last) - len(first) > 1:
        parts.append(f"[1-9][0-9]{{{len(first)},{len(last) - 2}}}")
    return _either([*parts, _digits("1" + "0" * (len(last) - 1), last)])


def _digits(first: str, last: str) -> str:
    """Numbers with the same number of digits as both bounds."""
    if not first:
        return ""
    count = len(first) - 1
    rest = f"[0-9]{{{count}}}" if count else ""
    low, high = int(first[0]), int(last[0])
    if low == high:
        return first[0] + _digits(first[1:], last[1:])
    parts = []
    if first[1:].strip("0"):
        parts.append(first[0] + _digits(first[1:], "9" * count))
        low += 1
    ends = last[1:].strip("9")
    if high - (1 if ends else 0) >= low:
        parts.append(f"[{low}-{high - (1 if ends else 0)}]{rest}")
    if ends:
        parts.append(last[0] + _digits("0" * count, last[1:]))
    return _either(parts)


def _plain(value: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """The shortest text of a float without an exponent, rounded if it has too many digits."""
    exact = Decimal(repr(value)) if abs(value) < 2**53 else Decimal(value)
    if int(exact.as_tuple().exponent) < -_FRACTION_DIGITS:
        exact = exact.quantize(Decimal(1).scaleb(-_FRACTION_DIGITS), rounding, Context(prec=_DIGITS))
    text = format(exact, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _escaped(text: str) -> str:
    return text.replace(".", r"\.").replace("+", r"\+")


def _either(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"
