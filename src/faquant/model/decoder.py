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
from ..kernels.backend import NO_NORM, Backend, Embedding, Linear, Norm
from .lazy import LazyEmbedding, LazyLinear, LazySequence

Attention = Callable[[int, Array, Array, Array], Array]
"""(layer, q [tokens, Hq, D], k, v [tokens, Hkv, D]) → [tokens, Hq, D]; q and k after RoPE."""

Tables = tuple[Array, Array]
"""Cosine and sine of the tokens' positions, float32 [tokens, kinds of RoPE, D] each."""


@dataclass
class DecoderLayer:
    """One transformer block. Linears have the names of the checkpoint's modules, norms those of families.LayerNorms.

    Attributes:
        rope_kind: the number of its RoPE among the tables of all kinds.
        gated: gelu or silu of the gate, times up.
        norms_all_heads: whether q_norm and k_norm are over all heads together, or over each.
    """

    index: int
    head_dim: int
    rope_kind: int
    attention_norm: Norm
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    norms_all_heads: bool
    attention_output_norm: Norm
    mlp_norm: Norm
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    mlp_output_norm: Norm
    rope: Callable[[Array, Array, Array], Array]
    gated: Callable[[Array, Array], Array]
    is_gelu: bool

    def __call__(self, x: Array, tables: Tables, attention: Attention) -> Array:
        """The residual stream x [tokens, hidden] after this block."""
        h = self.attention_norm(x)
        q, k = self.heads(self.q_proj(h), self.q_norm), self.heads(self.k_proj(h), self.k_norm)
        v = self.heads(self.v_proj(h), None)
        cos, sin = (table[:, self.rope_kind : self.rope_kind + 1] for table in tables)
        q, k = self.rope(q, cos, sin), self.rope(k, cos, sin)
        x = x + self.attention_output_norm(self.o_proj(attention(self.index, q, k, v).reshape(x.shape[0], -1)))
        h = self.mlp_norm(x)
        return x + self.mlp_output_norm(self.down_proj(self.gated(self.gate_proj(h), self.up_proj(h))))

    def heads(self, x: Array, norm: Norm | None) -> Array:
        """Outputs of q_proj, k_proj or v_proj as heads [tokens, heads, D], after their norm."""
        shape = (x.shape[0], -1, self.head_dim)
        if norm is None:
            return x.reshape(shape)
        return norm(x).reshape(shape) if self.norms_all_heads else norm(x.reshape(shape))

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

    def norm(name: str | None) -> Norm:
        return NO_NORM if name is None else build_norm(prefix + name, config, backend, tensor, has)

    norms, is_gelu = config.family.norms, config.family.activation != "silu"

    return DecoderLayer(
        index=index,
        head_dim=config.head_dim,
        rope_kind=config.rope_kind(index),
        attention_norm=norm(norms.attention),
        q_norm=norm("self_attn.q_norm") if config.qk_norm else None,
        k_norm=norm("self_attn.k_norm") if config.qk_norm else None,
        norms_all_heads=config.family.qk_norm == "all",
        attention_output_norm=norm(norms.attention_output),
        mlp_norm=norm(norms.mlp),
        mlp_output_norm=norm(norms.mlp_output),
        rope=backend.rope,
        gated=backend.gelu_times if is_gelu else backend.silu_times,
        is_gelu=is_gelu,
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
