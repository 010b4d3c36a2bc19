"""The decoder of Llama, Mistral, Qwen2 and Qwen3: norms, projections, RoPE, gated MLP.

What attention does with q, k and v is the caller's: cache pages when serving, observers when calibrating. Each
step is done as transformers does it, in the model's dtype, so that calibration repeats what other tools see.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from ..checkpoint.model_config import ModelConfig
from ..kernels import _C, elementwise
from .lazy import LazyEmbedding, LazyLinear, LazySequence
from .linear import DynamicLinear, FloatLinear, Linear, StaticLinear
from .rope import apply_rope

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [tokens, Hq, D], k, v [tokens, Hkv, D]) → [tokens, Hq, D]; q and k after RoPE."""

Tables = tuple[Tensor, Tensor]
"""Cosine and sine of the tokens' positions, [tokens, 1, D] each, in the model's dtype."""


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU's product, as transformers computes it."""
    return torch.nn.functional.silu(gate) * up


@dataclass
class RMSNorm:
    """x / rms(x) · weight (+ bias, which outlier suppression can leave), over the last dimension.

    `fused`: by our kernel, in float32, where no other tool's roundings are to be repeated.
    """

    weight: Tensor
    eps: float
    bias: Tensor | None = None
    fused: bool = False

    @cached_property
    def kernel(self) -> _C.RmsNorm:
        """For the kernels, which take float32 only."""
        return _C.RmsNorm(weight=self.weight, bias=self.bias, eps=self.eps)

    def __call__(self, x: Tensor) -> Tensor:
        if self.fused:
            return elementwise.rms_norm(self.kernel, x)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        y = self.weight * wide.to(x.dtype)
        return y if self.bias is None else y + self.bias


@dataclass
class DecoderLayer:
    """One transformer block. Attributes are named as the checkpoint's modules."""

    index: int
    head_dim: int
    input_layernorm: RMSNorm
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    post_attention_layernorm: RMSNorm
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    turn: Callable[[Tensor, Tensor, Tensor], Tensor] = apply_rope
    gated: Callable[[Tensor, Tensor], Tensor] = gated

    def __call__(self, x: Tensor, tables: Tables, attention: Attention) -> Tensor:
        """The residual stream x [tokens, hidden] after this block."""
        h = self.input_layernorm(x)
        shape = (x.shape[0], -1, self.head_dim)
        q, k, v = self.q_proj(h).view(shape), self.k_proj(h).view(shape), self.v_proj(h).view(shape)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self.turn(q, *tables), self.turn(k, *tables)
        x = x + self.o_proj(attention(self.index, q, k, v).reshape(x.shape[0], -1))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(self.gated(self.gate_proj(h), self.up_proj(h)))

    @property
    def linears(self) -> list[Linear]:
        """In LINEARS' order."""
        return [getattr(self, name.rpartition(".")[2]) for name in LINEARS]

    @property
    def is_int8(self) -> bool:
        """Whether all linears are int8, so that the layer can run in the kernels as a whole."""
        return all(isinstance(linear, DynamicLinear | StaticLinear) for linear in self.linears)

    def kernels(self) -> tuple[list[_C.Int8Linear], list[_C.RmsNorm | None]]:
        """Linears and norms of an int8 layer as _C.DecoderLayers takes them."""
        linears = [linear.kernel for linear in self.linears if isinstance(linear, DynamicLinear | StaticLinear)]
        norms = (self.input_layernorm, self.post_attention_layernorm, self.q_norm, self.k_norm)
        return linears, [None if norm is None else norm.kernel for norm in norms]


@dataclass
class Decoder:
    """The whole model between token ids and logits."""

    config: ModelConfig
    embedding: Tensor  # [vocab, hidden], or what reads its rows when asked
    layers: Sequence[DecoderLayer]
    norm: RMSNorm
    lm_head: Linear
    dtype: torch.dtype = torch.float32

    def embed(self, tokens: Tensor) -> Tensor:
        """The residual stream [tokens, hidden] that enters the first block, for int64 ids [tokens]."""
        return self.embedding[tokens].to(self.dtype)

    def hidden(self, tokens: Tensor, tables: Tables, attention: Attention) -> Tensor:
        """The residual stream after the last block and norm: [tokens, hidden], for int64 ids [tokens]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, tables, attention)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [tokens, vocab] of what `hidden` returned."""
        return self.lm_head(hidden).float()


LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The linears of a layer, as the checkpoint names them."""


def build_layer(
    config: ModelConfig,
    index: int,
    tensor: Callable[[str], Tensor],
    linear: Callable[[str], Linear],
    has: Callable[[str], bool],
    dtype: torch.dtype = torch.float32,
) -> DecoderLayer:
    """Put one layer together from parts by their checkpoint names; arguments as build_decoder's."""
    prefix = f"model.layers.{index}."

    linears = {name.rpartition(".")[2]: linear(prefix + name) for name in LINEARS}
    # A float layer repeats what other tools compute; in an int8 one no token may depend on its neighbours.
    fused = isinstance(linears["gate_proj"], DynamicLinear | StaticLinear)

    def norm(name: str) -> RMSNorm:
        return replace(_norm(prefix + name, config, tensor, has, dtype), fused=fused)

    return DecoderLayer(
        index=index,
        head_dim=config.head_dim,
        input_layernorm=norm("input_layernorm"),
        q_norm=norm("self_attn.q_norm") if config.qk_norm else None,
        k_norm=norm("self_attn.k_norm") if config.qk_norm else None,
        post_attention_layernorm=norm("post_attention_layernorm"),
        turn=elementwise.rope if fused else apply_rope,
        gated=elementwise.silu_times if fused else gated,
        **linears,
    )


def build_decoder(
    config: ModelConfig,
    tensor: Callable[[str], Tensor],
    linear: Callable[[str], Linear],
    has: Callable[[str], bool],
    dtype: torch.dtype = torch.float32,
    lazy: bool = False,
    fused_norm: bool = False,
) -> Decoder:
    """Put a decoder together from parts by their checkpoint names.

    Args:
        tensor: gives a tensor such as `model.norm.weight`.
        linear: gives a linear such as `model.layers.0.mlp.down_proj`, or `lm_head`.
        has: whether there is a tensor of that name.
        dtype: in which everything but int8 parts computes.
        lazy: embedding, layers and head are read when they are used, and not kept.
        fused_norm: the last norm is our kernel's, as is right before an int8 head.
    """

    def layer(index: int) -> DecoderLayer:
        return build_layer(config, index, tensor, linear, has, dtype)

    def read_embedding() -> Tensor:
        return tensor("model.embed_tokens.weight")

    embedding = cast(Tensor, LazyEmbedding(read_embedding)) if lazy else read_embedding()
    head: Linear
    if lazy:
        head = LazyLinear(lambda: linear("lm_head"))
    elif config.tie_word_embeddings and not has("lm_head.weight"):
        head = FloatLinear(embedding.to(dtype))  # and not the same once more
    else:
        head = linear("lm_head")
    return Decoder(
        config=config,
        embedding=embedding,
        layers=LazySequence(layer, config.num_layers) if lazy else [layer(i) for i in range(config.num_layers)],
        norm=replace(_norm("model.norm", config, tensor, has, dtype), fused=fused_norm),
        lm_head=head,
        dtype=dtype,
    )


def _norm(
    name: str,
    config: ModelConfig,
    tensor: Callable[[str], Tensor],
    has: Callable[[str], bool],
    dtype: torch.dtype,
) -> RMSNorm:
    bias = tensor(f"{name}.bias").to(dtype) if has(f"{name}.bias") else None
    return RMSNorm(tensor(f"{name}.weight").to(dtype), config.rms_norm_eps, bias)
