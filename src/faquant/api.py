"""What a Python program calls: paths and names in, the same work as the commands do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import search
from .checkpoint.files import read_object
from .checkpoint.model_config import load_config
from .checkpoint.tensors import TensorFiles
from .checkpoint.unfinished import remove_remains
from .checkpoint.write import prepared
from .errors import CheckpointError, UsageError
from .evaluation import measure, texts
from .evaluation.report import Report
from .quantization import calibration as calibrating
from .quantization import made, pipeline
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
    to_be_measured: bool = False,
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
        to_be_measured: leave a note beside `output` by which `is_quantized` knows it, until made.forget removes that.

    Returns:
        How many tokens it was calibrated on.

    Raises:
        UsageError: the recipe or the calibration makes no sense.
        CheckpointError, UnsupportedError: the model cannot be read, or not be quantized so.
        OutputError: `output` exists or cannot be written, or an interrupted run of another kind has left work there.
    """
    asked = _Asked.of(model, output, recipe, calibration, max_kl)
    source, chosen, ids = asked.source, asked.recipe, asked.calibration
    notes, journal = {}, None
    if asked.automatic:
        if asked.tokenizer is None:
            raise UsageError(f"{source} has no tokenizer.json, and without one there is no text to measure recipes on.")
        held_out = [
            asked.tokenizer.encode(text, add_special_tokens=False)[:SEARCH_TOKENS]
            for text in texts.builtin_texts().values()
        ]
        prepared(asked.output, overwrite, keep=source)  # what cannot be written is told before the long work
        journal = asked.journal
        if restart:
            journal.unlink(missing_ok=True)
        found = search.find(source, ids, held_out, max_kl, search_progress, journal)
        chosen, notes = found.recipe, {search.SEARCH_FILE: found.to_json()}
    pipeline.quantize(
        source,
        asked.output,
        chosen,
        ids,
        overwrite=overwrite,
        restart=restart,
        progress=progress,
        notes=notes,
        asked=asked.words if to_be_measured else None,
    )
    if journal is not None:
        journal.unlink(missing_ok=True)
    return sum(len(prompt) for prompt in ids)


def is_quantized(
    model: str | Path,
    output: str | Path,
    recipe: str | Recipe = "default",
    calibration: str | Path = "builtin",
    *,
    overwrite: bool = False,
    max_kl: float | None = None,
) -> bool:
    """Whether `output` is already what `quantize` would write, so that there is nothing to do but measure it. What is
    left there of a run that was cut off is removed then.

    Args:
        overwrite: only where a call of `quantize` with `to_be_measured` has written it; by default also where the
            checkpoint says that it was made of the same.

    Raises:
        As quantize, where model, recipe or calibration make no sense.
    """
    asked = _Asked.of(model, output, recipe, calibration, max_kl)
    if not (asked.output / "config.json").is_file():
        return False
    ids = calibrating.fingerprint(asked.calibration)
    says = None if overwrite else made.described(asked.output)
    if says is not None and (says.calibration != ids or not asked.is_recipe(says.recipe)):
        says = None
    if says is None and not made.has_note(asked.output):
        return False  # before all weights are read
    fingerprint = TensorFiles.open(asked.source).fingerprint()
    noted = made.is_noted(asked.output, made.asked_of(fingerprint, ids, asked.words))
    if not noted and (says is None or says.model != fingerprint):
        return False
    remove_remains(asked.output)
    asked.journal.unlink(missing_ok=True)
    return True


@dataclass(frozen=True)
class _Asked:
    """The arguments of `quantize`, read; `recipe` stands for none where one is to be looked for."""

    source: Path
    output: Path
    recipe: Recipe
    automatic: bool
    max_kl: float | None
    tokenizer: Tokenizer | None
    calibration: list[list[int]]

    @classmethod
    def of(
        cls,
        model: str | Path,
        output: str | Path,
        recipe: str | Recipe,
        calibration: str | Path,
        max_kl: float | None,
    ) -> "_Asked":
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
        return cls(source, Path(output), chosen, automatic, max_kl, tokenizer, ids)

    @property
    def words(self) -> str:
        """The recipe, or how it is to be found."""
        return f"auto, max_kl {self.max_kl}" if self.automatic else self.recipe.model_dump_json()

    @property
    def journal(self) -> Path:
        """Where a search of recipes keeps what it has measured."""
        place = self.output.resolve()
        return place.with_name(f".{place.name[:64]}.search.json")

    def is_recipe(self, recipe: Recipe) -> bool:
        """Whether the recipe of `output` is the one asked for, or was found as it is to be found."""
        if not self.automatic:
            return recipe == self.recipe
        try:
            return bool(read_object(self.output, search.SEARCH_FILE)["max_kl"] == self.max_kl)
        except (CheckpointError, KeyError):
            return False


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
