"""The tokenizer that a GGUF file describes in its metadata: a `tokenizers.Tokenizer` and its Hugging Face settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ...errors import CheckpointError, UnsupportedError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# How text is split into words before BPE, by `tokenizer.ggml.pre`, with the expressions of the models' own
# tokenizer.json files. Llama 3 and Qwen2 differ in how many digits they keep together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (  # Mistral's since Nemo: a capital letter starts a new word
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (  # OpenAI's since GPT-4o, and Phi-4-mini's
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "gpt-4o": _O200K,
    "llama-bpe": _WORDS.format(digits=r"\p{N}{1,3}"),
    "dbrx": _WORDS.format(digits=r"\p{N}{1,3}"),
    "qwen2": _WORDS.format(digits=r"\p{N}"),
    "tekken": _TEKKEN,
}
_GPT2 = ("gpt-2", "default")  # "default" is unspecified; it usually means GPT-2's rules
# Other names for the same rules.
_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "smaug-bpe": "dbrx",
    "refact": "smollm",  # SmolLM3, Granite 3
}
# These look up a whole word before they merge, since merges do not reach some tokens; and text begins with BOS.
_WHOLE_WORDS = ("llama-bpe", "tekken")
PRE_TOKENIZERS = ("smollm", *_SPLITS, *_ALIASES, *_GPT2)
SPACE = "\u2581"  # sentencepiece's symbol for a space
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>")


def build_tokenizer(metadata: Mapping[str, Any], source: str) -> Tokenizer:
    """Build the tokenizer described by the keys `tokenizer.ggml.*`; `source` is named in errors.

    Byte-level BPE (model "gpt2") and sentencepiece BPE with scores (model "llama") are supported. Control tokens become
    special tokens, user-defined ones plain added tokens.

    Raises:
        CheckpointError: the tokenizer is missing or contradicts itself.
        UnsupportedError: its kind, or the way it splits text into words, is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens", source)
    types = _numbers(metadata, "tokenizer.ggml.token_type", source, len(tokens)) or [NORMAL] * len(tokens)
    if len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{source}: its {len(tokens)} tokens have duplicates.")
    vocabulary = {
        token: index
        for index, token in enumerate(tokens)
        # llama.cpp names the spare rows of the embedding so; text must never be encoded as one of them.
        if not (types[index] == UNUSED and token == f"[PAD{index}]")
    }
    if kind == "gpt2":
        tokenizer = _byte_level_bpe(metadata, vocabulary, source)
    elif kind == "llama":
        tokenizer = _sentencepiece_bpe(metadata, tokens, types, vocabulary, source)
    else:
        raise UnsupportedError(
            f"{source}: tokenizer model {kind!r} is not supported; byte-level BPE (gpt2) and sentencepiece BPE (llama) "
            "are."
        )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=types[index] == CONTROL, normalized=False)
            for token, index in vocabulary.items()
            if token and (types[index] in (CONTROL, USER_DEFINED) or (kind == "llama" and types[index] == UNKNOWN))
        ]
    )
    _add_template(tokenizer, metadata, tokens, source)
    return tokenizer


def tokenizer_config(metadata: Mapping[str, Any], max_position: int, source: str) -> dict[str, Any]:
    """The content of tokenizer_config.json: token names, chat template, `max_position` tokens of context."""
    tokens = _strings(metadata, "tokenizer.ggml.tokens", source)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_position,
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = token_id(metadata, key, source)
        if index is not None:
            config[f"{name}_token"] = tokens[index]
    if templates := _chat_templates(metadata, source):
        named = [{"name": name, "template": template} for name, template in templates.items()]
        config["chat_template"] = named if set(templates) != {"default"} else templates["default"]
    return config


def _chat_templates(metadata: Mapping[str, Any], source: str) -> dict[str, str]:
    """The chat templates by name: `default`, and in some models others, such as tool_use."""
    key = "tokenizer.chat_template"
    found: dict[str, str] = {}
    for name, text in metadata.items():
        if name == key or name.startswith(f"{key}."):
            if not isinstance(text, str):
                raise CheckpointError(f"{source}: {name} must be a string.")
            found[name[len(key) + 1 :] or "default"] = text
    return found


def token_id(metadata: Mapping[str, Any], name: str, source: str) -> int | None:
    """The id under `tokenizer.ggml.{name}_token_id`, or None if the file has none.

    Raises:
        CheckpointError: it is outside the vocabulary.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None or value == 0xFFFFFFFF:  # means "none" in llama.cpp
        return None
    tokens = _strings(metadata, "tokenizer.ggml.tokens", source)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
        raise CheckpointError(f"{source}: {key} ({value!r}) is not one of its {len(tokens)} tokens.")
    return value


def end_ids(metadata: Mapping[str, Any], source: str) -> list[int]:
    """The ids of the tokens that end an answer, EOS first.

    Many files only specify the end of a text; the end of a turn in the chat template is then found by its name.
    """
    tokens = _strings(metadata, "tokenizer.ggml.tokens", source)
    named = [token_id(metadata, name, source) for name in ("eos", "eot", "eom")]
    template = str(metadata.get("tokenizer.chat_template", ""))
    turn_ends = [tokens.index(name) for name in TURN_ENDS if name in template and name in tokens]
    return list(dict.fromkeys([*(index for index in named if index is not None), *turn_ends]))


def _pre(metadata: Mapping[str, Any]) -> Any:
    name = metadata.get("tokenizer.ggml.pre")
    return _ALIASES.get(name, name) if isinstance(name, str) else None


def _byte_level_bpe(metadata: Mapping[str, Any], vocabulary: dict[str, int], source: str) -> Tokenizer:
    pre = _pre(metadata)
    if pre not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"{source} splits text into words by the rules {pre!r} (tokenizer.ggml.pre), which are not supported; "
            f"these are: {', '.join(PRE_TOKENIZERS)}. Start from the model's Hugging Face directory instead."
        )
    merges = []
    for merge in _strings(metadata, "tokenizer.ggml.merges", source):
        left, _, right = merge.partition(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise CheckpointError(f"{source}: the merge {merge!r} has tokens that are not in the vocabulary.")
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in _WHOLE_WORDS))
    prefix = _flag(metadata, "tokenizer.ggml.add_space_prefix", False, source)
    if pre in _SPLITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
            ]
        )
    elif pre == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=prefix)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], vocabulary: dict[str, int], source: str
) -> Tokenizer:
    """Sentencepiece merges the neighbors whose union has the best score. As ranked merges, these are all ways to split
    a token into two tokens, best score first."""
    scores = _numbers(metadata, "tokenizer.ggml.scores", source, len(tokens))
    if scores is None:
        raise CheckpointError(f"{source} has no tokenizer.ggml.scores, which a sentencepiece tokenizer needs.")
    if any(f"<0x{byte:02X}>" not in vocabulary for byte in range(256)):
        raise UnsupportedError(f"{source}: a sentencepiece tokenizer without a token for every byte is not supported.")
    pieces = {token: index for token, index in vocabulary.items() if types[index] == NORMAL}
    ranked = []
    for token, index in pieces.items():
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        ranked += [
            (-scores[index], index, pieces[left], pieces[right])
            for left, right in cuts
            if left in pieces and right in pieces
        ]
    merges = [(tokens[left], tokens[right]) for _, _, left, right in sorted(ranked)]
    unknown = token_id(metadata, "unknown", source)
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = _flag(metadata, "tokenizer.ggml.add_space_prefix", True, source)
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace] if prefix else [replace])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _add_template(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str], source: str) -> None:
    # Defaults as in llama.cpp.
    starts = metadata.get("tokenizer.ggml.model") == "llama" or _pre(metadata) in _WHOLE_WORDS
    ends: dict[str, tuple[str, int] | None] = {}
    for name, default in (("bos", starts), ("eos", False)):
        index = token_id(metadata, name, source)
        wanted = _flag(metadata, f"tokenizer.ggml.add_{name}_token", default, source)
        if wanted and index is None:
            raise CheckpointError(f"{source} sets add_{name}_token, but has no {name} token.")
        ends[name] = (tokens[index], index) if wanted and index is not None else None
    bos, eos = ends["bos"], ends["eos"]
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=_template(bos, eos, 0),
            pair=_template(bos, eos, 0) + _template(bos, eos, 1),
            special_tokens=[end for end in (bos, eos) if end],
        )


def _template(bos: tuple[str, int] | None, eos: tuple[str, int] | None, segment: int) -> list[str]:
    names = [bos[0] if bos else "", "$A" if segment == 0 else "$B", eos[0] if eos else ""]
    return [f"{name}:{segment}" for name in names if name]


def _flag(metadata: Mapping[str, Any], key: str, default: bool, source: str) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{source}: {key} must be true or false, not {value!r}.")
    return value


def _strings(metadata: Mapping[str, Any], key: str, source: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise CheckpointError(f"{source} has no list of strings {key}, so it has no tokenizer that can be converted.")
    return value


def _numbers(metadata: Mapping[str, Any], key: str, source: str, count: int) -> list[Any] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count or isinstance(value[0], str):
        raise CheckpointError(f"{source}: {key} must hold one number for each of the {count} tokens.")
    return value
