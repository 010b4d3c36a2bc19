"""Writes a float directory of architecture llama, in any float dtype, as a Q8_0 GGUF file, which llama.cpp and OpenVINO
GenAI read."""

import json
from pathlib import Path

import gguf

from faquant.checkpoint.model_config import load_config
from faquant.checkpoint.tensors import TensorFiles
from faquant.kernels.arrays import widen

from .inputs import Array

TENSORS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_TENSORS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NORMAL, CONTROL = 1, 3
PRE_TOKENIZER = "smollm"


def write_q8_0(directory: Path, target: Path) -> None:
    """Write `target`: matrices in Q8_0, the rest in float32, and the tokenizer."""
    config = load_config(directory)
    if config.model_type != "llama" or config.rope.rope_type != "default" or config.qkv_bias or config.mlp_bias:
        raise ValueError(f"{directory} is not supported: only llama with plain RoPE and without biases")
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    add_tokenizer(writer, directory)
    heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}
    files = TensorFiles.open(directory)
    for name in files.names():
        x = widen(files.read(name))
        stem = name.removesuffix(".weight")
        if stem in TOP_TENSORS:
            own = TOP_TENSORS[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            own = f"blk.{layer}.{TENSORS[part]}"
            if part in heads:
                x = interleaved(x, heads[part])
        if x.ndim == 1:
            writer.add_tensor(f"{own}.weight", x)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{own}.weight", gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(x: Array, heads: int) -> Array:
    """Rows of q or k in llama.cpp's order, in which the two rows of a rotated pair are adjacent."""
    return x.reshape(heads, 2, -1, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)


def add_tokenizer(writer: gguf.GGUFWriter, directory: Path) -> None:
    table = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = {index: token for token, index in table["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in table["added_tokens"]}
    tokens |= special
    merges = table["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([tokens[index] for index in range(len(tokens))])
    writer.add_token_types([CONTROL if index in special else NORMAL for index in range(len(tokens))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
