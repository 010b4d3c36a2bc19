"""Evaluates a directory against its float source as vLLM computes it, with faquant's plugin."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import UsageError
from ..kernels.arrays import Array
from ..model.decoder import Decoder
from ..model.inspection import inspect
from ..model.load import load, load_float
from ..text.tokenizer import Tokenizer
from .divergence import Divergence, cut
from .measure import FLOAT, FULL, Effort, check_pair, encode
from .positions import long_result, long_windows
from .report import Report
from .scores import Heads, score
from .streaming import Progress, Window, run

VLLM = "vLLM"


@dataclass
class _Head:
    """vLLM's head as a Linear, whose memory is vLLM's."""

    logits: Callable[[Array], Array]
    is_int8: bool = True
    nbytes: int = 0

    def __call__(self, x: Array) -> Array:
        return self.logits(x)


@torch.inference_mode()
def evaluate_through_vllm(
    directory: Path,
    against: Path,
    texts: Mapping[str, str],
    effort: Effort = FULL,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Measure the quantized `directory` in vLLM against the float directory `against` in faquant: the texts and the
    long context. Arguments and errors as for measure.evaluate."""
    tokenizer = Tokenizer.from_directory(against)
    model, source = load(directory, lazy=True), load_float(against, lazy=True)
    fingerprint = check_pair(directory, against, model, source)
    if not texts:
        raise UsageError("There is no text to measure on.")
    ids = {name: encode(tokenizer, source.config, against, text) for name, text in texts.items()}
    # vLLM answers each prompt with a token, for which there must be space.
    context = min(model.max_position, source.max_position) - 1
    window = min(effort.window, context)
    parts, windows = {}, list[Window]()
    for name, some in ids.items():
        begin = len(windows)
        windows += cut(some[: effort.text], window, context)
        parts[name] = slice(begin, len(windows))
    filler = [token for some in ids.values() for token in some][: min(effort.long, context)]
    long = slice(len(windows), len(windows) + 1)
    windows += [replace(each, models=None) for each in long_windows(filler, frozenset())]

    layers, count = source.config.num_layers, len(windows)
    total = layers + 2 * count
    from ..vllm.measuring import Prompts

    longest = max(len(each.tokens) for each in windows)
    prompts = Prompts(directory, longest, model.cache_bytes_per_token("auto"))
    hidden = prompts.hidden([each.tokens for each in windows], lambda done: progress(done, total))
    streams = run({FLOAT: source}, windows, progress=lambda done, _: progress(count + done, total))
    streams[VLLM] = hidden
    decoder = Decoder(model.config, source.decoder.embedding, [], lambda x: x, _Head(prompts.logits))
    heads = Heads({FLOAT: source, VLLM: replace(model, decoder=decoder)})
    scores = score(heads, FLOAT, windows, streams, lambda done: progress(count + layers + done, total))
    return Report(
        inspection=inspect(directory),
        source=inspect(against),
        model_fingerprint=fingerprint,
        window=window,
        texts={name: {VLLM: Divergence.of([each[VLLM] for each in scores[part]])} for name, part in parts.items()},
        long=long_result(windows[long], scores[long]),
    )
