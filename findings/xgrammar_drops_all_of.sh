#!/usr/bin/env bash
# xgrammar 0.2.9: `allOf` with several schemas admits any JSON value, and keywords beside `$ref` or `anyOf` have no
# effect. There is no error, and nothing in the result says that the schema was not followed. Tools that generate
# schemas write exactly these forms for subclasses, for references with bounds of their own, and for unions.
#
# With one schema in `allOf`, it is followed. Met when the schemas of tool calls were compared between grammar engines.
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
    ({"allOf": [{"type": "integer"}]}, '"x"', False),
    ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, '"x"', False),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}, "minimum": 5}, "4", False),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}], "minimum": 5}, "4", False),
    ({"type": ["integer", "null"], "minimum": 5}, "4", False),
]
seen = []
for schema, text, expected in CASES:
    found = admits(schema, text)
    seen.append(found)
    print(f"{json.dumps(schema)}: {text} is valid: {expected}; xgrammar {version('xgrammar')} admits it: {found}")
if seen != [False, True, True, True, False]:
    sys.exit("Changed: xgrammar follows other combinations of schemas.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# {"allOf": [{"type": "integer"}]}: "x" is valid: False; xgrammar 0.2.9 admits it: False
# {"allOf": [{"type": "integer"}, {"minimum": 5}]}: "x" is valid: False; xgrammar 0.2.9 admits it: True
# {"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}, "minimum": 5}: 4 is valid: False; xgrammar 0.2.9 admits it: True
# {"anyOf": [{"type": "integer"}, {"type": "null"}], "minimum": 5}: 4 is valid: False; xgrammar 0.2.9 admits it: True
# {"type": ["integer", "null"], "minimum": 5}: 4 is valid: False; xgrammar 0.2.9 admits it: False
