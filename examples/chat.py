"""Answer two conversations together, then stream a text: python examples/chat.py OUT"""

import sys

from faquant import LLM, SamplingParams


def main(directory: str) -> None:
    llm = LLM(directory, max_num_seqs=8)
    questions = ["What is the capital of France?", "Name three primary colors."]
    conversations = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(max_tokens=64, temperature=0)
    for question, answer in zip(questions, llm.chat(conversations, params), strict=True):
        print(f"> {question}\n{answer.text}\n")
    for piece in llm.stream("Once upon a time", SamplingParams(max_tokens=64, seed=7)):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
