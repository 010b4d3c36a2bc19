#!/usr/bin/env bash
# transformers 5.24.0: apply_chat_template leaves out the keys of a message whose value is None before it renders. An
# assistant's message that consists of tool calls has `"content": None` in OpenAI's API. Templates that test for it, as
# that of DeepSeek-R1-Distill does, take the branch for text, and the calls are lost or an undefined value is an error.
#
# With jinja2 alone, the same template and messages give the expected text. Met when conversations with tool calls were
# rendered for that family of models.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 jinja2==3.1.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import jinja2
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is none %}[{{ message['role'] }} calls {{ message['tool_calls'][0]['function']['name'] }}]"
    "{% else %}[{{ message['role'] }}: {{ message['content'] }}]{% endif %}"
    "{% endfor %}"
)
call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": None, "tool_calls": [call]}]

expected = jinja2.Template(TEMPLATE).render(messages=messages)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
tokenizer.chat_template = TEMPLATE
seen = tokenizer.apply_chat_template(messages, tokenize=False)
print(f"expected: {expected}")
print(f"transformers {transformers.__version__}: {seen}")
if seen != "[user: Hello][assistant: ]":
    sys.exit("Changed: templates see content that is null.")
PYTHON
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# expected: [user: Hello][assistant calls get_weather]
# transformers 5.24.0: [user: Hello][assistant: ]
