"""faquant chat"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .console import read_stdin
from .options import DeviceOption, MaxTokens, MinP, RepetitionPenalty, Seed, Stop, Temperature, TopK, TopP, load_model


def chat(
    directory: Annotated[Path, typer.Argument(help="Quantized or float directory.", metavar="OUT")],
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.1,
    seed: Seed = None,
    stop: Stop = None,
    device: DeviceOption = "auto",
) -> None:
    """Chat with a model. An empty line or the end of the input ends the chat."""
    llm, params = load_model(
        directory,
        device,
        stop,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    messages = [{"role": "system", "content": system}] if system else []
    while True:
        if sys.stdin is not None and sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = read_stdin(line=True).strip()
        if not line:
            return
        messages.append({"role": "user", "content": line})
        answer = ""
        ids = llm.tokenizer.encode_chat(messages)
        context = llm.engine.max_model_len
        context_left = context - len(ids)
        if context_left < 1:
            raise UsageError(f"The conversation has filled the context of {context} tokens; start a new one.")
        for piece in llm.stream(ids, replace(params, max_tokens=min(params.max_tokens, context_left))):
            answer += piece
            print(piece, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": answer})
