"""The tokenizer of a checkpoint (tokenizer.json): text to token ids and back."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ..checkpoint.json_object import read_json
from ..errors import CheckpointError, UsageError
from .chat_template import ChatTemplates, load_chat_templates

MAX_TOKENIZER_BYTES = 256 << 20
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A checkpoint's tokenizer and chat template.

    Attributes:
        eos_token_ids: all ids that end an answer (from config.json, generation_config.json and the tokenizer's
            eos_token).
        bos_token_id: None if the model has none.
        special_tokens: the named special tokens, such as bos_token, as text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        eos_token_ids: Sequence[int],
        bos_token_id: int | None,
        chat_templates: ChatTemplates,
        prepend_bos: bool = False,
    ) -> None:
        backend.no_truncation()  # tokenizer.json may contain settings from training
        backend.no_padding()
        self._backend = backend
        self._chat_templates = chat_templates
        self._prepend_bos = prepend_bos and bos_token_id is not None
        self.special_tokens = dict(special_tokens)
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.bos_token_id = bos_token_id

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer":
        """Read the tokenizer of a Hugging Face model directory.

        As in transformers 5, the post-processor in tokenizer.json determines which special tokens `encode` adds. If
        there is none, add_bos_token in tokenizer_config.json does.

        Raises:
            CheckpointError: tokenizer.json is missing, damaged or too large, or another file contradicts it.
            UnsupportedError: a chat template is too large.
        """
        backend = _read_backend(directory)
        config = _optional_json(directory / "tokenizer_config.json")
        special = _special_tokens(config, _optional_json(directory / "special_tokens_map.json"), directory)
        _mark_special(backend, special.values())
        eos: list[int] = []
        bos: list[int] = []
        for name in ("config.json", "generation_config.json"):
            table = _optional_json(directory / name)
            eos += _token_ids(table, "eos_token_id", directory / name)
            bos += _token_ids(table, "bos_token_id", directory / name)
        if "eos_token" in special:
            eos.append(_known_id(backend, special["eos_token"], "eos_token", directory))
        if "bos_token" in special:
            bos.insert(0, _known_id(backend, special["bos_token"], "bos_token", directory))
        return cls(
            backend,
            special,
            eos,
            bos[0] if bos else None,
            load_chat_templates(directory, config),
            prepend_bos=config.get("add_bos_token") is True and backend.post_processor is None,
        )

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus 1. A model's logits may have more columns, because of padding."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def has_chat_template(self) -> bool:
        """Whether there is a template for `render_chat`."""
        return bool(self._chat_templates)

    @property
    def chat_template(self) -> str | None:
        """The source of the template for requests without tools. Raises: UnsupportedError: there are only others."""
        return self._chat_templates.choose(with_tools=False).source if self._chat_templates else None

    @property
    def tool_template(self) -> str | None:
        """The source of the template for requests with tools; None if there is none or it does not use tools."""
        template = self._chat_templates.choose(with_tools=True) if self._chat_templates else None
        return template.source if template is not None and template.takes_tools else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, by default with the special tokens that the model expects, such as BOS.

        Raises:
            UsageError: `text` is not a string, or has an unpaired surrogate, which UTF-8 cannot encode.
        """
        if not isinstance(text, str):
            raise UsageError(f"Text to encode must be a string, not a {type(text).__name__}.")
        try:
            # Unlike `encode`, this releases the GIL.
            (encoded,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            ids: list[int] = encoded.ids
        except TypeError:
            half = next((place for place, mark in enumerate(text) if "\ud800" <= mark <= "\udfff"), None)
            raise UsageError(
                f"The text is not valid Unicode: character {half} is an unpaired surrogate. Remove it."
            ) from None
        if add_special_tokens and self._prepend_bos and self.bos_token_id is not None:
            ids.insert(0, self.bos_token_id)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Ids without a token (the padding of a vocabulary) have no text.

        Raises:
            UsageError: an id is negative, 2^32 or larger, or not an integer.
        """
        try:
            return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))
        except (TypeError, OverflowError):
            raise UsageError("Token ids to decode must be integers from 0 to 2^32 - 1.") from None

    def token_text(self, token_id: int) -> str | None:
        """The token as written in the vocabulary; None if there is no token with this id."""
        text: str | None = self._backend.id_to_token(token_id)
        return text

    def to_json(self) -> str:
        """The tokenizer in the format of tokenizer.json, with the named special tokens marked as special."""
        return str(self._backend.to_str())

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """The ids that `decode` omits with skip_special_tokens."""
        return frozenset(index for index, token in self._backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def decoder_description(self) -> Mapping[str, Any] | None:
        """The `decoder` in tokenizer.json, which joins tokens into text."""
        decoder = self._backend.decoder
        description: Mapping[str, Any] | None = json.loads(decoder.__getstate__()) if decoder is not None else None
        return description

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for a conversation. `variables`: additional variables for the template, such as enable_thinking.

        Raises:
            UnsupportedError: there is no chat template, or it cannot be run.
            UsageError: the messages have the wrong shape, or the template refuses them.
        """
        template = self._chat_templates.choose(with_tools=bool(tools))
        if not isinstance(variables or {}, Mapping):
            raise UsageError("chat_template_kwargs must be a mapping from names to values.", "chat_template_kwargs")
        names = {**self.special_tokens, **(variables or {})}
        return template.render(messages, add_generation_prompt, tools, names)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of `render_chat`. No BOS is added, because the template writes it if the model needs one.

        As in transformers, the text of a special token in a message becomes that token.
        """
        return self.encode(self.render_chat(messages, add_generation_prompt, tools, variables), False)


def _read_backend(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{directory} has no tokenizer.json. Copy it from the original model. If that has only tokenizer.model or "
            "vocab.json, convert it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
        )
    size = path.stat().st_size
    if size > MAX_TOKENIZER_BYTES:
        raise CheckpointError(f"{path} has {size} bytes; the limit is {MAX_TOKENIZER_BYTES}.")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for all errors
        raise CheckpointError(f"{path} cannot be read by the library tokenizers: {error}.") from None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path, MAX_TOKENIZER_BYTES) if path.is_file() else {}


def _special_tokens(config: Mapping[str, Any], older: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """The named special tokens; tokenizer_config.json overrides special_tokens_map.json."""
    found: dict[str, str] = {}
    for table, name in ((older, "special_tokens_map.json"), (config, "tokenizer_config.json")):
        for key in NAMED_TOKENS:
            if key not in table:
                continue
            value = table[key]
            text = value.get("content") if isinstance(value, dict) else value
            if text is None and value is None:
                found.pop(key, None)
            elif isinstance(text, str):
                found[key] = text
            else:
                raise CheckpointError(f"{directory / name}: {key} must be a token's text or an object with content.")
    return found


def _mark_special(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> None:
    """Mark the named special tokens as special, even if tokenizer.json does not, so that `decode` can skip them."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [text for text in dict.fromkeys(texts) if text not in special and backend.token_to_id(text) is not None]
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in missing])


def _known_id(backend: tokenizers.Tokenizer, text: str, name: str, directory: Path) -> int:
    index: int | None = backend.token_to_id(text)
    if index is None:
        raise CheckpointError(
            f"{directory}: the {name} {text!r} of tokenizer_config.json or special_tokens_map.json is not in "
            "tokenizer.json. The files are of different models; copy all of them from one."
        )
    return index


def _token_ids(table: Mapping[str, Any], key: str, path: Path) -> list[int]:
    value = table.get(key)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 1 << 32 for item in values):
        raise CheckpointError(f"{path}: {key} must be a token id or a list of them, not {str(value)[:80]}.")
    return values
