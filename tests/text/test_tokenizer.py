"""The tokenizer compared with transformers, for all files that a checkpoint can contain."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from faquant.errors import CheckpointError, UsageError
from faquant.text.tokenizer import Tokenizer

Make = Callable[..., Path]
TEXTS = [
    "",
    " ",
    "Hello, world",
    "  two  spaces ",
    "1234567",
    "naïve café 你好 😀👩‍👩‍👧\n\n\tx",
    "<s>hi</s> <|im_start|>user",
    "a two words b<tool_call>",
    "\x00\ufffd\u200b",
]


def oracle_of(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.mark.parametrize("special", [True, False])
def test_encode_and_decode_equal_transformers(any_directory: Path, special: bool) -> None:
    ours, oracle = Tokenizer.from_directory(any_directory), oracle_of(any_directory)
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=special)
        assert ids == oracle.encode(text, add_special_tokens=special)
        for skip in (True, False):
            assert ours.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_survives_byte_level_coding(byte_level_tokenizer: Tokenizer, text: str) -> None:
    ours = byte_level_tokenizer
    assert ours.decode(ours.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("processor", ["none", "byte_level", "bos"])
@pytest.mark.parametrize("flag", [None, False, True])
def test_bos_as_in_transformers(make_directory: Make, processor: str, flag: bool | None) -> None:
    directory = make_directory({} if flag is None else {"add_bos_token": flag})
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    if processor == "byte_level":
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    elif processor == "bos":
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(directory / "tokenizer.json"))
    ids = Tokenizer.from_directory(directory).encode("hello")
    if processor == "none" and flag:
        # transformers ignores add_bos_token for this class; here, nothing else says whether to add BOS.
        assert ids == [1, *oracle_of(directory).encode("hello")]
    else:
        assert ids == oracle_of(directory).encode("hello")


FLAGS: list[dict[str, bool]] = [
    {},
    {"add_bos_token": True},
    {"add_bos_token": False},
    {"add_bos_token": True, "add_eos_token": True},
    {"add_eos_token": True},
    {"add_bos_token": False, "add_eos_token": True},
]


@pytest.mark.parametrize("processor", ["none", "byte_level", "bos"])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # As transformers 4.57.3 encodes. It adds BOS without a flag too; there, the post-processor decides here.
        ("LlamaTokenizerFast", ["", "B", "", "B E", "B E", " E"]),
        ("LlamaTokenizer", ["", "B", "", "B E", "B E", " E"]),
        (None, ["", "B", "", "B E", "B E", " E"]),  # config.json says llama
        ("GPTNeoXTokenizerFast", ["", "B", "", "B E", " E", " E"]),
    ],
)
def test_the_flags_of_classes_that_obey_them_in_transformers_4(
    make_directory: Make, processor: str, name: str | None, wanted: list[str]
) -> None:
    for flags, added in zip(FLAGS, wanted, strict=True):
        directory = make_directory({**flags, "tokenizer_class": name}, config={"model_type": "llama"})
        backend = Backend.from_file(str(directory / "tokenizer.json"))
        plain = backend.encode("hello", add_special_tokens=False).ids
        if processor == "byte_level":
            backend.post_processor = processors.ByteLevel(trim_offsets=False)
        elif processor == "bos":
            backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        backend.save(str(directory / "tokenizer.json"))
        if not flags:
            added = "B" if processor == "bos" else ""
        ours = Tokenizer.from_directory(directory)
        assert ours.encode("hello") == [1] * ("B" in added) + plain + [2] * ("E" in added)
        assert ours.encode("hello", add_special_tokens=False) == plain


def test_a_chat_template_that_writes_bos_gets_no_second_one(make_directory: Make) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}"
    directory = make_directory(
        {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "chat_template": template}
    )
    ours = Tokenizer.from_directory(directory)
    assert ours.encode("hello")[0] == 1
    assert ours.encode_chat([{"role": "user", "content": "hello"}]) == ours.encode("hello")


def test_truncation_and_padding_of_the_file_do_not_apply(make_directory: Make) -> None:
    directory = make_directory()
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    plain = backend.encode("a longer text than four tokens").ids
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(directory / "tokenizer.json"))
    assert Tokenizer.from_directory(directory).encode("a longer text than four tokens") == plain


def test_eos_is_the_union_in_order(make_directory: Make) -> None:
    directory = make_directory(
        {"eos_token": {"content": "<|im_end|>", "special": True}},
        config={"eos_token_id": 2, "model_type": "something else"},
        generation_config={"eos_token_id": [2, 7], "bos_token_id": 5},
    )
    ours = Tokenizer.from_directory(directory)
    assert ours.eos_token_ids == (2, 7, 4)
    assert ours.bos_token_id == 1
    assert ours.special_tokens == {"bos_token": "<s>", "eos_token": "<|im_end|>"}


@pytest.mark.parametrize("described", [False, True])
def test_special_tokens_map_counts_unless_the_config_describes_its_tokens(
    make_directory: Make, described: bool
) -> None:
    directory = make_directory(
        {"bos_token": None, **({"added_tokens_decoder": {}} if described else {})},
        special_tokens_map={"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": {"content": "</s>"}},
    )
    ours, oracle = Tokenizer.from_directory(directory), oracle_of(directory)
    named = {name: token for name, token in oracle.special_tokens_map.items() if token is not None}
    assert ours.special_tokens == named
    assert ours.bos_token_id == (None if described else 1)
    assert ours.eos_token_ids == ((2,) if described else (4,))


def test_a_bare_tokenizer_json_is_enough(make_directory: Make) -> None:
    directory = make_directory()
    (directory / "tokenizer_config.json").unlink()
    ours = Tokenizer.from_directory(directory)
    assert (ours.eos_token_ids, ours.bos_token_id, ours.has_chat_template) == ((), None, False)
    assert ours.decode(ours.encode("hello")) == "hello"


def test_named_special_tokens_are_skipped_as_in_transformers(make_directory: Make) -> None:
    directory = make_directory({"eos_token": "<tool_call>", "pad_token": "he"})
    ours, oracle = Tokenizer.from_directory(directory), oracle_of(directory)
    for text in ("a <tool_call> b", "he the"):
        ids = ours.encode(text)
        assert ids == oracle.encode(text)
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


def test_vocab_size_is_one_more_than_the_largest_id(byte_level_directory: Path) -> None:
    ours = Tokenizer.from_directory(byte_level_directory)
    assert ours.vocab_size == len(oracle_of(byte_level_directory))
    assert ours.token_text(ours.vocab_size - 1) == "two words"
    assert ours.token_text(ours.vocab_size) is None
    assert ours.decode([ours.vocab_size, 10**9]) == ""


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", None, 3, b"bytes"])
def test_invalid_unicode_is_refused(byte_level_tokenizer: Tokenizer, text: Any) -> None:
    with pytest.raises(UsageError, match=r"is an unpaired surrogate|must be a string"):
        byte_level_tokenizer.encode(text)


@pytest.mark.parametrize("ids", [[-1], [2**32], ["a"], [1.5], None])
def test_invalid_ids_are_refused(byte_level_tokenizer: Tokenizer, ids: Any) -> None:
    with pytest.raises(UsageError, match="Token ids"):
        byte_level_tokenizer.decode(ids)


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*Copy it from the original model"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model":{"type":"BPE","vocab":{},"merges":["a b"]}}',
        b'{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}',
        b'{"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(("},"behavior":"Isolated","invert":false},'
        b'"model":{"type":"BPE","vocab":{"a":1},"merges":[]}}',
    ],
)
def test_a_broken_tokenizer_is_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read by the library"):
        Tokenizer.from_directory(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_byte_never_escapes_as_another_error(
    byte_level_directory: Path, tmp_path: Path, place: float, byte: int
) -> None:
    content = bytearray((byte_level_directory / "tokenizer.json").read_bytes())
    content[int(place * len(content))] = byte
    (tmp_path / "tokenizer.json").write_bytes(content)
    with contextlib.suppress(CheckpointError):
        Tokenizer.from_directory(tmp_path).encode("hello")


def test_a_huge_tokenizer_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CheckpointError, match="larger than the limit of 268435456 bytes"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        ({"eos_token": "<nowhere>"}, {}, "files are of different models"),
        ({"bos_token": 3}, {}, "bos_token must be"),
        ({"bos_token": {"text": "<s>"}}, {}, "bos_token must be"),
        ({}, {"generation_config": {"eos_token_id": [1, "2"]}}, "generation_config.json: eos_token_id must be"),
        ({}, {"config": {"eos_token_id": True}}, "config.json: eos_token_id must be"),
        ({}, {"config": {"eos_token_id": -1}}, "config.json: eos_token_id must be"),
        ({}, {"generation_config": []}, "must hold a JSON object"),
        ({"chat_template": 3}, {}, "chat_template must be"),
        ({"chat_template": [{"name": "default"}]}, {}, "strings name and template"),
    ],
)
def test_contradictory_files(make_directory: Make, config: Any, files: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_directory(make_directory(config, **files))


def test_a_broken_config_names_the_file(make_directory: Make) -> None:
    directory = make_directory()
    (directory / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json cannot be read as JSON"):
        Tokenizer.from_directory(directory)
