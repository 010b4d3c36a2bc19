#!/usr/bin/env bash
# llguidance 1.9.1: the bounds of an integer beyond 2^53 go through a double. With `minimum: 2^53 + 1` the grammar
# admits 2^53, which the schema excludes; with `maximum: 2^53 + 1` it refuses 2^53 + 1; and with `maximum: 2^64 - 1` it
# refuses all numbers from 2^63 on.
#
# JSON Schema compares numbers exactly, and integers of more than 53 bits are usual: ids of messages and rows, and the
# range of an unsigned integer that code generators write into schemas. Met when tool calls with 64-bit ids were
# compared with a validator.
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
    ({"type": "integer", "minimum": 2**53 + 1}, str(2**53), False),
    ({"type": "integer", "maximum": 2**53 + 1}, str(2**53 + 1), True),
    ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, str(2**64 - 1), True),
    ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, str(2**63), True),
]
seen = []
for schema, text, expected in CASES:
    found = admits(schema, text)
    seen.append(found)
    print(f"{json.dumps(schema)}: {text} is valid: {expected}; llguidance {version('llguidance')} admits it: {found}")
if seen != [True, False, False, False]:
    sys.exit("Changed: llguidance has other bounds of large integers.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# {"type": "integer", "minimum": 9007199254740993}: 9007199254740992 is valid: False; llguidance 1.9.1 admits it: True
# {"type": "integer", "maximum": 9007199254740993}: 9007199254740993 is valid: True; llguidance 1.9.1 admits it: False
# {"type": "integer", "minimum": 0, "maximum": 18446744073709551615}: 18446744073709551615 is valid: True; llguidance 1.9.1 admits it: False
# {"type": "integer", "minimum": 0, "maximum": 18446744073709551615}: 9223372036854775808 is valid: True; llguidance 1.9.1 admits it: False
