"""Evaluating a directory against its float source, text by text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint.metadata import model_fingerprint
from ..checkpoint.tensors import TensorFiles
from ..config import ModelConfig
from ..engine.tokenizer import Tokenizer
from ..errors import CheckpointError, UsageError
from ..model.load import load
from .divergence import WINDOW, Divergence, compare, variants

MAY_DIFFER = ("tie_word_embeddings", "dtype", "eos_token_ids", "bos_token_id")


@dataclass(frozen=True)
class Report:
    """Divergences by text and variant: `attention` and `linears` quantized alone, and `both`."""

    model: str
    against: str
    recipe: str
    window: int
    texts: dict[str, dict[str, Divergence]]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; KL in nats, perplexities and shares as they are."""
        return {
            "model": self.model,
            "against": self.against,
            "recipe": self.recipe,
            "window": self.window,
            "texts": {
                text: {name: result.to_json() for name, result in results.items()}
                for text, results in self.texts.items()
            },
        }


def evaluate(
    directory: Path,
    against: Path,
    texts: Mapping[str, str],
    max_tokens: int | None = None,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> Report:
    """Measure the quantized `directory` against the float directory `against`.

    Args:
        texts: name → text; each is cut into windows of 1,024 tokens, or of the context where that is shorter.
        max_tokens: bound on the tokens of each text; None: all of it.

    Raises:
        UsageError: the directories do not belong together, or there is nothing to measure.
        CheckpointError, UnsupportedError: one of them cannot be loaded.
    """
    model, source = load(directory), load(against)
    if model.description is None:
        raise UsageError(f"{directory} is a float model. Name a quantized directory, and its source with --against.")
    if source.description is not None:
        raise UsageError(f"{against} is quantized. Name the float model that {directory} was made from.")
    if model.metadata is not None and model.metadata.model != model_fingerprint(TensorFiles.open(against)):
        raise UsageError(f"{directory} was not made from {against}: the weights are others. Name its own float model.")
    _check_same_config(directory, against, model.config, source.config)
    tokenizer = Tokenizer.from_directory(against)
    candidates = variants(model, source)
    window = min(WINDOW, model.max_position, source.max_position)
    results: dict[str, dict[str, Divergence]] = {}
    for name, text in texts.items():
        ids = tokenizer.encode(text, add_special_tokens=False)[:max_tokens]
        if ids and max(ids) >= source.config.vocab_size:
            raise CheckpointError(
                f"The tokenizer of {against} yields the id {max(ids)}, but the model's vocabulary has "
                f"{source.config.vocab_size} entries. Its files do not belong together."
            )
        results[name] = compare(source, candidates, ids, window, partial(progress, name))
    recipe = model.metadata.recipe.name if model.metadata else "mindie"
    return Report(str(directory), str(against), recipe, window, results)


def _check_same_config(directory: Path, against: Path, config: ModelConfig, source: ModelConfig) -> None:
    for field in fields(ModelConfig):
        mine, theirs = getattr(config, field.name), getattr(source, field.name)
        if mine != theirs and field.name not in MAY_DIFFER:
            raise UsageError(
                f"{directory} was not made from {against}: {field.name} is {mine} in the one and {theirs} in the other."
            )
