"""Options of generate and chat, and loading a model with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checkpoint.model_config import load_config
from ..kernels.device import Device, chosen

if TYPE_CHECKING:
    from ..engine.llm import LLM
    from ..formats.base import Opened
    from ..sampling.params import SamplingParams

DeviceOption = Annotated[
    Device,
    typer.Option(help="cpu, cuda for the GPU, or auto: the GPU if it is there and its kernels pass a self-test."),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Maximum tokens of an answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that add up to this probability.")]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this fraction of the likeliest one.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 discourages tokens that already occurred.")]
Seed = Annotated[int | None, typer.Option(help="With the same seed, the answer is the same.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")]


def check_checkpoints(*directories: Path) -> list["Opened"]:
    """Open model directories, read their tokenizers if they have one, and search small ones for NaN.

    Commands do this before they import packages that take seconds.

    Raises:
        UsageError, CheckpointError, UnsupportedError: one cannot be loaded.
    """
    for directory in directories:
        load_config(directory)
    from ..checkpoint.side_files import has_side_file
    from ..formats import open_checkpoint
    from ..text.tokenizer import Tokenizer

    for directory in directories:
        if has_side_file(directory, "tokenizer.json"):
            Tokenizer.from_directory(directory)
    opened = [open_checkpoint(directory) for directory in directories]
    for each in opened:
        each.check_values()
    return opened


def load_model(
    directory: Path, device: Device, stop: list[str] | None, **params: Any
) -> tuple["LLM", "SamplingParams"]:
    """Load the model in `directory`, and validate the sampling parameters.

    Raises:
        UsageError: a parameter is out of its range, or the device cannot be used.
        CheckpointError, UnsupportedError: the directory cannot be loaded.
    """
    load_config(directory)
    chosen(device)
    from ..engine.llm import LLM  # takes long to import, so check the directory first
    from ..sampling.params import SamplingParams

    checked = SamplingParams(stop=tuple(stop or ()), **params)
    return LLM(directory, device=device), checked
