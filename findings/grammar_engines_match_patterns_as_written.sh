#!/usr/bin/env bash
# xgrammar 0.2.9 and outlines-core 0.2.14: the `pattern` of a string is matched with the text between the quotes as it
# is written, not with the string's value. A pattern that admits a quote makes an answer that is not JSON, and the valid
# answer with an escaped quote is refused. Besides, the pattern must match the whole string, while in JSON Schema it may
# match anywhere in it.
#
# With a character class such as [^a] the quote is admitted by outlines-core in the same way. Neither raises an error.
# Met when the answers of four grammar engines to the same schemas were parsed and validated.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 xgrammar==0.2.9 outlines-core==0.2.14
"$folder/venv/bin/python" - <<'PYTHON'
import json
import re
import sys
from importlib.metadata import version

import xgrammar
from outlines_core.json_schema import build_regex_from_schema

words = [bytes([byte]) for byte in range(256)] + [b"<end>"]
info = xgrammar.TokenizerInfo(words, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[256])
compiler = xgrammar.GrammarCompiler(info)


def admits(schema, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    by_xgrammar = matcher.accept_string(text) and (matcher.is_terminated() or matcher.accept_token(256))
    return by_xgrammar, re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None


CASES = [
    ("^a$", '"a"', True),
    ("b", '"abc"', True),
    ('^"$', json.dumps('"'), True),
    ('^"$', '"""', False),
]
seen = []
for pattern, text, expected in CASES:
    found = admits({"type": "string", "pattern": pattern}, text)
    seen.append(found)
    print(f"pattern {pattern}: {text} is valid: {expected}; ", end="")
    print(f"xgrammar {version('xgrammar')} admits it: {found[0]}, outlines-core {version('outlines-core')}: {found[1]}")
if seen != [(True, True), (False, False), (False, False), (True, True)]:
    sys.exit("Changed: the patterns of strings mean something else.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# pattern ^a$: "a" is valid: True; xgrammar 0.2.9 admits it: True, outlines-core 0.2.14: True
# pattern b: "abc" is valid: True; xgrammar 0.2.9 admits it: False, outlines-core 0.2.14: False
# pattern ^"$: "\"" is valid: True; xgrammar 0.2.9 admits it: False, outlines-core 0.2.14: False
# pattern ^"$: """ is valid: False; xgrammar 0.2.9 admits it: True, outlines-core 0.2.14: True
