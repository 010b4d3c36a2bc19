#!/usr/bin/env bash
# llguidance 1.9.1: where further properties are allowed, the grammar excludes declared names only in their plain
# spelling. An answer may have `"a"` with the declared type and then `"\u0061"` with any other: both are the name `a`,
# JSON parsers keep the last one, and the parsed object violates the schema. Two equal further names are admitted as
# well.
#
# The plain spelling twice is refused, so the intention is clear. Met when parsed answers to random schemas were checked
# by a validator.
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
    ({"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": "object"}, '{"a":1,"a":"x"}', False),
    ({"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": "object"}, '{"a":1,"\\u0061":"x"}', False),
    ({"properties": {"a": {"type": "integer"}}, "type": "object"}, '{"\\u0061":"x"}', False),
]
seen = []
for schema, text, expected in CASES:
    found = admits(schema, text)
    seen.append(found)
    print(f"{json.dumps(schema)}: {text} is valid: {expected}; llguidance {version('llguidance')} admits it: {found}")
if seen != [False, True, True]:
    sys.exit("Changed: llguidance treats a second spelling of a name differently.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# {"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": "object"}: {"a":1,"a":"x"} is valid: False; llguidance 1.9.1 admits it: False
# {"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": "object"}: {"a":1,"\u0061":"x"} is valid: False; llguidance 1.9.1 admits it: True
# {"properties": {"a": {"type": "integer"}}, "type": "object"}: {"\u0061":"x"} is valid: False; llguidance 1.9.1 admits it: True
