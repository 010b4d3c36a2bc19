"""Locates the error: the signal-to-noise ratio of each step of a layer on its own, in dB, and outlier channels.

Every step gets the float model's input, so that its noise does not include that of earlier steps:

- q, k: after centering, equalizing and rotating, as they are quantized. v: in its original basis.
- p: the attention's output through the cache, against float attention over the dequantized q, k and v from the cache.
  The remaining error is the rounding of P.
- linears: the quantized linear on the exact input, against the float linear's output. The input passes the quantized
  model's norm, which includes the equalizer; the float side is rotated by R1 and R2, which preserves energies.
  up_proj's outputs are divided by down_proj's equalizer, which the checkpoint does not store: it is estimated from the
  two outputs, as a factor per channel, so such a factor is not counted as noise.
- stream: the residual stream of the quantized model, which includes the noise of all earlier layers. Each token is
  weighted by its own energy: otherwise a token with enormous activations, as there often is, would dominate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.model_config import LINEARS
from ..checkpoint.pieces import Keep, Tensors, keep_nothing
from ..kernels import quantizers
from ..kernels.backend import Linear
from ..kernels.pages import Spans
from ..kernels.quantizers import hadamard
from ..kernels.torch_backend import float_attend
from ..model.decoder import DecoderLayer, Tables
from ..model.load import Model
from ..model.paged import PAGE_SIZE
from ..quantization.rotate import rotate_residual
from .outliers import MEAN_OF_K, Channels
from .scores import Heads
from .streaming import Layers, Streams, Window

_RATIOS = ("q", "k", "v", "p", "stream")
_KINDS = tuple(name.rpartition(".")[2] for name in LINEARS)


@dataclass
class Ratio:
    """Energies of a signal and of its noise, summed over tokens."""

    signal: Tensor | float = 0.0
    noise: Tensor | float = 0.0

    def add(self, wanted: Tensor, got: Tensor, by_head: bool = False) -> None:
        """Add [tokens, …]; `by_head`: [tokens, heads, D], separately for each head."""
        axes = (0, 2) if by_head else tuple(range(wanted.ndim))
        self.signal = self.signal + wanted.double().square().sum(axes)
        self.noise = self.noise + (got.double() - wanted.double()).square().sum(axes)

    def add_by_token(self, wanted: Tensor, got: Tensor) -> None:
        """Add [tokens, n] with equal weight for every token, whatever its magnitude, as the next norm sees them."""
        energies = wanted.double().square().sum(-1)
        errors = (got.double() - wanted.double()).square().sum(-1)
        self.signal = self.signal + torch.tensor(float(len(wanted)), dtype=torch.float64)
        self.noise = self.noise + (errors / energies.clamp_min(1e-300)).sum()

    def state(self) -> list[Any] | None:
        """As JSON values; None if nothing was added."""
        if not (isinstance(self.signal, Tensor) and isinstance(self.noise, Tensor)):
            return None
        return [self.signal.tolist(), self.noise.tolist()]

    @classmethod
    def of(cls, state: list[Any] | None) -> "Ratio":
        """Restore from the result of `state`."""
        return cls() if state is None else cls(*(torch.tensor(value, dtype=torch.float64) for value in state))

    def decibels(self) -> list[float | None]:
        """One value per head, or one in total; None if there is no noise or no signal."""
        ratio = 10 * torch.log10(torch.as_tensor(self.signal) / torch.as_tensor(self.noise))
        return [value if abs(value) < float("inf") else None for value in ratio.flatten().tolist()]


@dataclass
class LayerNoise:
    """Signal-to-noise ratios of one layer in dB; clipped: shares of values beyond calibrated scales."""

    q: Ratio = field(default_factory=Ratio)
    k: Ratio = field(default_factory=Ratio)
    v: Ratio = field(default_factory=Ratio)
    p: Ratio = field(default_factory=Ratio)
    linears: dict[str, Ratio | None] = field(default_factory=dict)
    stream: Ratio = field(default_factory=Ratio)
    clipped: dict[str, float] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """The sums, as JSON values."""
        linears = {name: None if ratio is None else ratio.state() for name, ratio in self.linears.items()}
        return {name: getattr(self, name).state() for name in _RATIOS} | {"linears": linears, "clipped": self.clipped}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "LayerNoise":
        """Restore from the result of `state`."""
        linears = {name: None if counted is None else Ratio.of(counted) for name, counted in state["linears"].items()}
        ratios = {name: Ratio.of(state[name]) for name in _RATIOS}
        return cls(**ratios, linears=linears, clipped=state["clipped"])

    def to_json(self) -> dict[str, Any]:
        """As JSON values; a linear that stayed float is null."""
        parts = {name: getattr(self, name).decibels() for name in ("q", "k", "v", "p") if self._has(name)}
        linears = {name: None if ratio is None else ratio.decibels()[0] for name, ratio in self.linears.items()}
        return {**parts, "linears": linears, "stream": self.stream.decibels()[0], "clipped": self.clipped}

    def _has(self, name: str) -> bool:
        return isinstance(getattr(self, name).signal, Tensor)


class _Tap:
    """A linear that records its input and output."""

    is_int8 = False

    def __init__(self, linear: Linear) -> None:
        self.linear = linear
        self.x = self.y = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        self.x, y = x, self.linear(x)
        self.y = y.clone()  # RoPE overwrites its argument
        return y

    @property
    def nbytes(self) -> int:
        return self.linear.nbytes


@dataclass
class _LayerTrace:
    """A float layer's run on one window: q, k, v after RoPE, its linears' inputs and outputs, and the residual stream
    after attention."""

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    linears: dict[str, _Tap]
    k_before_rope: Tensor
    after_attention: Tensor

    def channels(self) -> dict[str, Tensor]:
        """Tensors that may have outliers, [tokens, channels] or [tokens, heads, D]."""
        inputs = {f"{name} input": self.linears[name].x for name in ("q_proj", "o_proj", "gate_proj", "down_proj")}
        return {"k": self.k, MEAN_OF_K: self.k_before_rope, "v": self.v, "stream": self.x, **inputs}


class NoiseMeter:
    """Measures every layer of a streaming pass, on the first `tokens` tokens of some of its windows.

    Args:
        models: the float model as `source`, and the existing variants of attention, linears and both.
        numbers: of the windows; each is at position 0, and at most one block of K's maps long.
    """

    def __init__(
        self, models: dict[str, Model], source: str, windows: Sequence[Window], numbers: Sequence[int], tokens: int
    ) -> None:
        self.models = models
        self.source = source
        self.whole = "both" if "both" in models else next(name for name in models if name != source)
        self.tables = {number: windows[number].batch(models[source]).tables for number in numbers}
        self.tokens = tokens
        self.layers: list[LayerNoise] = []
        self.channels = Channels()

    def look(self, step: Layers) -> None:
        """Measure a layer that has run."""
        layer, quantized = step.layers[self.source], step.layers.get("linears")
        noise = LayerNoise(clipped=step.saturation[self.whole].shares())
        for number, (cos, sin) in self.tables.items():
            x = step.before[self.source][number][: self.tokens]
            seen = _observe(layer, x, (cos[: self.tokens], sin[: self.tokens]), self._sliding(step.index))
            self.channels.add(step.index, seen.channels())
            if "attention" in self.models:
                self._attention(noise, step.index, seen)
            if quantized is not None:
                self._linears(noise, quantized, seen)
            noise.stream.add_by_token(self._rotated(step.after[self.source][number]), step.after[self.whole][number])
        self.layers.append(noise)

    def state(self) -> dict[str, Any]:
        """The measurements of the layers so far, as JSON values."""
        return {"layers": [layer.state() for layer in self.layers], "channels": self.channels.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore from the result of `state`."""
        self.layers = [LayerNoise.of(layer) for layer in state["layers"]]
        self.channels.restore(state["channels"])

    def _sliding(self, layer: int) -> int | None:
        return self.models[self.source].config.sliding_windows[layer]

    def _attention(self, noise: LayerNoise, layer: int, seen: _LayerTrace) -> None:
        tables = self.models["attention"].schemes[layer]
        if tables is None:
            return
        scheme, count = tables.at(0), len(seen.q)
        pages = self.models["attention"].make_layer_pages(layer, -(-count // PAGE_SIZE), PAGE_SIZE)
        slots = np.arange(count)
        pages.append(seen.k, seen.v, slots, slots)
        table = np.arange(pages.num_pages)
        k, v = (torch.as_tensor(x) for x in pages.read(table, count))
        q = quantizers.dequantize_q(*quantizers.quantize_q(seen.q, scheme), scheme)
        noise.q.add(quantizers.map_q(seen.q, scheme), q, by_head=True)
        noise.k.add(quantizers.map_k(seen.k, scheme), quantizers.map_k(k, scheme), by_head=True)
        noise.v.add(seen.v, v, by_head=True)
        exact = float_attend(quantizers.unmap_q(q, scheme), k, v, 0, self._sliding(layer))
        noise.p.add(exact, pages.attend(seen.q, Spans.of([(count, 0, table)]), self._sliding(layer)), by_head=True)

    def _linears(self, noise: LayerNoise, layer: DecoderLayer, seen: _LayerTrace) -> None:
        metadata = self.models["linears"].metadata
        block = metadata.v_block if metadata is not None and metadata.v_folded else 0

        def by_head(x: Tensor) -> Tensor:
            return hadamard(x.view(len(x), -1, layer.head_dim), block).flatten(1) if block else x

        taps = seen.linears
        h = layer.attention_norm(self._rotated(seen.x))
        self._linear(noise, layer, "q_proj", h, taps["q_proj"].y)
        self._linear(noise, layer, "k_proj", h, taps["k_proj"].y)
        if "attention" in self.models or "both" not in self.models:
            self._linear(noise, layer, "v_proj", h, by_head(taps["v_proj"].y))
            self._linear(noise, layer, "o_proj", by_head(taps["o_proj"].x), self._rotated(taps["o_proj"].y))
        else:
            # Unknown transforms are folded into both (see divergence.variants).
            noise.linears["v_proj"] = noise.linears["o_proj"] = None
        h = layer.mlp_norm(self._rotated(seen.after_attention))
        self._linear(noise, layer, "gate_proj", h, taps["gate_proj"].y)
        factor = torch.ones(1)
        if metadata is not None and metadata.linear is not None and metadata.linear.equalize:
            factor = _factors(taps["up_proj"].y, layer.up_proj(h))
        self._linear(noise, layer, "up_proj", h, taps["up_proj"].y, factor)
        self._linear(noise, layer, "down_proj", taps["down_proj"].x / factor, self._rotated(taps["down_proj"].y))

    @staticmethod
    def _linear(
        noise: LayerNoise, layer: DecoderLayer, name: str, x: Tensor, wanted: Tensor, factor: Tensor | None = None
    ) -> None:
        linear: Linear = getattr(layer, name)
        if not linear.is_int8:
            noise.linears[name] = None
            return
        y = linear(x)
        ratio = noise.linears.get(name) or Ratio()
        noise.linears[name] = ratio
        ratio.add(wanted, y if factor is None else y * factor)

    def _rotated(self, x: Tensor) -> Tensor:
        """A float residual stream in the basis of the quantized linears."""
        metadata = self.models[self.whole].metadata
        return rotate_residual(x) if metadata is not None and metadata.residual_rotation else x

    def head(self, heads: Heads, streams: Streams, rows: int = 128, keep: Keep = keep_nothing) -> float | None:
        """Signal-to-noise ratio of the quantized head on the float model's last stream; None if the head is float."""
        if "linears" not in self.models or not self.tables or heads.is_float("linears"):
            return None

        def of(number: int) -> Tensors:
            x, ratio = streams[self.source][number][:rows], Ratio()
            ratio.add(heads.logits(self.source, x), heads.logits("linears", self._rotated(x)))
            return {"signal": torch.as_tensor(ratio.signal), "noise": torch.as_tensor(ratio.noise)}

        whole = Ratio()
        for number in self.tables:
            found = keep(f"head-noise-{number}", partial(of, number))
            whole = Ratio(whole.signal + found["signal"], whole.noise + found["noise"])
        return whole.decibels()[0]


def _observe(layer: DecoderLayer, x: Tensor, tables: Tables, sliding: int | None) -> _LayerTrace:
    taps = {name: _Tap(getattr(layer, name)) for name in _KINDS}
    states: tuple[Tensor, ...] = ()

    def attention(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nonlocal states
        states = q, k, v
        return float_attend(q, k, v, 0, sliding)

    replace(layer, **taps)(x, tables, attention)  # type: ignore[arg-type]
    q, k, v = states
    after_attention = x + layer.attention_output_norm(taps["o_proj"].y)
    return _LayerTrace(x, q, k, v, taps, layer.heads(taps["k_proj"].y, layer.k_norm), after_attention)


def _factors(wanted: Tensor, got: Tensor) -> Tensor:
    """Factors for the channels of `got` [tokens, n]; independent noise in `got` does not bias them."""
    shared = (wanted * got).sum(0)
    return torch.where(shared == 0, 1.0, wanted.square().sum(0) / shared.masked_fill(shared == 0, 1.0))
