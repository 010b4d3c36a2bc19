"""Classes of characters as regular expressions of Rust's crate: plain, and as JSON strings have them (without DEL)."""

from functools import lru_cache

from .matching import includes
from .syntax import Chars

_ESCAPES = {'"': '"', "\\": "\\\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_CONTROLS = [chr(point) for point in range(32) if chr(point) not in _ESCAPES]
_NOT_PLAIN = ((0, 31), (34, 34), (92, 92), (127, 127))
_NOTHING = r"[^\x00-\x{10ffff}]"


def plain(chars: Chars) -> str:
    """The characters themselves."""
    items = "".join(_range(*pair) for pair in chars.ranges) + _categories(chars)
    if not items:
        return "(?s:.)" if chars.negated else _NOTHING
    return f"[{'^' if chars.negated else ''}{items}]"


@lru_cache(maxsize=1024)
def in_json(chars: Chars) -> str:
    """The characters in JSON strings: each has one spelling, its own, or the shortest escape if JSON requires one."""
    categories = _categories(chars)
    items = "".join(_range(*pair) for pair in chars.ranges)
    specials = [mark for mark in _ESCAPES if includes(chars, mark)]
    controls = [mark for mark in _CONTROLS if includes(chars, mark)]
    if chars.negated:
        own = "[^" + items + categories + "".join(_range(*pair) for pair in _NOT_PLAIN) + "]"
    elif not specials and not controls and not includes(chars, "\x7f"):
        own = f"[{items}{categories}]" if items or categories else _NOTHING
    else:
        own = f"[[{items}{categories}]&&[^{''.join(_range(*pair) for pair in _NOT_PLAIN)}]]"
    if not specials and not controls:
        return own
    codes = [ord(mark) for mark in controls]
    digits = {high: "".join(f"{code % 16:x}" for code in codes if code // 16 == high) for high in (0, 1)}
    digits = {high: low.replace("01234567", "0-7").replace("0-789", "0-9") for high, low in digits.items() if low}
    numbers = [f"{high}[{low.replace('abcdef', 'a-f')}]" for high, low in digits.items()]
    escapes = [f"[{''.join(map(_escape, specials))}]"] if specials else []
    escapes += [f"u00(?:{'|'.join(numbers)})"] if numbers else []
    return rf"(?:{own}|\\(?:{'|'.join(escapes)}))"


def _categories(chars: Chars) -> str:
    return "".join(f"\\p{{{name}}}" for name in chars.categories)


def _escape(mark: str) -> str:
    return "\\\\" if mark == "\\" else _ESCAPES[mark]


def _range(first: int, last: int) -> str:
    # The range of surrogates, which are not characters, is left out.
    if first < 0xD800 <= last or 0xD800 <= first < 0xE000:
        low = _range(first, 0xD7FF) if first < 0xD800 else ""
        return low + (_range(0xE000, last) if last >= 0xE000 else "")
    return _point(first) if first == last else f"{_point(first)}-{_point(last)}"


def _point(point: int) -> str:
    mark = chr(point)
    if mark.isascii():
        return mark if mark.isalnum() else f"\\x{point:02x}"
    return f"\\x{{{point:x}}}"
