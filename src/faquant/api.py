"""What a Python program calls: paths and names in, the same work as the commands do."""

from collections.abc import Callable, Mapping
from pathlib import Path

from .config import load_config
from .engine.tokenizer import Tokenizer
from .evaluation import report, texts
from .quantization import calibration as calibrating
from .quantization import pipeline
from .recipe import Recipe, load_recipe

MAX_PROMPT_TOKENS = 2048


def quantize(
    model: str | Path,
    output: str | Path,
    recipe: str | Recipe = "default",
    calibration: str | Path = "builtin",
    *,
    overwrite: bool = False,
    restart: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Quantize the Hugging Face directory `model` into the new directory `output`.

    Args:
        recipe: a name (default, static, mindie, mindie-plain, attention-only), a JSON file, or a Recipe.
        calibration: `builtin`, or a .txt or .jsonl file.
        overwrite: replace `output` if it is a model directory already.
        restart: throw away what an interrupted run has left, in place of going on with it.
        progress: called with (steps done, steps in all).

    Returns:
        How many tokens it was calibrated on.

    Raises:
        UsageError: the recipe or the calibration makes no sense.
        CheckpointError, UnsupportedError: the model cannot be read, or not be quantized so.
        OutputError: `output` exists or cannot be written, or an interrupted run of another kind has left work there.
    """
    source = Path(model)
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    config = load_config(source)
    builtin = str(calibration) == "builtin"
    records = calibrating.builtin_records() if builtin else calibrating.read_records(Path(calibration))
    tokenizer = Tokenizer.from_directory(source) if (source / "tokenizer.json").is_file() else None
    limit = min(MAX_PROMPT_TOKENS, config.max_position)
    ids = calibrating.tokenize_records(records, tokenizer, config.vocab_size, limit, config.max_position)
    pipeline.quantize(source, Path(output), chosen, ids, overwrite=overwrite, restart=restart, progress=progress)
    return sum(len(prompt) for prompt in ids)


def evaluate(
    directory: str | Path,
    against: str | Path,
    text: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> report.Report:
    """Measure what quantization cost the model in `directory` against its float source.

    Args:
        text: name → text to measure on; None: the built-in ones.
        max_tokens: bound on the tokens of each text.
        progress: called with (text's name, windows done, windows in all).

    Raises:
        UsageError: the directories do not belong together, or there is nothing to measure.
        CheckpointError, UnsupportedError: one of them cannot be loaded.
    """
    chosen = texts.builtin_texts() if text is None else text
    return report.evaluate(Path(directory), Path(against), chosen, max_tokens, progress)
