"""What a Python program calls: paths and names in, the same work as the commands do."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from . import search
from .checkpoint.model_config import load_config
from .checkpoint.write import prepared
from .errors import UsageError
from .evaluation import measure, texts
from .evaluation.report import Report
from .quantization import calibration as calibrating
from .quantization import pipeline
from .recipe import Recipe, load_recipe
from .text.tokenizer import Tokenizer

MAX_PROMPT_TOKENS = 2048
SEARCH_TOKENS = 512
"""Of each evaluation text, to measure a candidate recipe on."""


def quantize(
    model: str | Path,
    output: str | Path,
    recipe: str | Recipe = "default",
    calibration: str | Path = "builtin",
    *,
    overwrite: bool = False,
    restart: bool = False,
    max_kl: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    search_progress: search.Progress = lambda what, done, total: None,
) -> int:
    """Quantize the Hugging Face directory `model` into the new directory `output`.

    Args:
        recipe: a name (default, static, mindie, mindie-plain, attention-only), a JSON file, a Recipe, or `auto`: what
            search.find chooses by measuring on the built-in evaluation texts.
        calibration: `builtin`, or a .txt or .jsonl file.
        overwrite: replace `output` if it is a model directory already.
        restart: throw away what an interrupted run has left, in place of going on with it.
        max_kl: `auto` takes the cheapest recipe whose mean KL, in nats, stays within this bound; None: the recipe that
            loses least at full speed.
        progress: called with (steps done, steps in all).
        search_progress: called with (what is tried, steps done, steps in all).

    Returns:
        How many tokens it was calibrated on.

    Raises:
        UsageError: the recipe or the calibration makes no sense.
        CheckpointError, UnsupportedError: the model cannot be read, or not be quantized so.
        OutputError: `output` exists or cannot be written, or an interrupted run of another kind has left work there.
    """
    source = Path(model)
    automatic = recipe == "auto"
    if max_kl is not None and not automatic:
        raise UsageError("A bound on KL goes with the recipe 'auto', which looks for a recipe that keeps it.")
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe("default" if automatic else recipe)
    config = load_config(source)
    builtin = str(calibration) == "builtin"
    records = calibrating.builtin_records() if builtin else calibrating.read_records(Path(calibration))
    tokenizer = Tokenizer.from_directory(source) if (source / "tokenizer.json").is_file() else None
    limit = min(MAX_PROMPT_TOKENS, config.max_position)
    ids = calibrating.tokenize_records(records, tokenizer, config.vocab_size, limit, config.max_position)
    notes, journal = {}, None
    if automatic:
        if tokenizer is None:
            raise UsageError(f"{source} has no tokenizer.json, and without one there is no text to measure recipes on.")
        held_out = [
            tokenizer.encode(text, add_special_tokens=False)[:SEARCH_TOKENS] for text in texts.builtin_texts().values()
        ]
        place = prepared(Path(output), overwrite, keep=source)  # what cannot be written is told before the long work
        journal = place.with_name(f".{place.name[:64]}.search.json")
        if restart:
            journal.unlink(missing_ok=True)
        found = search.find(source, ids, held_out, max_kl, search_progress, journal)
        chosen, notes = found.recipe, {search.SEARCH_FILE: found.to_json()}
    pipeline.quantize(
        source, Path(output), chosen, ids, overwrite=overwrite, restart=restart, progress=progress, notes=notes
    )
    if journal is not None:
        journal.unlink(missing_ok=True)
    return sum(len(prompt) for prompt in ids)


def evaluate(
    directory: str | Path,
    against: str | Path,
    text: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    quick: bool = False,
) -> Report:
    """Measure what quantization cost the model in `directory` against its float source.

    Args:
        text: name → text to measure on; None: the built-in ones.
        max_tokens: bound on the tokens of each text.
        progress: called with (steps done, steps in all).
        quick: measure less of everything, in about the time that quantizing takes.

    Raises:
        UsageError: the directories do not belong together, or there is nothing to measure.
        CheckpointError, UnsupportedError: one of them cannot be loaded.
    """
    chosen = texts.builtin_texts() if text is None else text
    effort = measure.QUICK if quick else measure.FULL
    if max_tokens is not None:
        effort = replace(effort, text=max_tokens)
    return measure.evaluate(Path(directory), Path(against), chosen, effort, progress)
