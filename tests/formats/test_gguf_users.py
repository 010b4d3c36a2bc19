"""Features of GGUF files that the demo's does not have: all quantizations, parts, other tokenizers and templates."""

import itertools

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from faquant.checkpoint.model_config import load_config
from faquant.errors import CheckpointError, UnsupportedError
from faquant.formats.gguf.convert import convert_gguf
from faquant.formats.gguf.tokenizer import PRE_TOKENIZERS, build_tokenizer
from faquant.text.tokenizer import Tokenizer
from oracles.gguf_files import (
    Q8_0,
    TEMPLATE,
    TEXT,
    gguf_tensors,
    llama_file,
    logits,
    model_metadata,
    tiny_model,
    tokenizer_metadata,
    trained,
    write,
)


@pytest.mark.parametrize(("kind", "arch"), [(LlamaConfig, "llama"), (Qwen2Config, "qwen2")])
def test_transformers_reads_the_file_as_the_same_model(tmp_path, tokens, kind, arch):
    """transformers has a GGUF reader of its own, for head_dim = hidden / heads."""
    model = tiny_model(kind, head_dim=16)
    arrays = gguf_tensors(model)
    kinds = {name: Q8_0 for name, array in arrays.items() if array.ndim == 2}
    convert_gguf(
        write(tmp_path / "m.gguf", arch, model_metadata(model.config, arch) | tokens, arrays, kinds), tmp_path / "out"
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(theirs), logits(ours))
    assert (logits(ours) - logits(model)).norm() < 0.05 * logits(model).norm()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert Tokenizer.from_directory(tmp_path / "out").encode(TEXT) == tokenizer(TEXT)["input_ids"]


# The quantizations that the package gguf can dequantize, and those that it cannot.
PACKED = [kind for kind in gguf.GGML_QUANT_SIZES if kind in gguf.quants._type_traits]
OTHERS = [kind for kind in gguf.GGML_QUANT_SIZES if kind not in PACKED and kind.name not in ("F32", "F16")]


def test_every_packing_is_undone_in_every_place(tmp_path, tokens):
    assert {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS", "BF16"} <= {kind.name for kind in PACKED}
    model = tiny_model(hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=4)
    arrays = gguf_tensors(model)
    matrices = [name for name, array in arrays.items() if array.ndim == 2]
    assert len(matrices) >= len(PACKED)
    kinds = dict(zip(matrices, itertools.cycle(PACKED), strict=False))
    rng, packed = np.random.default_rng(0), {}
    for name, kind in kinds.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (arrays[name].shape[0], arrays[name].shape[1] // block * size)
        # Clearing this bit ensures that no float16 or bfloat16 scale is infinite.
        packed[name] = rng.integers(0, 256, shape, dtype=np.uint8) & 0xBF
    path = write(tmp_path / "m.gguf", "llama", model_metadata(model.config, "llama") | tokens, arrays, kinds, packed)
    convert_gguf(path, tmp_path / "out")
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    model.load_state_dict(weights)
    for name, array in gguf_tensors(model).items():
        if name in packed:
            expected = gguf.quants.dequantize(packed[name], kinds[name])
            assert np.array_equal(array, expected), (name, kinds[name])


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_packings_that_cannot_be_undone_are_told_at_once(tmp_path, llama, tokens, kind):
    model = tiny_model(hidden_size=256, num_hidden_layers=1)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    arrays = gguf_tensors(model)
    packed = {"output.weight": np.zeros((300, 256 // block * size), np.uint8)}
    path = write(
        tmp_path / "m.gguf",
        "llama",
        model_metadata(model.config, "llama") | tokens,
        arrays,
        {"output.weight": kind},
        packed,
    )
    with pytest.raises(UnsupportedError, match=f"output.weight.*{kind.name}"):
        convert_gguf(path, tmp_path / "out", progress=lambda done, total: pytest.fail("too late"))


@pytest.fixture
def parts(tmp_path, llama, tokens):
    """A split file, and the directory converted from the unsplit file."""
    convert_gguf(llama_file(tmp_path, llama, tokens), tmp_path / "whole")
    metadata = model_metadata(llama.config, "llama") | tokens
    write(tmp_path / "m.gguf", "llama", metadata, gguf_tensors(llama), part_tensors=8)
    return sorted(tmp_path.glob("m-*.gguf"))


@pytest.mark.parametrize("named", [0, 2])
def test_a_file_in_parts_is_read_whole(tmp_path, parts, named):
    assert [part.name for part in parts] == [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    convert_gguf(parts[named], tmp_path / "out")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_parts_that_do_not_fit_are_refused(tmp_path, parts):
    second = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"00002-of-00003.*is not part 2 of 3"):
        convert_gguf(parts[0], tmp_path / "out")
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003.*No such file"):
        convert_gguf(parts[0], tmp_path / "out")
    parts[1].write_bytes(second)
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(parts[0].read_bytes())
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        convert_gguf(alone, tmp_path / "out")


def test_parts_of_different_models_are_refused(tmp_path, parts, llama, tokens):
    arrays = gguf_tensors(llama)
    (tmp_path / "other").mkdir()
    half = dict(itertools.islice(arrays.items(), 17))
    write(tmp_path / "other" / "m.gguf", "llama", tokens, half, part_tensors=8)
    parts[2].write_bytes((tmp_path / "other" / parts[2].name).read_bytes())
    with pytest.raises(CheckpointError, match="17 tensors, not 21; do they belong to one model"):
        convert_gguf(parts[0], tmp_path / "out")


def test_named_chat_templates(tmp_path, llama, tokens):
    extra = {"tokenizer.chat_template.tool_use": "tools", "tokenizer.chat_templates": ["tool_use"]}
    convert_gguf(llama_file(tmp_path, llama, tokens, extra), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == {"default": TEMPLATE, "tool_use": "tools"}
    tokenizer, messages = Tokenizer.from_directory(tmp_path / "out"), [{"role": "user", "content": "hi"}]
    assert tokenizer.render_chat(messages) == "<|im_start|>hi<|im_end|>"
    tool = {"type": "function", "function": {"name": "f"}}
    assert tokenizer.render_chat(messages, tools=[tool]) == "tools"
    wrong = llama_file(tmp_path, llama, tokens, {"tokenizer.chat_template.tool_use": 1})
    with pytest.raises(CheckpointError, match="chat_template"):
        convert_gguf(wrong, tmp_path / "wrong")


def test_the_end_of_a_turn_is_found_in_the_template(tmp_path, llama, tokens):
    """A chat model made from a base model often keeps the base model's EOS."""
    convert_gguf(llama_file(tmp_path, llama, tokens, {"tokenizer.ggml.eos_token_id": 0}), tmp_path / "out")
    assert load_config(tmp_path / "out").eos_token_ids == (0, 2)
    plain = {"tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": "{{ messages }}"}
    convert_gguf(llama_file(tmp_path, llama, tokens, plain), tmp_path / "plain")
    assert load_config(tmp_path / "plain").eos_token_ids == (0,)


@pytest.mark.parametrize(
    ("alias", "pre"),
    [("llama3", "llama-bpe"), ("llama-v3", "llama-bpe"), ("falcon3", "llama-bpe"), ("deepseek-r1-qwen", "qwen2")],
)
def test_other_names_of_the_same_words(alias, pre):
    metadata = tokenizer_metadata(trained(pre), pre)
    assert alias in PRE_TOKENIZERS
    renamed = metadata | {"tokenizer.ggml.pre": alias}
    assert build_tokenizer(renamed, "t").to_str() == build_tokenizer(metadata, "t").to_str()


@pytest.mark.parametrize("pre", [None, "deepseek-llm", 3])
def test_words_that_are_not_known_are_refused(tokens, pre):
    with pytest.raises(UnsupportedError, match=r"tokenizer\.ggml\.pre"):
        build_tokenizer(tokens | {"tokenizer.ggml.pre": pre}, "t")


def test_biases_without_one_for_the_output_are_told(tmp_path, tokens):
    model = tiny_model(attention_bias=True)
    path = llama_file(tmp_path, model, tokens, drop=["blk.0.attn_output.bias"])
    with pytest.raises(UnsupportedError, match="biases for q, k and v"):
        convert_gguf(path, tmp_path / "out")


def test_an_existing_model_is_replaced_only_on_demand(tmp_path, llama, tokens):
    path = llama_file(tmp_path, llama, tokens)
    convert_gguf(path, tmp_path / "out")
    before = load_file(tmp_path / "out" / "model.safetensors")
    convert_gguf(path, tmp_path / "out", "bfloat16", overwrite=True)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
