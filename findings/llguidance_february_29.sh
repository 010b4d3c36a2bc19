#!/usr/bin/env bash
# llguidance 1.9.1: the format `date` excludes days that no month has, such as February 30 and April 31, but it admits
# February 29 in every year. So an answer of the grammar can fail in the client: RFC 3339, to which JSON Schema refers,
# says that February 29 exists in leap years only, and parsers of dates refuse it in others. `date-time` is the same.
#
# Met when constrained answers were parsed with Python's datetime.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llguidance==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from importlib.metadata import version

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class Bytes:
    """A tokenizer with one token for each byte."""

    tokens = [bytes([byte]) for byte in range(256)] + [b"<end>"]
    special_token_ids = [256]
    bos_token_id = eos_token_id = 256

    def __call__(self, text):
        return list(text if isinstance(text, bytes) else text.encode())


tokenizer = LLTokenizer(TokenizerWrapper(Bytes()))


def admits(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    ids = list(text.encode())
    return not matcher.get_error() and matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


CASES = [
    ({"type": "string", "format": "date"}, '"2023-02-30"', False),
    ({"type": "string", "format": "date"}, '"2023-02-29"', False),
    ({"type": "string", "format": "date"}, '"2024-02-29"', True),
    ({"type": "string", "format": "date-time"}, '"1900-02-29T12:00:00Z"', False),
]
seen = []
for schema, text, expected in CASES:
    found = admits(schema, text)
    seen.append(found)
    print(f"{json.dumps(schema)}: {text} is valid: {expected}; llguidance {version('llguidance')} admits it: {found}")
if seen != [False, True, True, True]:
    sys.exit("Changed: llguidance admits other dates.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# {"type": "string", "format": "date"}: "2023-02-30" is valid: False; llguidance 1.9.1 admits it: False
# {"type": "string", "format": "date"}: "2023-02-29" is valid: False; llguidance 1.9.1 admits it: True
# {"type": "string", "format": "date"}: "2024-02-29" is valid: True; llguidance 1.9.1 admits it: True
# {"type": "string", "format": "date-time"}: "1900-02-29T12:00:00Z" is valid: False; llguidance 1.9.1 admits it: True
