"""Call a function: the arguments always follow its schema: python examples/tools.py OUT"""

import json
import sys

from faquant import LLM, SamplingParams

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


def main(directory: str) -> None:
    llm = LLM(directory)
    messages = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]
    params = SamplingParams(max_tokens=128, temperature=0)
    (answer,) = llm.chat(messages, params, tools=[WEATHER], tool_choice="required")
    for call in answer.tool_calls:
        print(call.name, json.loads(call.arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
