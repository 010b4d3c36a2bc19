#!/usr/bin/env bash
# xgrammar 0.2.9: a name in `required` that `properties` does not list is not required. The grammar admits the object
# without it, and refuses every object that has it, so all its objects violate the schema: by default, strict_mode
# closes objects that leave `additionalProperties` out.
#
# JSON Schema gives the two keywords no connection, and schemas in which a base has `properties` and a variant has
# `required` are usual. Met when two grammar engines answered with different objects.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 xgrammar==0.2.9
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from importlib.metadata import version

import xgrammar

words = [bytes([byte]) for byte in range(256)] + [b"<end>"]
info = xgrammar.TokenizerInfo(words, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[256])
compiler = xgrammar.GrammarCompiler(info)


def admits(schema, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    return matcher.accept_string(text) and (matcher.is_terminated() or matcher.accept_token(256))


CASES = [
    ({"type": "object", "required": ["a"]}, '{}', False),
    ({"type": "object", "required": ["a"]}, '{"a": 1}', True),
    ({"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["a", "b"]}, '{"b": 1}', False),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, '{}', False),
]
seen = []
for schema, text, expected in CASES:
    found = admits(schema, text)
    seen.append(found)
    print(f"{json.dumps(schema)}: {text} is valid: {expected}; xgrammar {version('xgrammar')} admits it: {found}")
if seen != [True, False, True, False]:
    sys.exit("Changed: xgrammar treats required names without properties differently.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# {"type": "object", "required": ["a"]}: {} is valid: False; xgrammar 0.2.9 admits it: True
# {"type": "object", "required": ["a"]}: {"a": 1} is valid: True; xgrammar 0.2.9 admits it: False
# {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["a", "b"]}: {"b": 1} is valid: False; xgrammar 0.2.9 admits it: True
# {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}: {} is valid: False; xgrammar 0.2.9 admits it: False
