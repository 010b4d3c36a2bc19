"""The decoder of all families: norms, projections, RoPE, gated MLP.

A backend makes its parts and chooses the array library. The caller supplies the attention: cache pages when serving,
observers when calibrating.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from ..checkpoint.model_config import LINEARS, ModelConfig
from ..kernels.arrays import Array, Integers, widen
from ..kernels.backend import Backend, Embedding, Linear, Norm
from .lazy import LazyEmbedding, LazyLinear, LazySequence

Attention = Callable[[int, Array, Array, Array], Array]
"""(layer, q [tokens, Hq, D], k, v [tokens, Hkv, D]) → [tokens, Hq, D]; q and k after RoPE."""

Tables = tuple[Array, Array]
"""Cosine and sine of the tokens' positions, float32 [tokens, kinds of RoPE, D] each."""


@dataclass
class DecoderLayer:
    """One transformer block. Attributes have the names of the checkpoint's modules.

    Attributes:
        rope_kind: the number of its RoPE among the tables of all kinds.
    """

    index: int
    head_dim: int
    rope_kind: int
    input_layernorm: Norm
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    post_attention_layernorm: Norm
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    rope: Callable[[Array, Array, Array], Array]
    silu_times: Callable[[Array, Array], Array]

    def __call__(self, x: Array, tables: Tables, attention: Attention) -> Array:
        """The residual stream x [tokens, hidden] after this block."""
        h = self.input_layernorm(x)
        shape = (x.shape[0], -1, self.head_dim)
        q, k, v = self.q_proj(h).reshape(shape), self.k_proj(h).reshape(shape), self.v_proj(h).reshape(shape)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = (table[:, self.rope_kind : self.rope_kind + 1] for table in tables)
        q, k = self.rope(q, cos, sin), self.rope(k, cos, sin)
        x = x + self.o_proj(attention(self.index, q, k, v).reshape(x.shape[0], -1))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(self.silu_times(self.gate_proj(h), self.up_proj(h)))

    @property
    def linears(self) -> list[Linear]:
        """In LINEARS' order."""
        return [getattr(self, name.rpartition(".")[2]) for name in LINEARS]

    @property
    def is_int8(self) -> bool:
        """Whether all linears are int8."""
        return all(linear.is_int8 for linear in self.linears)


@dataclass
class Decoder:
    """The whole model between token ids and logits."""

    config: ModelConfig
    embedding: Embedding
    layers: Sequence[DecoderLayer]
    norm: Norm
    lm_head: Linear

    def embed(self, tokens: Integers) -> Array:
        """The residual stream [tokens, hidden] that enters the first block, for int64 ids [tokens]."""
        return self.embedding[tokens]

    def hidden(self, tokens: Integers, tables: Tables, attention: Attention) -> Array:
        """The residual stream after the last block and norm: [tokens, hidden], for int64 ids [tokens]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, tables, attention)
        return self.norm(x)

    def logits(self, hidden: Array) -> Array:
        """Logits [tokens, vocab] of what `hidden` returned."""
        return self.lm_head(hidden)


def build_layer(
    config: ModelConfig,
    index: int,
    backend: Backend,
    tensor: Callable[[str], Array],
    linear: Callable[[str], Linear],
    has: Callable[[str], bool],
) -> DecoderLayer:
    """Build one layer from parts by their checkpoint names. Arguments as for build_decoder."""
    prefix = f"model.layers.{index}."

    def norm(name: str) -> Norm:
        return build_norm(prefix + name, config, backend, tensor, has)

    return DecoderLayer(
        index=index,
        head_dim=config.head_dim,
        rope_kind=config.rope_kind(index),
        input_layernorm=norm("input_layernorm"),
        q_norm=norm("self_attn.q_norm") if config.qk_norm else None,
        k_norm=norm("self_attn.k_norm") if config.qk_norm else None,
        post_attention_layernorm=norm("post_attention_layernorm"),
        rope=backend.rope,
        silu_times=backend.silu_times,
        **{name.rpartition(".")[2]: linear(prefix + name) for name in LINEARS},
    )


def build_norm(
    name: str, config: ModelConfig, backend: Backend, tensor: Callable[[str], Array], has: Callable[[str], bool]
) -> Norm:
    """Build the norm with this checkpoint name. The last one also divides for the logits."""
    weight = tensor(f"{name}.weight")
    bias = tensor(f"{name}.bias") if has(f"{name}.bias") else None
    if name == "model.norm" and config.logits_scaling != 1.0:
        weight, bias = (
            None if part is None else widen(part) / np.float32(config.logits_scaling) for part in (weight, bias)
        )
    return backend.norm(weight, config.rms_norm_eps, bias)


class ScaledEmbedding:
    """An embedding whose rows are multiplied by a factor in float32."""

    def __init__(self, rows: Embedding, factor: float) -> None:
        self.rows, self.factor = rows, factor

    def __getitem__(self, tokens: Integers) -> Array:
        return self.rows[tokens] * self.factor


def build_embedding(config: ModelConfig, backend: Backend, tensor: Callable[[str], Array]) -> Embedding:
    """Build the embedding that enters the first layer."""
    rows = backend.embedding(tensor("model.embed_tokens.weight"))
    return rows if config.embedding_multiplier == 1.0 else ScaledEmbedding(rows, config.embedding_multiplier)


def build_decoder(
    config: ModelConfig,
    backend: Backend,
    tensor: Callable[[str], Array],
    linear: Callable[[str], Linear],
    has: Callable[[str], bool],
    lazy: bool = False,
) -> Decoder:
    """Build a decoder from parts by their checkpoint names.

    Args:
        tensor: returns a tensor such as `model.norm.weight`, as stored.
        linear: returns a linear such as `model.layers.0.mlp.down_proj`, or `lm_head`.
        has: whether there is a tensor with this name.
        lazy: read embedding, layers and head on each use, and do not keep them.
    """

    def layer(index: int) -> DecoderLayer:
        return build_layer(config, index, backend, tensor, linear, has)

    def embedding() -> Embedding:
        return build_embedding(config, backend, tensor)

    head: Linear
    if lazy:
        head = LazyLinear(lambda: linear("lm_head"))
    else:
        head = linear("lm_head")
    return Decoder(
        config=config,
        embedding=cast(Embedding, LazyEmbedding(embedding)) if lazy else embedding(),
        layers=LazySequence(layer, config.num_layers) if lazy else [layer(i) for i in range(config.num_layers)],
        norm=build_norm("model.norm", config, backend, tensor, has),
        lm_head=head,
    )
