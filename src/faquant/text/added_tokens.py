"""Tokens that the files beside tokenizer.json name: which ones, with which properties, and adding them to a tokenizer.

The files and their precedence are those of transformers 4.57 and 5.24. If tokenizer_config.json has
added_tokens_decoder, it describes the added tokens, and special_tokens_map.json and added_tokens.json are not read. If
not, special_tokens_map.json overrides tokenizer_config.json, and tokenizer.json describes its own added tokens better
than added_tokens.json.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..checkpoint.json_object import shown
from ..checkpoint.side_files import read_side_object
from ..errors import CheckpointError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_ID = re.compile("[0-9]{1,10}")


@dataclass(frozen=True)
class StatedTokens:
    """The tokens that a directory's files name beside tokenizer.json.

    Attributes:
        named: by name, such as bos_token.
        listed: further special tokens.
        numbered: (id, token) with the id that a file states, in ascending order of ids.
        source: the file with these ids.
        overrides: whether `numbered` describes tokens of tokenizer.json better than that does.
    """

    named: Mapping[str, AddedToken]
    listed: tuple[AddedToken, ...]
    numbered: tuple[tuple[int, AddedToken], ...]
    source: Path
    overrides: bool


def read_stated_tokens(directory: Path, config: Mapping[str, Any]) -> StatedTokens:
    """Read the tokens; `config` is the content of tokenizer_config.json.

    Raises:
        CheckpointError: a file cannot be read or has the wrong shape.
    """
    path = directory / "tokenizer_config.json"
    named, listed = _special_tokens(config, path, special=False)
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict) or not all(map(_ID.fullmatch, decoder)):
            raise CheckpointError(f"{path}: added_tokens_decoder must be an object from token ids to tokens.")
        where = f"{path}: added_tokens_decoder"
        numbered = [(int(key), _token(value, where, special=False)) for key, value in decoder.items()]
    else:
        older = directory / "special_tokens_map.json"
        older_named, older_listed = _special_tokens(read_side_object(directory, older.name), older, special=True)
        named, listed = {**named, **older_named}, [*listed, *older_listed]
        path = directory / "added_tokens.json"
        special = {token.content for token in (*named.values(), *listed) if token is not None}
        numbered = [
            (_token_id(index, text, path), _made(text, str(path), special=text in special))
            for text, index in read_side_object(directory, path.name).items()
        ]
    present = {name: token for name, token in named.items() if token is not None}
    numbered.sort(key=lambda pair: pair[0])
    return StatedTokens(present, tuple(listed), tuple(numbered), path, overrides=decoder is not None)


def add_stated_tokens(backend: Tokenizer, stated: StatedTokens) -> None:
    """Add the tokens to a tokenizer that has those of tokenizer.json, and give them the properties that files state.

    Tokens without a stated id get the next free ones. A token remains special if tokenizer.json says so, and becomes
    special if it is named or listed; but with added_tokens_decoder, other added tokens of tokenizer.json stay the same.

    Raises:
        CheckpointError: a stated id contradicts tokenizer.json or is not the next free one, or a token that begins or
            ends texts is in no vocabulary.
    """
    by_id = backend.get_added_tokens_decoder()
    own = {token.content: token for token in by_id.values()}
    special = {token.content for token in (*stated.named.values(), *stated.listed)}
    special.update(text for text, token in own.items() if token.special)
    for index, token in stated.numbered:
        taken = None
        if index < 1 << 32:  # not id_to_token of the backend: from tokenizers 0.23 on, that normalizes added tokens
            taken = by_id[index].content if index in by_id else backend.model.id_to_token(index)
        if taken is not None and taken != token.content:
            raise _contradiction(stated.source, token.content, index, f"there it belongs to {shown(taken)}")
    described = {token.content: token for _, token in stated.numbered}
    if not stated.overrides:
        described |= own
    for token in described.values():
        token.special = token.special or token.content in special
    backend.add_tokens(list(described.values()))
    for index, token in stated.numbered:
        found = backend.token_to_id(token.content)
        if found != index:
            raise _contradiction(stated.source, token.content, index, f"the tokenizer gives it {found}")
    directory = stated.source.parent
    for name in ("bos_token", "eos_token"):
        if name in stated.named and backend.token_to_id(stated.named[name].content) is None:
            raise CheckpointError(
                f"{directory}: the {name} {shown(stated.named[name].content)} of tokenizer_config.json or "
                "special_tokens_map.json is not in tokenizer.json, and no file gives it an id. The files are of "
                "different models; copy all of them from one."
            )
    rest: dict[str, AddedToken] = {}
    for token in (*stated.named.values(), *stated.listed):
        if token.content not in own and token.content not in described:
            rest.setdefault(token.content, token)
    _add_unnumbered(backend, list(rest.values()), directory)


def _add_unnumbered(backend: Tokenizer, tokens: list[AddedToken], directory: Path) -> None:
    for token in tokens:
        token.special = True
    backend.add_tokens(tokens)
    for token in tokens:
        # The library counts tokens to find a free id, which fails if the vocabulary leaves ids out.
        index = backend.token_to_id(token.content)
        if index is not None and backend.model.id_to_token(index) not in (None, token.content):
            raise CheckpointError(
                f"{directory}: the special token {shown(token.content)} is not in tokenizer.json, whose ids have gaps, "
                "so it has no id. Add it to tokenizer.json."
            )


def _special_tokens(
    table: Mapping[str, Any], path: Path, special: bool
) -> tuple[dict[str, AddedToken | None], list[AddedToken]]:
    """The named tokens in a file (None: the file says that there is none), and the listed ones."""
    named: dict[str, AddedToken | None] = {}
    for name in NAMED_TOKENS:
        if name in table:
            named[name] = None if table[name] is None else _token(table[name], f"{path}: {name}", special)
    return named, [
        _token(value, f"{path}: {name}", special) for name in _LISTS for value in _values(table.get(name), path, name)
    ]


def _values(value: object, path: Path, name: str) -> Iterable[object]:
    if value is None:
        return ()
    if isinstance(value, dict) and name == "extra_special_tokens":  # transformers 4.57 and later: by name
        return value.values()
    if not isinstance(value, list):
        raise CheckpointError(f"{path}: {name} must be a list of tokens.")
    return value


def _token(value: object, where: str, special: bool) -> AddedToken:
    """The token that a file describes, as its text or as an object; `special`: what an object is in this file."""
    if isinstance(value, str):
        return _made(value, where, special=True)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f"{where} must be a token's text or an object with content.")
    flags = {name: value[name] for name in (*_FLAGS, "special") if value.get(name) is not None}
    wrong = next((name for name, flag in flags.items() if not isinstance(flag, bool)), None)
    if wrong is not None:
        raise CheckpointError(f"{where}: {wrong} of {value['content'][:80]!r} must be true or false.")
    return _made(value["content"], where, **{**flags, "special": special or flags.get("special", False)})


def _made(text: str, where: str, **flags: bool) -> AddedToken:
    # If `normalized` is not given, the library sets it for tokens that are not special.
    try:
        return AddedToken(text, **flags)
    except UnicodeEncodeError:
        raise CheckpointError(f"{where}: {text[:80]!r} has an unpaired surrogate, which no text contains.") from None


def _token_id(value: object, text: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(f"{path}: the id of {text[:80]!r} must be a whole number, not {shown(value)}.")
    return value


def _contradiction(path: Path, text: str, index: int, other: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the token {text[:80]!r} has id {index}, which contradicts tokenizer.json: {other}. The files are of "
        "different models; copy all of them from one."
    )
