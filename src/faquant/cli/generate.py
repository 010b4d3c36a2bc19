"""faquant generate"""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from .console import read_stdin
from .options import DeviceOption, MaxTokens, MinP, RepetitionPenalty, Seed, Stop, Temperature, TopK, TopP, load_model


def generate(
    directory: Annotated[Path, typer.Argument(help="Quantized or float directory.", metavar="OUT")],
    prompt: Annotated[str, typer.Argument(help="Text to continue; '-' reads it from stdin.", metavar="PROMPT")],
    chat: Annotated[bool, typer.Option("--chat", help="Apply the model's chat template to the prompt.")] = False,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    device: DeviceOption = "auto",
) -> None:
    """Answer one prompt and print the text while it is generated."""
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
    text = read_stdin() if prompt == "-" else prompt
    ids = llm.tokenizer.encode_chat([{"role": "user", "content": text}]) if chat else llm.tokenizer.encode(text)
    started = time.monotonic()
    for piece in llm.stream(ids, params):
        print(piece, end="", flush=True)
    print()
    if sys.stderr.isatty():
        print(f"[{time.monotonic() - started:.1f} s]", file=sys.stderr)
