"""GGUF files of tiny random models, as llama.cpp's converter writes them."""

import json

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig

F32, F16, BF16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16
Q8_0 = gguf.GGMLQuantizationType.Q8_0
TEXT = (
    "The year 2024 isn't over; 3,141 birds — naïve ones — sang  twice.\n\n  def f(x):\n\treturn x**2 # 12345\r\n"
    "北京 is a city. I'LL we've ½ ٣٤ e\u0301 🙂 <|im_start|>user\nhi<|im_end|>  "
)
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
}
OUTPUT_NORMS = {
    "pre_feedforward_layernorm": "ffn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def split_words(pre):
    """The pre-tokenizer that llama.cpp calls `pre`, as in the models' own tokenizer.json."""
    if pre == "smollm":
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = TEKKEN if pre == "tekken" else WORDS % {"llama-bpe": 3, "qwen2": 1}[pre]
    words = pre_tokenizers.Split(Regex(words), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def trained(pre="smollm", size=300):
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer = split_words(pre)
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator([TEXT] * 2, trainer)
    assert tokenizer.get_vocab_size() == size
    return tokenizer


def tokenizer_metadata(tokenizer, pre="smollm"):
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [token for token, _ in vocab],
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token, _ in vocab],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def permute(weight, heads):
    """As llama.cpp's converter writes q and k for the architecture llama."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def gguf_tensors(model):
    config = model.config
    tensors = {}
    for name, value in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        array = value.float().numpy().copy()
        if stem == "lm_head" and config.tie_word_embeddings:
            continue
        if config.model_type in ("llama", "mistral", "smollm3", "granite") and stem.endswith(("q_proj", "k_proj")):
            array = permute(array, getattr(config, f"num_{'attention' if 'q_proj' in stem else 'key_value'}_heads"))
        if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
            array = array + 1
        top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        if stem in top:
            tensors[f"{top[stem]}.{kind}"] = array
        else:
            _, _, layer, part = stem.split(".", 3)
            names = NAMES | OUTPUT_NORMS if "post_feedforward_layernorm" in str(model) else NAMES
            tensors[f"blk.{layer}.{names[part]}.{kind}"] = array
    return tensors


def model_metadata(config, arch):
    return {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": getattr(config, "head_dim", 0),
        f"{arch}.attention.value_length": getattr(config, "head_dim", 0),
        f"{arch}.rope.dimension_count": getattr(config, "head_dim", 0),
        f"{arch}.rope.freq_base": 5000.0,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.vocab_size": config.vocab_size,
    }


def write(path, arch, metadata, tensors, kinds=None, packed=None, part_tensors=0):
    """Write a GGUF file.

    `kinds` has the types of tensors that are not float32, `packed` the bytes [rows, bytes] of tensors that gguf cannot
    quantize. With `part_tensors`, the file is split into parts with this many tensors.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=part_tensors)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)
    for name, array in tensors.items():
        kind = (kinds or {}).get(name, F32)
        if name in (packed or {}):
            writer.add_tensor(name, packed[name], raw_dtype=kind)
        elif kind == F32:
            writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
        elif kind == F16:
            writer.add_tensor(name, array.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_model(kind=LlamaConfig, **changes):
    torch.manual_seed(5)
    fields = SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}} | changes
    config = kind(**fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, value in model.named_parameters():
        if "norm" in name or "bias" in name:  # fresh ones are all 1 or 0, which hides mistakes
            torch.nn.init.normal_(value, 0.5, 0.3)
    return model


def llama_file(tmp_path, llama, tokens, metadata=None, tensors=None, kinds=None, drop=()):
    fields = model_metadata(llama.config, "llama") | tokens | (metadata or {})
    arrays = gguf_tensors(llama) | (tensors or {})
    arrays = {name: array for name, array in arrays.items() if name not in drop}
    return write(tmp_path / "model.gguf", "llama", fields, arrays, kinds)


def logits(model):
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        return model(ids).logits


def yarn(**keys):
    """Metadata of YaRN by 4, as llama.cpp's converter writes it."""
    return {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    } | {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
