#!/usr/bin/env bash
# llguidance 1.9.1: with `exclusiveMinimum: 0` and a `maximum` below 1, the grammar admits 0. With a maximum of 1 or
# more, it does not. A probability above 0 is a usual case: 0 divides by zero later.
#
# Met when the ends of ranges were compared with a validator.
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
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0", False),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0.0", False),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}, "0", False),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0.25", True),
]
seen = []
for schema, text, expected in CASES:
    found = admits(schema, text)
    seen.append(found)
    print(f"{json.dumps(schema)}: {text} is valid: {expected}; llguidance {version('llguidance')} admits it: {found}")
if seen != [True, False, False, True]:
    sys.exit("Changed: llguidance has other ends of ranges.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}: 0 is valid: False; llguidance 1.9.1 admits it: True
# {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}: 0.0 is valid: False; llguidance 1.9.1 admits it: False
# {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}: 0 is valid: False; llguidance 1.9.1 admits it: False
# {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}: 0.25 is valid: True; llguidance 1.9.1 admits it: True
