"""Tokens that only the files beside tokenizer.json name, compared with transformers.

The combinations are those for which transformers 4.57 and 5.24 have the same ids and properties; where they differ, a
test of its own says what is done here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from faquant.errors import CheckpointError
from faquant.structured.vocabulary import Vocabulary
from faquant.text.detokenizer import IncrementalDecoder
from faquant.text.tokenizer import Tokenizer
from oracles.tokenizer_kinds import BACKENDS, write_model

Make = Callable[..., Path]
KINDS = ("byte_level", "byte_fallback", "metaspace")
NEW = ("<|a|>", "<b>", "qz")
OLD = ("<|im_start|>", "<unk>", "th")
UNNUMBERED = ("<new1>", "<new2>")
FLAGS = ("lstrip", "rstrip", "normalized", "single_word")
TEXTS = [
    "a <|a|> b",
    "a<b>b <b> x",
    "th qz thqz qzth",
    "<|im_start|> user <|im_end|>  x</s> ",
    "  <new1>  <new2>the<unk> a",
    "<|a|><b><|im_start|>",
]


def oracle_of(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


def assert_equal(ours: Tokenizer, oracle: Any) -> None:
    """The same ids, the same texts with and without special tokens, and streams with the same text."""
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == oracle.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)
            stream = IncrementalDecoder(ours, skip)
            assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids, skip)


def next_id(directory: Path) -> int:
    return Tokenizer.from_directory(directory).vocab_size


@st.composite
def directories(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A kind of tokenizer, its tokenizer_config.json, and further files."""
    kind = draw(st.sampled_from(KINDS))
    backend = BACKENDS[kind]()
    first = max(backend.get_vocab().values()) + 1
    chosen = draw(st.lists(st.sampled_from(NEW), unique=True))
    numbers = {text: first + place for place, text in enumerate(chosen)}
    again = draw(st.lists(st.sampled_from(OLD), unique=True, max_size=2))
    numbers |= {text: backend.token_to_id(text) for text in again if backend.token_to_id(text) is not None}
    config: dict[str, Any] = {}
    files: dict[str, Any] = {}
    place = draw(st.sampled_from(["decoder", "file", "nowhere"]))
    flags = {text: {flag: draw(st.booleans()) for flag in (*FLAGS, "special")} for text in numbers}
    if kind == "byte_fallback":
        for text, some in flags.items():  # tokenizers 0.23 shows special tokens that are normalized; see below
            some["normalized"] &= text in NEW and not some["special"]
    if place == "decoder":
        config["added_tokens_decoder"] = {
            str(index): {"content": text, **flags[text]} for text, index in numbers.items()
        }
    elif place == "file":
        files["added_tokens"] = numbers
        for some in flags.values():
            some["special"] = False
    # Version 5 ignores that a token is listed as special if added_tokens_decoder describes it; and also in
    # special_tokens_map.json, if added_tokens.json describes it or the other file has a list.
    listed_in = draw(st.sampled_from(["config", "special_tokens_map"]))
    ignored = flags if place == "decoder" or (place, listed_in) == ("file", "special_tokens_map") else {}
    listable = [text for text in (*NEW, *UNNUMBERED) if text not in ignored or flags[text]["special"]]
    table = config if listed_in == "config" else files.setdefault("special_tokens_map", {})
    table["additional_special_tokens"] = draw(st.lists(st.sampled_from(listable), unique=True, max_size=3))
    named = [text for text in (*NEW, *OLD, *UNNUMBERED) if not flags.get(text, {}).get("normalized")]
    config["pad_token"] = draw(st.sampled_from([None, *named]))
    if draw(st.booleans()):
        files.setdefault("special_tokens_map", {})["pad_token"] = draw(st.sampled_from(named))
    return kind, config, files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=120)
@given(directories())
def test_all_files_count_as_in_transformers(tmp_path: Path, some: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    kind, config, files = some
    for path in tmp_path.iterdir():
        path.unlink()
    directory = write_model(tmp_path, BACKENDS[kind](), config, **files)
    assert_equal(Tokenizer.from_directory(directory), oracle_of(directory))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config",
    [
        {"extra_special_tokens": ["<|a|>", "<b>"]},
        {"extra_special_tokens": {"image_token": "<|a|>", "audio_token": "<b>"}},
        {"pad_token": {"__type": "AddedToken", "content": "<b>", "rstrip": True, "normalized": False}},
    ],
)
def test_further_ways_to_name_tokens(make_directory: Make, kind: str, config: Any) -> None:
    directory = make_directory(config, backend=kind)
    ours = Tokenizer.from_directory(directory)
    assert_equal(ours, oracle_of(directory))
    assert ours.token_text(ours.vocab_size - 1) == "<b>"
    assert ours.vocab_size - 1 in ours.special_token_ids


def test_a_chat_prompt_has_single_tokens(make_directory: Make) -> None:
    """ChatML's tokens only in added_tokens_decoder, as some checkpoints have them."""
    names = ["<|start|>", "<|end|>"]
    first = next_id(make_directory())
    flags = dict.fromkeys(FLAGS, False)
    directory = make_directory(
        {
            "added_tokens_decoder": {
                str(first + place): {"content": name, **flags, "special": True} for place, name in enumerate(names)
            },
            "eos_token": "<|end|>",
            "chat_template": "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}",
        }
    )
    ours = Tokenizer.from_directory(directory)
    ids = ours.encode_chat([{"role": "user", "content": "hello"}])
    assert ids == [first, *ours.encode("hello"), first + 1]
    assert ours.eos_token_ids == (first + 1,)
    assert ours.decode(ids) == "hello"


def test_a_listed_token_is_special_even_if_it_is_described_as_not(make_directory: Make) -> None:
    """As in transformers 4.57. Version 5 shows it."""
    first = next_id(make_directory())
    entry = {str(first): {"content": "<b>", **dict.fromkeys(FLAGS, False), "special": False}}
    ours = Tokenizer.from_directory(
        make_directory({"added_tokens_decoder": entry, "additional_special_tokens": ["<b>"]})
    )
    assert ours.decode([first]) == ""
    assert first in ours.special_token_ids


def test_a_special_token_that_is_normalized_is_not_shown(make_directory: Make) -> None:
    """As with tokenizers 0.22. Version 0.23 shows it if the normalizer changes its text."""
    entry = {"3": {"content": "<|im_start|>", "special": True, "normalized": True}}
    ours = Tokenizer.from_directory(make_directory({"added_tokens_decoder": entry}, backend="byte_fallback"))
    assert ours.decode([3]) == ""
    assert "<|im_start|>" in ours.decode([3], skip_special_tokens=False)


@pytest.mark.parametrize("place", ["decoder", "file"])
def test_a_normalized_token_that_tokenizer_json_has_too(make_directory: Make, place: str) -> None:
    """Its id is no contradiction, although tokenizers 0.23 normalizes the text of the token when it is asked for it."""
    directory = make_directory(backend="byte_fallback")
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    index = backend.get_vocab_size()
    backend.add_tokens([AddedToken("<b>", normalized=True)])
    backend.save(str(directory / "tokenizer.json"))
    entry = {"content": "<b>", **dict.fromkeys(FLAGS, False), "normalized": True}
    config = {"added_tokens_decoder": {str(index): entry}} if place == "decoder" else {}
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **config}))
    if place == "file":
        (directory / "added_tokens.json").write_text(json.dumps({"<b>": index}))
    ours = Tokenizer.from_directory(directory)
    assert ours.token_text(index) == "<b>"
    shown = IncrementalDecoder(ours, shown=frozenset({index}))
    assert shown.push(index) == "<b>"
    assert_equal(ours, oracle_of(directory))


def test_lists_of_both_files_count(make_directory: Make) -> None:
    """As in transformers 4.57. Version 5 ignores the second list, and fails on objects in it."""
    ours = Tokenizer.from_directory(
        make_directory(
            {"additional_special_tokens": ["<|a|>"]},
            special_tokens_map={"additional_special_tokens": [{"content": "<b>", "rstrip": True}]},
        )
    )
    assert [ours.token_text(index) for index in ours.encode("<|a|><b>  ")] == ["<|a|>", "<b>"]


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        ({"added_tokens_decoder": {"5000": {"content": "<x>"}}}, {}, "'<x>' has id 5000, .* the tokenizer gives it"),
        ({"added_tokens_decoder": {"4": {"content": "<x>"}}}, {}, r"'<x>' has id 4, .* belongs to '<\|im_end\|>'"),
        ({"added_tokens_decoder": {"70": {"content": "<x>"}}}, {}, "'<x>' has id 70, .* belongs to"),
        ({}, {"added_tokens": {"<s>": 5000}}, r"added_tokens\.json: .*'<s>' has id 5000, .* gives it 1"),
        ({}, {"added_tokens": {"<x>": 10**12}}, "'<x>' has id 1000000000000"),
        ({}, {"added_tokens": {"<x>": "5"}}, "the id of '<x>' must be a whole number"),
        ({}, {"added_tokens": {"<x>": -5}}, "the id of '<x>' must be a whole number"),
        ({}, {"added_tokens": {"<x>": "\ud800"}}, r"whole number, not '\\ud800'\.$"),
        ({"eos_token": "x" * 10_000}, {}, r"the eos_token 'x{90,100}\.\.\. of"),
        ({"added_tokens_decoder": ["<x>"]}, {}, "added_tokens_decoder must be an object"),
        ({"added_tokens_decoder": {"x": {"content": "<x>"}}}, {}, "added_tokens_decoder must be an object"),
        ({"added_tokens_decoder": {"1": {"content": 3}}}, {}, "added_tokens_decoder must be a token's text or an obj"),
        ({"added_tokens_decoder": {"1": {"content": "<s>", "rstrip": 1}}}, {}, "rstrip of '<s>' must be true or false"),
        ({"added_tokens_decoder": {"9" * 5000: {"content": "<x>"}}}, {}, "added_tokens_decoder must be an object"),
        ({"added_tokens_decoder": {"1": {"content": "\ud800"}}}, {}, "'.ud800' has an unpaired surrogate"),
        ({"pad_token": "\ud800"}, {}, "pad_token: '.ud800' has an unpaired surrogate"),
        ({}, {"added_tokens": {"\ud800": 5}}, "'.ud800' has an unpaired surrogate"),
        ({"additional_special_tokens": "<x>"}, {}, "additional_special_tokens must be a list"),
        ({"additional_special_tokens": [3]}, {}, "additional_special_tokens must be a token's text or an object"),
        ({}, {"special_tokens_map": {"pad_token": 3}}, r"special_tokens_map\.json: pad_token must be"),
    ],
)
def test_contradictions_are_named(make_directory: Make, config: Any, files: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_directory(make_directory(config, **files))


def test_an_id_that_would_belong_to_two_tokens_is_refused(make_directory: Make) -> None:
    """The library gives a new token the number of tokens as its id, also if the vocabulary left out another id."""
    directory = make_directory({"pad_token": "<b>"}, backend="byte_fallback")
    path = directory / "tokenizer.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = table["model"]["vocab"]
    vocabulary["▁th"] += 1
    path.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"'<b>' is not in tokenizer\.json, whose ids have gaps"):
        Tokenizer.from_directory(directory)


def test_tokens_beyond_the_models_vocabulary(make_directory: Make) -> None:
    """Such as a padding token that was added without enlarging the embedding."""
    size = next_id(make_directory())
    ours = Tokenizer.from_directory(make_directory({"pad_token": "[PAD]"}))
    assert ours.encode("[PAD]") == [size]
    assert ours.decode([size]) == ""
    assert ours.decode([size], skip_special_tokens=False) == "[PAD]"
    assert "[PAD]" in ours.to_json()
    vocabulary = Vocabulary(ours, size)
    assert vocabulary.text(vocabulary.tokens(b"[PAD]")) == b"[PAD]"


def test_structured_output_knows_the_tokens(make_directory: Make) -> None:
    first = next_id(make_directory())
    entry = {str(first): {"content": "<call>", **dict.fromkeys(FLAGS, False), "special": False}}
    ours = Tokenizer.from_directory(make_directory({"added_tokens_decoder": entry}))
    assert Vocabulary(ours, first + 10).symbol("<call>") == f"<[{first}]>"
