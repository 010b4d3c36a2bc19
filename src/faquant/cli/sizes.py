"""Parse and format sizes in bytes."""

import re

from ..errors import UsageError

_POWERS = {unit: power for power, unit in enumerate("KMGT", 1)}
_UNITS = {"": 1} | {u: 1000**p for u, p in _POWERS.items()} | {f"{u}I": 1024**p for u, p in _POWERS.items()}


def parse_size(text: str) -> int:
    """Parse a size such as `24GiB`, `500MB` or `1000`; return bytes.

    Raises:
        UsageError: the text is not a size.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,6})?)\s*([KMGT]?I?)B?", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"{text!r} is not a size; write for example 24GiB or 500MB.")
    return int(float(match[1]) * _UNITS[match[2]])


def show_size(size: int) -> str:
    """Format a size, rounded down, such as `1.5GiB`; parse_size can read it."""
    for unit, power in (("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if size >= 1024**power:
            return f"{size * 10 // 1024**power / 10}{unit}"
    return f"{size}B"
