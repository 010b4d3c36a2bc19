"""Run the same prompt through the float model and its quantized copies: python examples/compare.py PROMPT DIRECTORY…"""

import sys

from faquant import LLM, SamplingParams


def main(prompt: str, *directories: str) -> None:
    for directory in directories:
        llm = LLM(directory)
        (answer,) = llm.generate([prompt], SamplingParams(max_tokens=32, temperature=0))
        print(f"{directory} ({llm.engine.bytes_per_token:,} bytes of cache per token)\n{answer.text}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
