"""Times of decode steps: the layers of whole models with synthetic weights, beside the same in bfloat16."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faquant.kernels.backend import NO_NORM
from faquant.kernels.cuda.layers import CudaLayers
from faquant.kernels.cuda.modules import RMSNorm
from faquant.kernels.cuda.pages import Int8Pages
from faquant.kernels.device import interpreted
from faquant.kernels.pages import Spans
from faquant.kernels.scheme import MAP_BLOCK, MAX_INPUT_BLOCK, TILE, AttentionScheme, hadamard_block

from . import bfloat16
from .attention import Heads
from .linears import random_int8_linear
from .results import Results
from .timing import copy_rate, device, fits, reason, synchronize, warming_up

WARM_UP, ROUNDS, STEPS = 2, 5, 8


@dataclass(frozen=True)
class Model:
    """Shapes, and the most layers that are measured."""

    name: str
    hidden: int
    intermediate: int
    heads: Heads
    layers: int

    @property
    def weights(self) -> int:
        """Weights of a layer's linears."""
        count, kv_count, dim = self.heads
        return self.hidden * (2 * (count + kv_count) * dim + 3 * self.intermediate)


LLAMA_8B = Model("8B", 4096, 14336, Heads(32, 8, 128), 32)
LLAMA_70B = Model("70B", 8192, 28672, Heads(64, 8, 128), 12)
TINY = Model("8B", 64, 96, Heads(4, 2, 32), 1)
CONTEXT = 4096
MAPS = 131072 // MAP_BLOCK
"""Of K, for models of 128K positions."""


def int8_layer(model: Model) -> SimpleNamespace:
    """A layer as CudaLayers takes it, with a Hadamard transform before its last linear."""
    (count, kv_count, dim), hidden, intermediate = model.heads, model.hidden, model.intermediate
    norms = [RMSNorm(torch.ones(hidden, device=device()), 1e-5) for _ in range(2)]
    return SimpleNamespace(
        attention_norm=norms[0],
        mlp_norm=norms[1],
        attention_output_norm=NO_NORM,
        mlp_output_norm=NO_NORM,
        q_norm=None,
        k_norm=None,
        norms_all_heads=False,
        is_gelu=False,
        rope_kind=0,
        q_proj=random_int8_linear(hidden, count * dim),
        k_proj=random_int8_linear(hidden, kv_count * dim),
        v_proj=random_int8_linear(hidden, kv_count * dim),
        o_proj=random_int8_linear(count * dim, hidden),
        gate_proj=random_int8_linear(hidden, intermediate),
        up_proj=random_int8_linear(hidden, intermediate),
        down_proj=random_int8_linear(intermediate, hidden, hadamard_block(intermediate, MAX_INPUT_BLOCK)),
    )


def int8_pages(model: Model, pages: int) -> Int8Pages:
    """A cache of random bytes, whose keys are centered, equalized and rotated as the default recipe does."""
    count, kv_count, dim = model.heads
    scheme = AttentionScheme(
        count,
        kv_count,
        dim,
        k_center=torch.randn(MAPS, kv_count, dim),
        k_equalizer=torch.rand(MAPS, kv_count, dim) + 0.5,
        rotation_block=hadamard_block(dim),
    )
    made = Int8Pages(scheme, pages, TILE, device())
    for values in (made.cache.k, made.cache.v):
        values.random_(-127, 128)
    for scales in (made.cache.k_scale, made.cache.v_scale):
        assert scales is not None
        scales.fill_(0.01)
    return made


def rope_tables(rows: int, position: int, dim: int) -> tuple[Any, Any]:
    """cos and sin, float32 [rows, 1, D]."""
    frequencies = 500000.0 ** (-np.arange(0, dim, 2) / dim)
    angles = np.broadcast_to(np.concatenate([position * frequencies] * 2), (rows, 1, dim))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def wall_seconds(step: Callable[[], object]) -> tuple[float, float]:
    """The median time of a step when steps follow each other, and that in which the CPU issues it."""
    warm_up, rounds, steps = (0, 1, 1) if interpreted() or warming_up() else (WARM_UP, ROUNDS, STEPS)
    for _ in range(warm_up):
        step()
    whole, host = [], []
    for _ in range(rounds):
        synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        host.append((time.perf_counter() - begin) / steps)
        synchronize()
        whole.append((time.perf_counter() - begin) / steps)
    return statistics.median(whole), statistics.median(host)


def _time_int8(model: Model, layers: int, batch: int, context: int, x: Tensor) -> tuple[float, float]:
    pages = -(-context // TILE)
    caches = [int8_pages(model, batch * pages) for _ in range(layers)]
    run = CudaLayers([int8_layer(model) for _ in range(layers)], caches, [None] * layers, device())
    order = torch.randperm(batch * pages).view(batch, pages).numpy()
    spans = Spans.of([(1, context - 1, table) for table in order])
    tables = rope_tables(batch, context - 1, model.heads.dim)
    return wall_seconds(lambda: run.run(x, tables, spans))


def _time_bfloat16(model: Model, layers: int, batch: int, context: int, x: Tensor) -> float:
    made = [
        bfloat16.Layer.random(model.hidden, model.intermediate, tuple(model.heads), batch, context, device())
        for _ in range(layers)
    ]
    cos, sin = (torch.from_numpy(table[:, 0]).to(device()) for table in rope_tables(batch, 1, model.heads.dim))
    # Both ways to SDPA; a graph each.
    steps = [bfloat16.Step(made, x.bfloat16(), cos, sin, as_rows) for as_rows in (False, True)]
    return min(wall_seconds(step)[0] for step in steps)


def steps(results: Results, size: str) -> None:
    """Fill the table of decode steps."""
    copy = copy_rate()
    context = CONTEXT
    cases = [(LLAMA_8B, 32), (LLAMA_8B, 1), (LLAMA_70B, 32), (LLAMA_70B, 1)]
    if size == "quick":
        cases = cases[:1]
    if size == "tiny":
        cases, context = [(TINY, 2)], 128
    for model, batch in cases:
        if results.has("step", model=model.name, batch=batch):
            continue
        if results.is_late:
            results.note(f"The time for decode steps ended before {model.name}, batch {batch}.")
            return
        tokens = batch * context
        layers = 1 if warming_up() else model.layers
        while layers and not fits(layers * (2 * model.weights + tokens * model.heads.bfloat16_bytes) * 1.05):
            layers -= 1
        if not layers:
            results.note(f"{model.name}, batch {batch}: not even one layer fits into memory")
            continue
        x = torch.randn(batch, model.hidden, device=device())
        times: dict[str, float | None] = {"ours": None, "host": None, "bf16": None}
        try:
            times["ours"], times["host"] = _time_int8(model, layers, batch, context, x.clone())
        except Exception as error:
            results.note(f"step of {model.name}, batch {batch}: {reason(error)}")
        try:
            times["bf16"] = _time_bfloat16(model, layers, batch, context, x)
        except Exception as error:
            results.note(f"bfloat16 step of {model.name}, batch {batch}: {reason(error)}")
        ours, peer = times["ours"], times["bf16"]
        nbytes = layers * (model.weights + tokens * model.heads.int8_bytes)
        results.row(
            "step",
            model=model.name,
            layers=layers,
            batch=batch,
            context=context,
            **times,
            rate=batch / ours if ours else None,
            share=nbytes / ours / copy if ours else None,
            bf16_rate=batch / peer if peer else None,
            x_bf16=peer / ours if ours and peer else None,
        )
