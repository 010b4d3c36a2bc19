#!/usr/bin/env bash
# outlines-core 0.2.14 and lm-format-enforcer 0.11.3: `minimum`, `maximum`, `multipleOf` and `uniqueItems` have no
# effect, although the same functions raise an error for other things that they do not support, such as `not`. So a
# schema that compiles is no sign that answers follow it: an integer from 3 to 5 may come out as 900.
#
# Both are back ends of inference servers, which hide the difference: the same request is bounded with one setting of
# the server and unbounded with another. Met when the answers of four engines to the same schemas were validated.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet outlines-core==0.2.14 lm-format-enforcer==0.11.3
"$folder/venv/bin/python" - <<'PYTHON'
import json
import re
import sys
from importlib.metadata import version

from lmformatenforcer import JsonSchemaParser
from outlines_core.json_schema import build_regex_from_schema


def by_enforcer(schema, text):
    parser = JsonSchemaParser(schema)
    for character in text:
        if character not in parser.get_allowed_characters():
            return False
        parser = parser.add_character(character)
    return parser.can_end()


CASES = [
    ({"type": "integer", "minimum": 3, "maximum": 5}, "4", True),
    ({"type": "integer", "minimum": 3, "maximum": 5}, "900", False),
    ({"type": "integer", "multipleOf": 3}, "4", False),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1,1]", False),
]
seen = []
for schema, text, expected in CASES:
    found = re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None, by_enforcer(schema, text)
    seen.append(found)
    print(f"{json.dumps(schema)}: {text} is valid: {expected}; ", end="")
    print(f"outlines-core {version('outlines-core')} admits it: {found[0]}, ", end="")
    print(f"lm-format-enforcer {version('lm-format-enforcer')}: {found[1]}")
if seen != [(True, True), (True, True), (True, True), (True, True)]:
    sys.exit("Changed: bounds of numbers have an effect.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# {"type": "integer", "minimum": 3, "maximum": 5}: 4 is valid: True; outlines-core 0.2.14 admits it: True, lm-format-enforcer 0.11.3: True
# {"type": "integer", "minimum": 3, "maximum": 5}: 900 is valid: False; outlines-core 0.2.14 admits it: True, lm-format-enforcer 0.11.3: True
# {"type": "integer", "multipleOf": 3}: 4 is valid: False; outlines-core 0.2.14 admits it: True, lm-format-enforcer 0.11.3: True
# {"type": "array", "items": {"type": "integer"}, "uniqueItems": true}: [1,1] is valid: False; outlines-core 0.2.14 admits it: True, lm-format-enforcer 0.11.3: True
