"""The tokenizer of a checkpoint (tokenizer.json): text to token ids and back."""

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ..checkpoint.files import read_object
from ..checkpoint.json_object import shown
from ..checkpoint.side_files import has_side_file, read_side_file, read_side_object
from ..errors import CheckpointError, UsageError
from .added_tokens import add_stated_tokens, read_stated_tokens
from .chat_template import ChatTemplates, load_chat_templates

_OBEDIENT_CLASSES = {
    "CodeLlamaTokenizer": True,
    "CohereTokenizer": True,
    "GPTNeoXTokenizer": False,
    "GemmaTokenizer": True,
    "LlamaTokenizer": True,
}
"""transformers' classes whose add_bos_token and add_eos_token replace the post-processor, up to version 4; and whether
they add BOS by default."""


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
    ) -> None:
        backend.no_truncation()  # tokenizer.json may contain settings from training
        backend.no_padding()
        self._backend = backend
        self._chat_templates = chat_templates
        self.special_tokens = dict(special_tokens)
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.bos_token_id = bos_token_id

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer":
        """Read the tokenizer of a Hugging Face model directory.

        Tokens that only other files name are added (`added_tokens`). The post-processor in tokenizer.json determines
        which special tokens `encode` adds, unless add_bos_token or add_eos_token in tokenizer_config.json do:
        transformers 4 obeyed them if tokenizer_class is one of Llama's, and transformers 5 does not write them. If
        there is no post-processor, add_bos_token counts for every class.

        Raises:
            CheckpointError: tokenizer.json is missing, damaged or too large, or another file contradicts it.
            UnsupportedError: a chat template is too large.
        """
        backend = _read_backend(directory)
        config = read_side_object(directory, "tokenizer_config.json")
        stated = read_stated_tokens(directory, config)
        add_stated_tokens(backend, stated)
        special = {name: token.content for name, token in stated.named.items()}
        has_config = has_side_file(directory, "config.json")
        model = read_object(directory, "config.json", last_value_counts=True) if has_config else {}
        generation = read_side_object(directory, "generation_config.json")
        eos: list[int] = []
        bos: list[int] = []
        for table, name in ((model, "config.json"), (generation, "generation_config.json")):
            eos += _token_ids(table, "eos_token_id", directory / name)
            bos += _token_ids(table, "bos_token_id", directory / name)
        bos = _ids_of(backend, special.get("bos_token")) + bos
        end = _ids_of(backend, special.get("eos_token"))
        _obey_flags(backend, config, model, {"bos": bos[:1], "eos": end})
        return cls(backend, special, eos + end, bos[0] if bos else None, load_chat_templates(directory, config))

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
    def chat_templates(self) -> dict[str, str]:
        """The source of each template by name."""
        return self._chat_templates.sources

    @property
    def chat_variables(self) -> frozenset[str]:
        """The variables that the template for requests without tools uses; empty if there is none."""
        return self._chat_templates.choose(with_tools=False).variables if self._chat_templates else frozenset()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, by default with the special tokens that the model expects, such as BOS.

        Raises:
            UsageError: `text` is not a string, or has an unpaired surrogate, which UTF-8 cannot encode.
        """
        # Unlike `encode`, encode_batch_fast releases the GIL.
        ids: list[int] = self._encoded(self._backend.encode_batch_fast, text, add_special_tokens).ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """As `encode`, with the place in `text` where each token begins: where the one before it ends, or at the
        character that it shares with that one."""
        encoded = self._encoded(self._backend.encode_batch, text, True)
        offsets, end_before = [], 0
        for begin, end in encoded.offsets:  # (0, 0) for tokens that are not in the text, such as BOS
            shares = begin < end and begin < end_before
            offsets.append(begin if shares else end_before)  # `begin` may leave out spaces
            end_before = max(end_before, end)
        return encoded.ids, offsets

    def _encoded(self, encode: Callable[..., Any], text: str, add_special_tokens: bool) -> Any:
        if not isinstance(text, str):
            raise UsageError(f"Text to encode must be a string, not a {type(text).__name__}.")
        try:
            (encoded,) = encode([text], add_special_tokens=add_special_tokens)
        except TypeError:
            half = next((place for place, mark in enumerate(text) if "\ud800" <= mark <= "\udfff"), None)
            raise UsageError(
                f"The text is not valid Unicode: character {half} is an unpaired surrogate. Remove it."
            ) from None
        return encoded

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Ids without a token (the padding of a vocabulary) have no text.

        Raises:
            UsageError: an id is negative, 2^32 or larger, or not an integer.
        """
        try:
            if skip_special_tokens and self._not_skipped:
                ids = [index for index in ids if index not in self._not_skipped]
            return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))
        except (TypeError, OverflowError):
            raise UsageError("Token ids to decode must be integers from 0 to 2^32 - 1.") from None

    def token_text(self, token_id: int) -> str | None:
        """The token as written in the vocabulary; None if there is no token with this id."""
        added = self._added.get(token_id)
        text: str | None = self._backend.id_to_token(token_id) if added is None else added.content
        return text

    def to_json(self, size: int | None = None) -> str:
        """The tokenizer in the format of tokenizer.json, with the added tokens of all files.

        size: leave out added tokens whose ids are not smaller, for a model whose vocabulary has no place for them.
        """
        text = str(self._backend.to_str())
        if size is None or self.vocab_size <= size:
            return text
        table = json.loads(text)
        table["added_tokens"] = [token for token in table["added_tokens"] if token["id"] < size]
        return json.dumps(table)

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """The ids that `decode` omits with skip_special_tokens."""
        return frozenset(index for index, token in self._added.items() if token.special)

    @cached_property
    def _added(self) -> dict[int, tokenizers.AddedToken]:
        # From tokenizers 0.23 on, id_to_token applies the normalizer to added tokens with `normalized`.
        return self._backend.get_added_tokens_decoder()

    @cached_property
    def _not_skipped(self) -> frozenset[int]:
        # tokenizers 0.23 shows special tokens with `normalized` if the normalizer changes their text.
        return frozenset(index for index in self.special_token_ids if self._backend.decode([index]))

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
        null_content: bool = False,
    ) -> str:
        """The prompt for a conversation. `variables`: additional variables for the template, such as enable_thinking.
        `null_content`: as for ChatTemplate.render.

        Raises:
            UnsupportedError: the model has no chat template, or it cannot be run.
            UsageError: the messages have the wrong shape, or the template refuses them.
        """
        template = self._chat_templates.choose(with_tools=bool(tools))
        if not isinstance(variables or {}, Mapping):
            raise UsageError("chat_template_kwargs must be a mapping from names to values.", "chat_template_kwargs")
        names = {**self.special_tokens, **(variables or {})}
        return template.render(messages, add_generation_prompt, tools, names, null_content)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        null_content: bool = False,
    ) -> list[int]:
        """Token ids of `render_chat`. No BOS is added, because the template writes it if the model needs one.

        As in transformers, the text of a special token in a message becomes that token.
        """
        return self.encode(self.render_chat(messages, add_generation_prompt, tools, variables, null_content), False)


def _read_backend(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    content = read_side_file(directory, path.name)
    if content is None:
        raise CheckpointError(
            f"{directory} has no tokenizer.json. Copy it from the original model. If that has only tokenizer.model or "
            "vocab.json, convert it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
        )
    try:
        return tokenizers.Tokenizer.from_buffer(content.removeprefix(codecs.BOM_UTF8))
    except Exception as error:  # the library raises plain Exception for all errors
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} cannot be read by the library tokenizers: {reason}.") from None


def _ids_of(backend: tokenizers.Tokenizer, text: str | None) -> list[int]:
    index = None if text is None else backend.token_to_id(text)
    return [] if index is None else [index]


def _obey_flags(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    model: Mapping[str, Any],
    ids: Mapping[str, list[int]],
) -> None:
    """Replace the post-processor if add_bos_token and add_eos_token count; `from_directory` says when they do.

    ids: of "bos" and "eos"; empty if the model has none.
    """
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if name is None and model.get("model_type") in ("llama", "mistral"):
        name = "LlamaTokenizer"
    default = _OBEDIENT_CLASSES.get(str(name).removesuffix("Fast"))
    if default is not None and ("add_bos_token" in config or "add_eos_token" in config):
        adds_bos, adds_eos = config.get("add_bos_token", default) is True, config.get("add_eos_token") is True
    elif backend.post_processor is None:
        adds_bos, adds_eos = config.get("add_bos_token") is True, False
    else:
        return
    added = [kind for kind, wanted in (("bos", adds_bos), ("eos", adds_eos)) if wanted and ids[kind]]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=[kind for kind in ("bos", "$A", "eos") if kind == "$A" or kind in added],
        special_tokens=[{"id": kind, "ids": ids[kind], "tokens": [kind]} for kind in added],
    )


def _token_ids(table: Mapping[str, Any], key: str, path: Path) -> list[int]:
    value = table.get(key)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 1 << 32 for item in values):
        raise CheckpointError(f"{path}: {key} must be a token id or a list of them, not {shown(value)}.")
    return values
