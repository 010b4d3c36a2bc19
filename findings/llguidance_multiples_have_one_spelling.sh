#!/usr/bin/env bash
# llguidance 1.9.1: `multipleOf` is a rule of spelling. With a step of 0.25 or 0.75 the grammar admits 1.50 and not 1.5,
# which JSON writers produce; with 0.3 it admits 1.5 and not 1.50. JSON's numbers have no spelling: 1.5 and 1.50 are
# the same instance, and multiples of all three steps.
#
# Met when numbers from json.dumps were checked against the grammars of their schemas.
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
    ({"type": "number", "multipleOf": 0.25}, "1.5"),
    ({"type": "number", "multipleOf": 0.25}, "1.50"),
    ({"type": "number", "multipleOf": 0.75}, "1.5"),
    ({"type": "number", "multipleOf": 0.75}, "1.50"),
    ({"type": "number", "multipleOf": 0.3}, "1.5"),
    ({"type": "number", "multipleOf": 0.3}, "1.50"),
]
seen = []
for schema, text in CASES:
    found = admits(schema, text)
    seen.append(found)
    print(f"{json.dumps(schema)}: {text} is valid; llguidance {version('llguidance')} admits it: {found}")
if seen != [False, True, False, True, True, False]:
    sys.exit("Changed: llguidance has other spellings of multiples.")
PYTHON
# Output seen (2026-11-29, Debian 12, x86-64, Python 3.11):
# {"type": "number", "multipleOf": 0.25}: 1.5 is valid; llguidance 1.9.1 admits it: False
# {"type": "number", "multipleOf": 0.25}: 1.50 is valid; llguidance 1.9.1 admits it: True
# {"type": "number", "multipleOf": 0.75}: 1.5 is valid; llguidance 1.9.1 admits it: False
# {"type": "number", "multipleOf": 0.75}: 1.50 is valid; llguidance 1.9.1 admits it: True
# {"type": "number", "multipleOf": 0.3}: 1.5 is valid; llguidance 1.9.1 admits it: True
# {"type": "number", "multipleOf": 0.3}: 1.50 is valid; llguidance 1.9.1 admits it: False
