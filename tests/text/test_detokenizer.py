"""Streaming detokenization: for any tokens, the pieces together equal the decoding of all."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faquant.text.detokenizer import IncrementalDecoder
from faquant.text.tokenizer import Tokenizer

Make = Callable[..., Path]
KEEP = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}
TEXTS = st.one_of(st.text(max_size=40), st.text("th e😀你é\ufffd\n", max_size=40))


def pieces_of(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, skip)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


@pytest.mark.parametrize("skip", [True, False])
@given(data=st.data())
@settings(max_examples=200, **KEEP)
def test_any_tokens_equal_the_decoding_of_all(any_tokenizer: Tokenizer, skip: bool, data: st.DataObject) -> None:
    tokenizer = any_tokenizer
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=60))
    assert "".join(pieces_of(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@given(text=TEXTS)
@settings(max_examples=200, **KEEP)
def test_any_text_equals_the_decoding_of_all(any_tokenizer: Tokenizer, text: str) -> None:
    tokenizer = any_tokenizer
    ids = tokenizer.encode(text)
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@given(data=st.binary(max_size=80))
@settings(max_examples=300, **KEEP)
def test_any_bytes_equal_the_decoding_of_all(byte_level_tokenizer: Tokenizer, data: bytes) -> None:
    tokenizer = byte_level_tokenizer
    single = [tokenizer.encode(bytes([byte]).decode("latin-1"))[-1] for byte in range(128)]
    lead = {0xE4: tokenizer.encode("你")[0]}
    ids = [single[byte] if byte < 128 else lead.get(byte, 5 + byte) for byte in data]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def test_no_half_character_is_shown(byte_level_tokenizer: Tokenizer) -> None:
    tokenizer = byte_level_tokenizer
    text = "😀é𝄞你 done"
    ids = tokenizer.encode(text)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces


def test_text_is_returned_as_soon_as_it_is_final(byte_level_tokenizer: Tokenizer) -> None:
    tokenizer = byte_level_tokenizer
    ids = tokenizer.encode("The quick brown fox")
    decoder = IncrementalDecoder(tokenizer)
    for count, token in enumerate(ids, start=1):
        decoder.push(token)
        assert decoder._window == [], count


def test_spaces_of_sentencepiece(make_directory: Make) -> None:
    tokenizer = Tokenizer.from_directory(make_directory(backend="byte_fallback"))
    space = tokenizer.encode("a")[1]
    assert tokenizer.token_text(space) == "▁"
    word = tokenizer.encode("th")[1]
    assert pieces_of(tokenizer, [1, space, space, word, word]) == ["", "", " ", " th", " th", ""]


def test_a_wrong_byte_at_the_end_of_a_run(make_directory: Make) -> None:
    tokenizer = Tokenizer.from_directory(make_directory(backend="byte_fallback"))
    ids = [5 + byte for byte in b"\xe4\xbd\xa0"]
    letter = tokenizer.encode("a", add_special_tokens=False)[1]
    assert pieces_of(tokenizer, [*ids, letter]) == ["", "", "", "你a", ""]
    assert pieces_of(tokenizer, [*ids, 5 + 0xFF, letter]) == ["", "", "", "", "\ufffd\ufffd\ufffd\ufffda", ""]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_the_work_for_a_token_stays_bounded(name: str, make_directory: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_directory(make_directory(backend=name))
    decoded: list[int] = []
    plain = tokenizer.decode

    def counting(ids: list[int], skip: bool = True) -> str:
        decoded.append(len(ids))
        return plain(ids, skip)

    monkeypatch.setattr(tokenizer, "decode", counting)
    invalid = next(index for index in range(tokenizer.vocab_size) if plain([index]) == "\ufffd")
    letter = tokenizer.encode("a", add_special_tokens=False)[-1]
    ids = [invalid] * 5000 + [letter] * 1000 + [invalid] * 1000
    assert "".join(pieces_of(tokenizer, ids)) == plain(ids)
    assert sum(decoded) < 40 * len(ids)
