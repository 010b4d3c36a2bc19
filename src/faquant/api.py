"""The Python API: functions that do the work of the commands."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from . import search
from .checkpoint.files import read_object
from .checkpoint.model_config import load_config
from .checkpoint.side_files import has_side_file
from .checkpoint.unfinished import remove_remains
from .checkpoint.write import prepared
from .errors import CheckpointError, UsageError
from .evaluation import measure, texts
from .evaluation.report import Report
from .evaluation.tasks.compare import Tasks
from .evaluation.through_vllm import evaluate_through_vllm
from .formats.base import Source
from .formats.gguf.write_tokenizer import tokenizer_metadata, unwritten_ends
from .kernels.device import Device
from .quantization import calibration as calibrating
from .quantization import pipeline, provenance
from .quantization.exports import gguf
from .quantization.recalibrate import recalibrate
from .recipe import AttentionRecipe, Recipe, load_recipe
from .text.tokenizer import Tokenizer

MAX_PROMPT_TOKENS = 2048
SEARCH_TOKENS = 512
"""Tokens of each evaluation text that candidate recipes are measured on."""


def quantize(
    model: str | Path,
    output: str | Path,
    recipe: str | Recipe = "default",
    calibration: str | Path = "builtin",
    *,
    overwrite: bool = False,
    restart: bool = False,
    max_kl: float | None = None,
    for_batch: Sequence[int] = search.BATCHES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    search_progress: search.Progress = lambda what, done, total: None,
    to_be_measured: bool = False,
    keep_kv_tables: bool = False,
    device: Device = "auto",
) -> int:
    """Quantize the Hugging Face directory `model` into the new directory `output`.

    Args:
        recipe: a name (default, precise, static, portable, mindie, mindie-plain, attention-only), a JSON file, a
            Recipe, or `auto`: chosen by measurements on the built-in evaluation texts (search.find).
        calibration: `builtin`, or a .txt or .jsonl file.
        overwrite: replace `output` if it is a model directory.
        restart: discard the work of an interrupted run instead of resuming it.
        max_kl: for `auto`: the cheapest recipe with a mean KL, in nats, within this bound; None: the most accurate
            recipe at full speed.
        for_batch: for `auto`: numbers of rows (sequences decoded together, or tokens of a prompt) at which linears are
            timed if some must be better than int8.
        progress: called with (steps done, total steps).
        search_progress: called with (what is tried, steps done, total steps).
        to_be_measured: write a note next to `output` by which `is_quantized` recognizes it, until provenance.forget
            removes it.
        keep_kv_tables: if another tool has written tables of K and V beside float linears, use them, and not the
            recipe's attention.
        device: `cpu`, `cuda`, or `auto`: runs the float layers. The result is the same. A search runs on the CPU.

    Returns:
        The number of calibration tokens.

    Raises:
        UsageError: the recipe or the calibration is invalid.
        CheckpointError, UnsupportedError: the model cannot be read, or the recipe does not support it.
        OutputError: `output` exists or cannot be written, or contains the work of another interrupted run.
    """
    arguments = _QuantizeArguments.of(model, output, recipe, calibration, max_kl, for_batch, keep_kv_tables)
    source, chosen, ids = arguments.source, arguments.recipe, arguments.calibration
    notes, journal = {}, None
    if arguments.automatic:
        if device == "cuda":
            raise UsageError("A search measures its candidates on the CPU only; use the device cpu.")
        if arguments.tokenizer is None:
            raise UsageError(f"{source} has no tokenizer.json, which is needed to measure recipes on texts.")
        held_out = [
            arguments.tokenizer.encode(text, add_special_tokens=False)[:SEARCH_TOKENS]
            for text in texts.builtin_texts().values()
        ]
        prepared(arguments.output, overwrite, keep=source)  # report an unusable output before the long work
        journal = arguments.journal
        if restart:
            journal.unlink(missing_ok=True)
        found = search.find(source, ids, held_out, max_kl, search_progress, journal, for_batch)
        chosen, notes = found.recipe, {search.SEARCH_FILE: found.to_json()}
    pipeline.quantize(
        source,
        arguments.output,
        chosen,
        ids,
        overwrite=overwrite,
        restart=restart,
        progress=progress,
        notes=notes,
        requested=arguments.recipe_words if to_be_measured else None,
        keep_kv_tables=keep_kv_tables,
        device=device,
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
    for_batch: Sequence[int] = search.BATCHES,
    keep_kv_tables: bool = False,
) -> bool:
    """Whether `output` is already what `quantize` would write, so that only the measurement remains. If so, the
    leftovers of an interrupted run are removed.

    Args:
        overwrite: accept only the output of a call of `quantize` with `to_be_measured`; by default also a checkpoint
            whose metadata has the same model, calibration and recipe.

    Raises:
        As quantize, for invalid models, recipes and calibrations.
    """
    arguments = _QuantizeArguments.of(model, output, recipe, calibration, max_kl, for_batch, keep_kv_tables)
    if not (arguments.output / "config.json").is_file():
        return False
    ids = calibrating.fingerprint(arguments.calibration)
    described = None if overwrite else provenance.described(arguments.output)
    if described is not None:
        same = described.recipe is not None and arguments.is_recipe(described.recipe)
        same = same and (described.imported is not None) == keep_kv_tables
        described = described if same and described.calibration == ids else None
    if described is None and not provenance.has_note(arguments.output):
        return False  # before all weights are read
    fingerprint = Source.of(arguments.source).open_files().fingerprint()
    noted = provenance.is_noted(arguments.output, provenance.request(fingerprint, ids, arguments.recipe_words))
    if not noted and (described is None or described.model != fingerprint):
        return False
    remove_remains(arguments.output)
    arguments.journal.unlink(missing_ok=True)
    return True


def calibrate(
    directory: str | Path,
    output: str | Path,
    kv_scale: Literal["token", "channel", "head"] = "token",
    calibration: str | Path = "builtin",
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the checkpoint `directory`, of any supported format, to `output` in faquant's format, with new tables of q,
    K and V; the linears stay as they are.

    Args:
        kv_scale: one scale of K and V per token and head, or calibrated ones per channel or per head.
        calibration: `builtin`, or a .txt or .jsonl file.
        overwrite: replace `output` if it is a model directory.
        progress: called with (layers done, all layers).

    Returns:
        The number of calibration tokens.

    Raises:
        UsageError: the calibration is invalid.
        CheckpointError, UnsupportedError: the checkpoint cannot be read.
        OutputError: `output` exists or cannot be written.
    """
    source = Path(directory)
    _, ids = _calibration_of(source, calibration)
    recipe = AttentionRecipe(kv_scale=kv_scale)
    recalibrate(source, Path(output), recipe, ids, overwrite=overwrite, progress=progress)
    return sum(map(len, ids))


def export_gguf(directory: str | Path, output: str | Path, *, overwrite: bool = False) -> list[str]:
    """Write the quantized `directory` as the GGUF file `output` for llama.cpp: Q8_0, tokenizer and chat templates.

    Returns:
        What the file leaves out, or computes in another way, as sentences.

    Raises:
        UsageError: the directory is a float model.
        CheckpointError: the directory cannot be read.
        UnsupportedError: llama.cpp does not compute what the checkpoint does, or has no name for its tokenizer.
        OutputError: `output` exists or cannot be written; nothing is left behind.
    """
    source = Path(directory)
    config, tokenizer = load_config(source), Tokenizer.from_directory(source)
    size = config.vocab_size
    ends = [index for index in tokenizer.eos_token_ids if index < size]
    metadata = tokenizer_metadata(
        tokenizer.to_json(size),
        size,
        tokenizer.bos_token_id,
        ends,
        tokenizer.chat_templates,
        str(source),
    )
    notes = gguf.export_gguf(source, Path(output), metadata, overwrite)
    if left := unwritten_ends(metadata, ends):
        notes.append(
            f"GGUF files have no keys for these tokens, which end an answer too: {', '.join(left)}. llama.cpp stops "
            "there only if it knows them by name."
        )
    return notes


def _calibration_of(source: Path, calibration: str | Path) -> tuple[Tokenizer | None, list[list[int]]]:
    """The tokenizer of a model, if it has one, and the token ids of each calibration prompt."""
    config = load_config(source)
    builtin = str(calibration) == "builtin"
    records = calibrating.builtin_records() if builtin else calibrating.read_records(Path(calibration))
    tokenizer = Tokenizer.from_directory(source) if has_side_file(source, "tokenizer.json") else None
    limit = min(MAX_PROMPT_TOKENS, config.max_position)
    return tokenizer, calibrating.tokenize_records(records, tokenizer, config.vocab_size, limit, config.max_position)


@dataclass(frozen=True)
class _QuantizeArguments:
    """The parsed arguments of `quantize`; `recipe` is unused if `automatic`."""

    source: Path
    output: Path
    recipe: Recipe
    automatic: bool
    max_kl: float | None
    for_batch: tuple[int, ...]
    tokenizer: Tokenizer | None
    calibration: list[list[int]]
    keep_kv_tables: bool

    @classmethod
    def of(
        cls,
        model: str | Path,
        output: str | Path,
        recipe: str | Recipe,
        calibration: str | Path,
        max_kl: float | None,
        for_batch: Sequence[int],
        keep_kv_tables: bool = False,
    ) -> "_QuantizeArguments":
        source = Path(model)
        automatic = recipe == "auto"
        if max_kl is not None and not automatic:
            raise UsageError("A bound on KL needs the recipe 'auto', which searches for a recipe within it.")
        chosen = recipe if isinstance(recipe, Recipe) else load_recipe("default" if automatic else recipe)
        if keep_kv_tables:
            if automatic or chosen.linear is None or chosen.format == "msmodelslim":
                raise UsageError(
                    "To keep tables of K and V, choose a recipe of faquant's format that quantizes linears."
                )
            chosen = chosen.model_copy(update={"attention": None})
        tokenizer, ids = _calibration_of(source, calibration)
        batches = tuple(sorted(set(for_batch)))
        return cls(source, Path(output), chosen, automatic, max_kl, batches, tokenizer, ids, keep_kv_tables)

    @property
    def recipe_words(self) -> str:
        """The recipe, or how to find it."""
        kept = ", with the tables of MODEL" if self.keep_kv_tables else ""
        if self.automatic:
            return f"auto, max_kl {self.max_kl}, for batches {self.for_batch}"
        return self.recipe.model_dump_json() + kept

    @property
    def journal(self) -> Path:
        """The journal of the search."""
        place = self.output.resolve()
        return place.with_name(f".{place.name[:64]}.search.json")

    def is_recipe(self, recipe: Recipe) -> bool:
        """Whether `output` has the requested recipe, or one that the requested search has found."""
        if not self.automatic:
            return recipe == self.recipe
        try:
            found = read_object(self.output, search.SEARCH_FILE)
            return bool(found["max_kl"] == self.max_kl and found["batches"] == list(self.for_batch))
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
    device: Device = "auto",
    engine: Literal["faquant", "vllm"] = "faquant",
    tasks: Tasks | None = None,
    task_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Measure the loss of the quantized model in `directory` against its float source.

    Args:
        text: name → text to measure on; None: the built-in texts.
        max_tokens: limit on the tokens of each text.
        progress: called with (steps done, total steps).
        quick: measure less, in about the time that quantizing takes.
        device: `cpu`, `cuda`, or `auto`: which cache and kernels to measure.
        engine: `vllm`: what vLLM computes with faquant's plugin, for the texts and the long context only. vLLM chooses
            the device, and runs once in a process.
        tasks: to run with both models first; each model is then in memory as a whole.
        task_progress: called with (models that have finished the tasks, 2).

    Raises:
        UsageError: the directories do not belong together, there is nothing to measure, a task cannot be run, or vLLM
            is not there.
        CheckpointError, UnsupportedError: one of them cannot be loaded.
    """
    chosen = texts.builtin_texts() if text is None else text
    effort = measure.QUICK if quick else measure.FULL
    if max_tokens is not None:
        effort = replace(effort, text=max_tokens)
    if engine == "vllm":
        if tasks is not None:
            raise UsageError("Tasks run through faquant's engine only.")
        return evaluate_through_vllm(Path(directory), Path(against), chosen, effort, progress)
    return measure.evaluate(Path(directory), Path(against), chosen, effort, progress, device, tasks, task_progress)
