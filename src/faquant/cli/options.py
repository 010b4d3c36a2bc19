"""Options that generate and chat share."""

from typing import Annotated

import typer

MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that make this probability.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one's probability.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 discourages tokens that stand there already.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")]
