"""Tokenizers of GGUF files: the same ids as the original tokenizers."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from faquant.checkpoint.model_config import load_config
from faquant.errors import CheckpointError, UnsupportedError
from faquant.formats.gguf.convert import convert_gguf
from faquant.formats.gguf.tokenizer import build_tokenizer
from oracles.gguf_files import (
    TEXT,
    llama_file,
    tokenizer_metadata,
    trained,
)


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "gpt-2", "tekken"])
def test_byte_level_tokenizers(pre):
    original = trained(pre, 330)
    metadata = tokenizer_metadata(original, pre) | {"tokenizer.ggml.add_bos_token": False}
    built = build_tokenizer(metadata, "test")
    for text in (TEXT, TEXT[::-1], "", " ", "\n\n\n x", "1 22 333 4444", "<|im_end|>"):
        assert built.encode(text).ids == original.encode(text).ids, text
        if pre != "qwen2":  # NFC changes the text
            assert built.decode(built.encode(text).ids, skip_special_tokens=False) == text
    assert built.decode(built.encode("a<|im_end|>b").ids) == "ab"
    words = {"smollm": ["1"] * 4, "llama-bpe": ["111", "1"], "qwen2": ["1"] * 4, "gpt-2": ["1111"], "tekken": ["1"] * 4}
    assert [word for word, _ in built.pre_tokenizer.pre_tokenize_str("1111")] == words[pre]


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("qwen2", False)])
def test_llama3_looks_whole_words_up_first(tokens, pre, whole):
    more = {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens["tokenizer.ggml.tokens"], "zqzq"],  # no merge leads there
        "tokenizer.ggml.token_type": [*tokens["tokenizer.ggml.token_type"], 1],
    }
    built = build_tokenizer(tokens | more, "test")
    assert (300 in built.encode("zqzq").ids) == whole


def test_transformers_reads_the_tokenizer(tmp_path, llama, tokens):
    convert_gguf(llama_file(tmp_path, llama, tokens), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(TEXT)["input_ids"] == trained().encode(TEXT).ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert prompt == "<|im_start|>hi<|im_end|>"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_begin_and_end_tokens(tokens):
    plain = build_tokenizer(tokens, "test").encode("hi").ids
    both = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    built = build_tokenizer(tokens | both, "test")
    assert built.encode("hi").ids == [1, *plain, 2]
    assert built.encode("hi", add_special_tokens=False).ids == plain
    assert built.encode("hi", "hi").ids == [1, *plain, 2, 1, *plain, 2]
    # Files of Llama 3 from before the key existed mean that there is one.
    implied = build_tokenizer(tokens | {"tokenizer.ggml.pre": "llama-bpe"}, "test")
    assert implied.encode("hi").ids[0] == 1
    with pytest.raises(CheckpointError, match="has no bos token"):
        build_tokenizer(
            {key: value for key, value in (tokens | both).items() if key != "tokenizer.ggml.bos_token_id"}, "test"
        )


def test_kinds_of_tokens(tokens):
    names, kinds = tokens["tokenizer.ggml.tokens"], tokens["tokenizer.ggml.token_type"]
    more = {
        "tokenizer.ggml.tokens": [*names, "<tool>", "[PAD301]"],
        "tokenizer.ggml.token_type": [*kinds, 4, 5],
        "tokenizer.ggml.eot_token_id": 0,
    }
    built = build_tokenizer(tokens | more, "test")
    ids = built.encode("a<tool>b<|im_end|>").ids
    assert 300 in ids
    assert built.decode(ids) == "a<tool>b"
    assert "[PAD301]" not in built.get_vocab()


def test_several_ends_of_a_turn(tmp_path, llama, tokens):
    convert_gguf(llama_file(tmp_path, llama, tokens, {"tokenizer.ggml.eot_token_id": 0}), tmp_path / "out")
    assert load_config(tmp_path / "out").eos_token_ids == (2, 0)


def test_more_tokens_than_embeddings(tmp_path, llama, tokens):
    more = {
        "tokenizer.ggml.tokens": [*tokens["tokenizer.ggml.tokens"], "<tool>"],
        "tokenizer.ggml.token_type": [*tokens["tokenizer.ggml.token_type"], 4],
    }
    path = llama_file(tmp_path, llama, tokens, more)
    with pytest.raises(CheckpointError, match="id 300"):
        convert_gguf(path, tmp_path / "out")


SPACE = "\u2581"


@pytest.fixture(scope="module")
def sentencepiece():
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [SPACE, *"abcdehlorstw ".replace(" ", "")]
    words = ["he", "ll", "llo", "hello", SPACE + "w", "or", SPACE + "wor", "ld", SPACE + "world", "aa", "aaa", "aaaa"]
    words += [SPACE + SPACE, SPACE + "hello", "sta", "st", "ta"]
    scores = [0.0] * len(pieces) + [-1000.0 - index for index in range(len(letters))]
    order = np.random.default_rng(3).permutation(len(words))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces + letters + words,
        "tokenizer.ggml.scores": scores + [-float(rank) for rank in order],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(letters) + len(words)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def greedy_pieces(text, metadata):
    """Sentencepiece's BPE by definition: merge the neighbors whose union has the best score, leftmost first."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    scores = {
        token: score
        for token, score, kind in zip(tokens, metadata["tokenizer.ggml.scores"], kinds, strict=True)
        if kind == 1
    }
    parts = list(SPACE + text.replace(" ", SPACE))
    while True:
        joins = [(scores[a + b], -at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores]
        if not joins:
            break
        at = -max(joins)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids = [1]
    for part in parts:
        ids += [tokens.index(part)] if part in scores else [3 + byte for byte in part.encode()]
    return ids


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("abcdehlorstw 世é\n", max_size=24))
def test_sentencepiece(sentencepiece, text):
    built = build_tokenizer(sentencepiece, "test")
    if text:
        assert built.encode(text).ids == greedy_pieces(text, sentencepiece)
    assert built.decode(built.encode(text).ids) == text


def test_sentencepiece_without_bytes_or_scores_is_refused(sentencepiece):
    with pytest.raises(CheckpointError, match="scores"):
        build_tokenizer({**sentencepiece, "tokenizer.ggml.scores": None}, "test")
    names = ["byte" if token == "<0x41>" else token for token in sentencepiece["tokenizer.ggml.tokens"]]
    with pytest.raises(UnsupportedError, match="every byte"):
        build_tokenizer({**sentencepiece, "tokenizer.ggml.tokens": names}, "test")
