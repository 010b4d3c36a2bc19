"""Tiny tokenizers of the kinds that LLaMA-family checkpoints carry, made on the spot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from faquant.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1234 o'clock, isn't it?",
    "def main():\n    return {'answer': 42}\n\n",
    "Größe, naïve café, 你好世界, привет мир, 😀👩‍👩‍👧 emoji.",
] * 20
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE as in SmolLM2, Llama 3 and Qwen2."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("two words", normalized=False)])
    return tokenizer


def byte_fallback() -> tokenizers.Tokenizer:
    """BPE with byte tokens and ▁ for a space, as Llama 2 and Mistral have it from sentencepiece."""
    pieces = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz.,\n",
        "th",
        "▁th",
    ]
    merges = [("t", "h"), ("▁", "th")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    """BPE whose decoder is Metaspace."""
    tokenizer = byte_fallback()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def no_decoder() -> tokenizers.Tokenizer:
    """No decoder at all: the library puts spaces between tokens."""
    tokenizer = byte_fallback()
    tokenizer.decoder = None
    return tokenizer


def ctc() -> tokenizers.Tokenizer:
    """A decoder that looks at neighboring tokens, which no stream can follow."""
    tokenizer = byte_fallback()
    tokenizer.decoder = decoders.CTC(pad_token="a", word_delimiter_token="▁")
    return tokenizer


BACKENDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
    "no_decoder": no_decoder,
    "ctc": ctc,
}


def write_model(directory: Path, backend: tokenizers.Tokenizer, tokenizer_config: Any = None, **files: Any) -> Path:
    """A directory with tokenizer.json, tokenizer_config.json and further JSON files."""
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps({**base, **(tokenizer_config or {})}))
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


@pytest.fixture(scope="session", params=list(BACKENDS))
def any_directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory for each kind of tokenizer."""
    return write_model(tmp_path_factory.mktemp(request.param), BACKENDS[request.param]())


@pytest.fixture(scope="session")
def byte_level_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a byte-level tokenizer."""
    return write_model(tmp_path_factory.mktemp("byte_level"), byte_level())


@pytest.fixture(scope="session")
def any_tokenizer(any_directory: Path) -> Tokenizer:
    """Each kind of tokenizer."""
    return Tokenizer.from_directory(any_directory)


@pytest.fixture(scope="session")
def byte_level_tokenizer(byte_level_directory: Path) -> Tokenizer:
    """A byte-level tokenizer."""
    return Tokenizer.from_directory(byte_level_directory)


@pytest.fixture
def make_directory(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model directory: make(tokenizer_config, **json_files)."""

    def make(tokenizer_config: Any = None, backend: str = "byte_level", **files: Any) -> Path:
        return write_model(tmp_path / "model", BACKENDS[backend](), tokenizer_config, **files)

    return make
