"""Evaluates a directory against its float source, in one pass over the layers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..checkpoint.files import read_object
from ..checkpoint.model_config import ModelConfig
from ..checkpoint.stamp import stamp
from ..errors import CheckpointError, UsageError
from ..formats.base import Source
from ..kernels.backend import Backend, backend_for
from ..kernels.device import Device
from ..kernels.isa import selected_isa
from ..kernels.parallel import one_torch_thread
from ..kernels.scheme import MAP_BLOCK
from ..model.inspection import inspect
from ..model.load import Model, load, load_float
from ..quantization.calibration import fingerprint as fingerprint_of_ids
from ..text.tokenizer import Tokenizer
from .divergence import WINDOW, Divergence, cut, variants
from .kept import Kept, kept_beside, packed, unpacked
from .needle import needle_result, needle_windows
from .noise import NoiseMeter
from .positions import float_drift, long_result, long_windows, offset_windows, offsets_result
from .report import Report
from .scores import Heads, Scores, score
from .streaming import Progress, Streams, Window, run
from .tasks.compare import Tasks, check_tasks, compare_tasks

MAY_DIFFER = ("tie_word_embeddings", "dtype", "eos_token_ids", "bos_token_id")
SEARCH_FILE = "faquant_search.json"
"""The results of a recipe search, in the directory."""
FLOAT = "float"


@dataclass(frozen=True)
class Effort:
    """How much to measure, in tokens; 0 omits a part.

    Attributes:
        window: maximum length of a window.
        text: of each text; None: all of it.
        noise: of each text's first window, for measurements by layer; at most MAP_BLOCK.
        offset: of the text that is measured at several positions.
        long: maximum length of the long context.
        needle, trials: longest haystack, and number of needles per length.
    """

    window: int = WINDOW
    text: int | None = None
    noise: int = MAP_BLOCK
    offset: int = 512
    long: int = 8192
    needle: int = 4096
    trials: int = 2


FULL = Effort()
QUICK = Effort(window=256, text=1024, noise=256, offset=256, long=0, needle=1024, trials=1)
"""Takes about as long as quantizing."""


def evaluate(
    directory: Path,
    against: Path,
    texts: Mapping[str, str],
    effort: Effort = FULL,
    progress: Progress = lambda done, total: None,
    device: Device = "cpu",
    tasks: Tasks | None = None,
    task_progress: Progress = lambda done, total: None,
) -> Report:
    """Measure the quantized `directory` against the float directory `against`.

    One layer of each is in memory at a time, with the residual streams of all windows. Partial results are saved next
    to `directory` from time to time, so that an interrupted evaluation can resume.

    Args:
        texts: name → text; each is split into windows.
        progress: called with (steps done, total steps); steps are layers, and windows that the head scores.
        device: which cache and kernels to measure. The figures differ by the rounding of float attention only.
        tasks: to run with both models first; each is then in memory as a whole. They are not saved.
        task_progress: called with (models that have finished the tasks, 2).

    Raises:
        UsageError: the directories do not belong together, there is nothing to measure, or a task cannot be run.
        CheckpointError, UnsupportedError: one of them cannot be loaded.
    """
    if tasks is not None:
        check_tasks(against, tasks, texts, device)
    tokenizer = Tokenizer.from_directory(against)  # before the weights, which take long
    backend = backend_for(device)
    on_cpu = load(directory, lazy=True), load_float(against, lazy=True)
    model, source = load(directory, lazy=True, backend=backend), load_float(against, lazy=True, backend=backend)
    fingerprint = check_pair(directory, against, model, source)
    if not texts:
        raise UsageError("There is no text to measure on.")
    ids_of = partial(encode, tokenizer, source.config, against)
    ids = {name: ids_of(text) for name, text in texts.items()}
    models = {FLOAT: source, **variants(model, source, on_cpu)}
    if len(models) == 1:
        raise UsageError(f"Nothing in {directory} is quantized, so there is nothing to measure.")
    of_tasks = [] if tasks is None else compare_tasks(directory, against, tasks, texts, device, task_progress)
    whole = "both" if "both" in models else list(models)[-1]
    moved = frozenset({FLOAT, whole} | (models.keys() & {"attention"}))
    context = min(model.max_position, source.max_position)
    filler = [token for some in ids.values() for token in some]
    moved_text = max(ids, key=lambda name: len(ids[name]))

    windows: list[Window] = []

    def planned(some: list[Window]) -> slice:
        windows.extend(some)
        return slice(len(windows) - len(some), len(windows))

    window = min(effort.window, context)
    parts = {name: planned(cut(some[: effort.text], window, context)) for name, some in ids.items()}
    offsets = planned(offset_windows(ids[moved_text][: effort.offset], context, moved))
    long = planned(long_windows(filler[: min(effort.long, context)], moved))
    haystacks = needle_windows(ids_of, filler, min(effort.needle, context), effort.trials, frozenset({FLOAT, whole}))
    needles = planned(haystacks)

    looked_at = [part.start for part in parts.values()] if effort.noise else []
    meter = NoiseMeter(models, FLOAT, windows, looked_at, effort.noise)
    identity = _identity(directory, fingerprint, list(ids), windows, effort, backend)
    with kept_beside(directory, identity) as kept:
        found = _measured(models, windows, meter, offsets, kept, progress)
    scores = found.scores
    results = {
        name: {variant: Divergence.of([scored[variant] for scored in scores[part]]) for variant in scores[part.start]}
        for name, part in parts.items()
    }
    return Report(
        inspection=inspect(directory),
        source=inspect(against),
        model_fingerprint=fingerprint,
        window=window,
        texts=results,
        offsets=offsets_result(moved_text, windows[offsets], scores[offsets], found.drift),
        long=long_result(windows[long], scores[long]),
        layers=meter.layers if looked_at else [],
        lm_head=found.head_noise,
        outliers=meter.channels.largest(),
        needle=needle_result(windows[needles], scores[needles], effort.trials, whole),
        search=read_object(directory, SEARCH_FILE) if (directory / SEARCH_FILE).is_file() else None,
        tasks=of_tasks,
    )


@dataclass(frozen=True)
class _Measurements:
    """Scores by window and variant, KL of the float model between offsets, and the head's signal-to-noise ratio in
    dB."""

    scores: list[dict[str, Scores]]
    drift: list[float]
    head_noise: float | None


@one_torch_thread()
def _measured(
    models: dict[str, Model],
    windows: Sequence[Window],
    meter: NoiseMeter,
    offsets: slice,
    kept: Kept,
    progress: Progress,
) -> _Measurements:
    """The long computations. Saved parts are not repeated; the results are the same."""
    layers = models[FLOAT].config.num_layers
    steps = layers + len(windows)
    saved = kept.load("scores")
    scored = 0 if saved is None else int(saved["place"][0])
    streams = _streams(models, windows, meter, kept, lambda done, _: progress(done + scored, steps))
    heads = Heads(models)
    scores = score(
        heads,
        FLOAT,
        windows,
        streams,
        lambda done: progress(layers + done, steps),
        saved,
        partial(kept.save, "scores"),
    )
    drift = float_drift(heads, FLOAT, streams[FLOAT][offsets], kept.keep)
    return _Measurements(scores, drift, meter.head(heads, streams, keep=kept.keep))


def _streams(
    models: Mapping[str, Model], windows: Sequence[Window], meter: NoiseMeter, kept: Kept, progress: Progress
) -> Streams:
    """The streams after the last layer; every layer is measured."""

    def save(done: int, streams: Streams) -> None:
        kept.save("layers", lambda: packed(done, streams, meter.state()))

    begin, piece = None, kept.load("layers")
    if piece is not None:
        done, streams, state = unpacked(piece)
        meter.restore(state)
        begin = done, streams
    return run(models, windows, meter.look, progress, begin, save)


def _identity(
    directory: Path,
    fingerprint: str,
    names: list[str],
    windows: Sequence[Window],
    effort: Effort,
    backend: Backend,
) -> dict[str, str]:
    """Everything that the results depend on."""
    return {
        "directory": json.dumps(stamp(directory)),
        "model": fingerprint,
        "texts": json.dumps([names, fingerprint_of_ids([window.tokens.tolist() for window in windows])]),
        "windows": json.dumps([_placed(window) for window in windows]),
        "effort": repr(effort),
        "program": f"faquant {version('faquant')}, torch {version('torch')}, {selected_isa()}",
        "backend": type(backend).__name__,
    }


def _placed(window: Window) -> list[Any]:
    """All of a window except its tokens."""
    models = None if window.models is None else sorted(window.models)
    return [window.position, window.last, models, window.rope_length]


def check_pair(directory: Path, against: Path, model: Model, source: Model) -> str:
    """Check that the directories belong together; return the fingerprint of the float model."""
    if model.is_float:
        raise UsageError(f"{directory} is a float model. Pass a quantized directory, and its source with --against.")
    fingerprint = Source.of(against).open_files().fingerprint()
    if model.metadata is not None and model.metadata.model not in (None, fingerprint):
        raise UsageError(f"{directory} was not made from {against}: the weights differ. Pass the right float model.")
    for field in fields(ModelConfig):
        mine, theirs = getattr(model.config, field.name), getattr(source.config, field.name)
        if mine != theirs and field.name not in MAY_DIFFER:
            raise UsageError(
                f"{directory} was not made from {against}: {field.name} is {mine} in the one and {theirs} in the other."
            )
    return fingerprint


def encode(tokenizer: Tokenizer, config: ModelConfig, against: Path, text: str) -> list[int]:
    """The text's token ids. Raises: CheckpointError: the tokenizer does not fit the model."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if ids and max(ids) >= config.vocab_size:
        raise CheckpointError(
            f"The tokenizer of {against} produces id {max(ids)}, but the model's vocabulary has {config.vocab_size} "
            "entries. Its files do not belong together."
        )
    return ids
