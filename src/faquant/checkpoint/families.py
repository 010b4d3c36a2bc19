"""What the supported model families compute differently, as plain data: one entry for each model_type.

transformers' classes are the definition. A missing key gets their default.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple


class LayerNorms(NamedTuple):
    """The checkpoint names of a layer's norms of what enters attention and MLP, and of what they add to the residual
    stream; None: there is none."""

    attention: str | None = "input_layernorm"
    attention_output: str | None = None
    mlp: str | None = "post_attention_layernorm"
    mlp_output: str | None = None


LLAMA_NORMS = LayerNorms()


@dataclass(frozen=True)
class Family:
    """A family of decoders.

    Attributes:
        causal_lm: transformers' class.
        published_code: what auto_map may name, because transformers' class is the same code.
        biases: the keys among attention_bias and mlp_bias that it reads.
        qkv_bias: whether q, k and v always have biases.
        qk_norm: RMSNorm of q and k before RoPE: of each head, or of all heads together.
        norms: where a layer has norms.
        names_head_dim, names_kv_heads: whether config.json must have head_dim and num_key_value_heads.
        norm_offset: what is added to the stored weights of all norms.
        activation: of the gate in the MLP; activation_key: where config.json names it.
        scaled_embedding: whether the embedding's rows are multiplied by √hidden_size.
        windows: which layers have the window: none; all, unless layer_types says otherwise; or, with
            use_sliding_window, those that layer_types or max_window_layers choose (`switched`).
        window: the default of sliding_window.
        full_every: without layer_types, one layer in this many has full attention, the last of them; 0: no window is
            guessed.
        pattern_key: where config.json has another number than full_every; empty: nowhere.
        fused: whether q, k and v are stored as one weight, and gate and up as another.
        partial_rotary: whether RoPE may rotate only the first channels of each head.
        original_context: the default of original_max_position_embeddings, if it is read beside RoPE's table only.
        reads_layer_types: whether transformers reads layer_types.
        rope_aliases: other names for types of RoPE.
        rope_by_window: whether layers with a window have a RoPE of their own: what rope_parameters names for them, or
            plain RoPE with the theta of rope_local_base_freq, by default local_theta; None: the same theta.
        scaled_context: whether max_position_embeddings is the context after scaling, for all types of RoPE.
        no_rope: whether no_rope_layers lists layers without RoPE.
        computes: the keys that change the arithmetic, and that its own code reads (model_config.py).
        theta, eps, tied: defaults of rope_theta, rms_norm_eps and tie_word_embeddings.
    """

    causal_lm: str
    published_code: str | None = None
    biases: tuple[str, ...] = ()
    qkv_bias: bool = False
    qk_norm: Literal["head", "all"] | None = None
    norms: LayerNorms = LLAMA_NORMS
    norm_offset: float = 0.0
    activation: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    activation_key: str = "hidden_act"
    scaled_embedding: bool = False
    names_head_dim: bool = False
    names_kv_heads: bool = False
    windows: Literal["none", "all", "switched"] = "none"
    window: int | None = 4096
    full_every: int = 0
    pattern_key: str = ""
    fused: bool = False
    partial_rotary: bool = False
    original_context: int | None = None
    reads_layer_types: bool = True
    rope_aliases: tuple[tuple[str, str], ...] = ()
    rope_by_window: bool = False
    local_theta: float | None = None
    scaled_context: bool = False
    no_rope: bool = False
    computes: tuple[str, ...] = ()
    theta: float = 10000.0
    eps: float = 1e-6
    tied: bool = False


_OUTPUT_NORMS = LayerNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")

FAMILIES = {
    "llama": Family("LlamaForCausalLM", biases=("attention_bias", "mlp_bias")),
    "mistral": Family("MistralForCausalLM", names_kv_heads=True, windows="all"),
    "ministral": Family("MinistralForCausalLM", names_kv_heads=True, windows="all"),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, names_kv_heads=True, windows="switched"),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        biases=("attention_bias",),
        qk_norm="head",
        names_head_dim=True,
        names_kv_heads=True,
        windows="switched",
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        biases=("attention_bias", "mlp_bias"),
        names_kv_heads=True,
        windows="switched",
        window=None,
        no_rope=True,
        theta=2000000.0,
        tied=True,
    ),
    "granite": Family(
        "GraniteForCausalLM",
        biases=("attention_bias", "mlp_bias"),
        computes=("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        published_code="modeling_phi3.Phi3ForCausalLM",
        windows="all",
        window=None,
        fused=True,
        partial_rotary=True,
        original_context=4096,
        reads_layer_types=False,
        rope_aliases=(("su", "longrope"), ("yarn", "longrope")),
        eps=1e-5,
    ),
    "olmo2": Family("Olmo2ForCausalLM", biases=("attention_bias",), qk_norm="all", norms=_OUTPUT_NORMS, eps=1e-5),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        biases=("attention_bias",),
        qk_norm="all",
        norms=_OUTPUT_NORMS,
        windows="all",
        full_every=4,
        rope_by_window=True,
        theta=500000.0,
        eps=1e-5,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        biases=("attention_bias",),
        qk_norm="head",
        norms=LayerNorms(
            attention="input_layernorm",
            attention_output="post_attention_layernorm",
            mlp="pre_feedforward_layernorm",
            mlp_output="post_feedforward_layernorm",
        ),
        norm_offset=1.0,
        activation="gelu_pytorch_tanh",
        activation_key="hidden_activation",
        scaled_embedding=True,
        names_head_dim=True,
        names_kv_heads=True,
        windows="all",
        full_every=6,
        pattern_key="sliding_window_pattern",
        rope_by_window=True,
        local_theta=10000.0,
        scaled_context=True,
        computes=("query_pre_attn_scalar",),
        theta=1000000.0,
        tied=True,
    ),
}

PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""The families that msModelSlim and MindIE know, and that faquant exports to other engines."""
