"""faquant plan"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..checkpoint.model_config import load_config
from ..engine.engine_config import EngineConfig
from ..recipe import load_recipe
from .console import print_json
from .sizes import parse_size, show_size

if TYPE_CHECKING:
    from ..model.plan import Plan

CONTEXTS = (4096, 32_768, 131_072)


def plan(
    directory: Annotated[
        Path,
        typer.Argument(help="Float or quantized directory; for a float one, config.json suffices.", metavar="MODEL"),
    ],
    memory: Annotated[
        str, typer.Option(help="Available memory, such as 24GiB; of one rank if there are several.", metavar="SIZE")
    ],
    recipe: Annotated[
        str | None, typer.Option(help="Recipe that a float model will be quantized with.", metavar="RECIPE")
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(help="Maximum sequences answered at the same time.")
    ] = EngineConfig.max_num_seqs,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Maximum tokens per step.")] = (
        EngineConfig.max_num_batched_tokens
    ),
    tensor_parallel: Annotated[
        int, typer.Option("--tensor-parallel", "--tensor-parallel-size", help="Ranks that divide each layer.", min=1)
    ] = 1,
    pipeline_parallel: Annotated[
        int, typer.Option("--pipeline-parallel", "--pipeline-parallel-size", help="Stages that divide layers.", min=1)
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate, before quantizing, how much memory a model needs and how many tokens fit into the rest. With several
    ranks, which vLLM runs, all sizes are those of one rank."""
    budget = parse_size(memory)
    limits = EngineConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
    chosen = None if recipe is None else load_recipe(recipe)
    load_config(directory)
    from ..model.plan import plan as make  # slow to import, so check the directory and options first

    made = make(
        directory, chosen, limits.max_num_batched_tokens, limits.max_num_seqs, tensor_parallel, pipeline_parallel
    )
    if json:
        print_json(made.to_json(budget))
    else:
        _print(made, directory, memory, budget, limits)


def _print(made: "Plan", directory: Path, memory: str, budget: int, limits: EngineConfig) -> None:
    config, ours = made.config, made.ours
    console = Console(highlight=False, soft_wrap=True)
    title = f"{directory}: {config.model_type}, {config.num_layers} layers, {config.max_position:,} tokens"
    table = Table(title=title if made.ranks == 1 else f"{title}\none of {made.ranks} ranks")
    table.add_column("", no_wrap=True)
    for some in made.footprints:
        table.add_column(f"faquant {some.name}" if some is ours else some.name, justify="right")

    def row(label: str, values: list[str]) -> None:
        table.add_row(label, *values)

    row("weights", [show_size(some.weight_bytes) for some in made.footprints])
    row("cache, per token", [show_size(some.kv_bytes_per_token) for some in made.footprints])
    row("one step, at most", [show_size(made.step_bytes)] * 2)
    row("program", [show_size(made.program_bytes)] * 2)
    for tokens in sorted({*(some for some in CONTEXTS if some < config.max_position), config.max_position}):
        row(f"total, {tokens:,} tokens", [show_size(made.memory_for(some, tokens)) for some in made.footprints])
    fitting = [made.tokens_in(some, budget) for some in made.footprints]
    row(f"tokens in {memory}", [f"{tokens:,}" for tokens in fitting])
    row(
        f"sequences of {config.max_position:,} tokens in {memory}",
        [f"{tokens // config.max_position:,}" for tokens in fitting],
    )
    console.print(table)
    if config.context_note:
        console.print(f"Context: {config.max_position:,} tokens; {config.context_note}.")
    if not fitting[0]:
        least = show_size(made.memory_for(ours, 0))
        console.print(f"{memory} is too little: even without a cache, {least} are needed.")
    elif made.ranks == 1:
        console.print(f"faquant serve OUT --kv-cache-memory {show_size(made.cache_memory(ours, budget))}")
    else:
        console.print(_vllm(made, budget, limits))


def _vllm(made: "Plan", budget: int, limits: EngineConfig) -> str:
    """The command for vLLM on one machine. Its own limits are others, and it refuses a context that does not fit."""
    shorter = made.tokens_in(made.ours, budget) < made.config.max_position
    return (
        f"vllm serve OUT --tensor-parallel-size {made.tensor_parallel} "
        f"--pipeline-parallel-size {made.pipeline_parallel} --max-num-seqs {limits.max_num_seqs} "
        f"--max-num-batched-tokens {limits.max_num_batched_tokens} "
        f"--kv-cache-memory-bytes {made.cache_memory(made.ours, budget)}{' --max-model-len auto' if shorter else ''}"
    )
