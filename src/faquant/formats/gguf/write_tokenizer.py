"""The metadata `tokenizer.ggml.*` of a GGUF file for a tokenizer.json.

Only names say how llama.cpp splits text, so the tokenizer that the metadata describe is built again and compared on
texts in which the rules differ.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from ...errors import CheckpointError, UnsupportedError
from .tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, build_tokenizer

PROBES = (
    "It's 2026, isn't it? I'LL SAY 12345 times: we've paid 3,141.59 € — naïve ones, too.",
    "def f(x):\n\treturn x**2  # squares\r\n\r\n\n   two  spaces   and\ttabs \n",
    "北京 has 21,843,000 people. Привет, Мир! ½ ٣٤ e\u0301 e\u0301\u0327 🙂👩\u200d👩\u200d👧",
    "HTTPServer camelCase XMLHttp",
    " leading and trailing ",
    "don't/can't\n/path/to//file ...!!!\n\nEnd",
)
_RULES = ("smollm", "llama-bpe", "qwen2", "tekken", "gpt-2")
_ENDS = ("eos", "eot", "eom")
"""The keys of tokens at which llama.cpp ends an answer."""
_LEAST_SCORE = -1e6
"""Of sentencepiece's tokens that no merge makes."""


def tokenizer_metadata(
    described: str,
    size: int,
    bos: int | None,
    ends: Sequence[int],
    templates: Mapping[str, str],
    source: str,
) -> dict[str, Any]:
    """The metadata for a tokenizer.

    Args:
        described: the content of tokenizer.json, with all added tokens.
        size: the number of rows of the embedding.
        bos, ends: the ids of the tokens that begin a text and that end an answer.
        templates: the chat templates by name; the first one is `default`.
        source: is named in errors.

    Raises:
        CheckpointError: the tokenizer has ids that the model does not have.
        UnsupportedError: a GGUF file cannot describe the tokenizer.
    """
    table, original = json.loads(described), Tokenizer.from_str(described)
    model = table["model"]
    if model.get("type") != "BPE":
        raise UnsupportedError(f"{source}: a tokenizer of type {model.get('type')!r:.80} is not supported; BPE is.")
    is_sentencepiece = bool(model.get("byte_fallback"))
    found = {
        "tokenizer.ggml.model": "llama" if is_sentencepiece else "gpt2",
        **_tokens(table, size, source),
        **_special_ids(table, original, bos, ends, source),
        **_templates(templates),
    }
    if is_sentencepiece:
        for prefix in (True, False):
            candidate = {**found, "tokenizer.ggml.pre": "default", "tokenizer.ggml.add_space_prefix": prefix}
            if _is_same(candidate, original, table, source):
                return candidate
    else:
        found["tokenizer.ggml.merges"] = [" ".join(merge) for merge in _merges(model)]
        for rules in _RULES:
            candidate = {**found, "tokenizer.ggml.pre": rules}
            if _is_same(candidate, original, table, source):
                return candidate
    raise UnsupportedError(
        f"{source}: the tokenizer splits text by rules that are none of those that faquant writes to GGUF files "
        f"({', '.join(_RULES)}, and sentencepiece's). llama.cpp's own converter may know them."
    )


def unwritten_ends(metadata: Mapping[str, Any], ends: Sequence[int]) -> list[str]:
    """The tokens of `ends` for which tokenizer_metadata has no key."""
    return [metadata["tokenizer.ggml.tokens"][index] for index in ends[len(_ENDS) :]]


def _tokens(table: Mapping[str, Any], size: int, source: str) -> dict[str, Any]:
    """Tokens, their types, and sentencepiece's scores."""
    model = table["model"]
    names = {index: token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    if model.get("byte_fallback"):
        kinds |= {model["vocab"][f"<0x{byte:02X}>"]: BYTE for byte in range(256) if f"<0x{byte:02X}>" in model["vocab"]}
    for token in table["added_tokens"]:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if model.get("unk_token") in model["vocab"]:
        kinds[model["vocab"][model["unk_token"]]] = UNKNOWN
    if max(names) >= size:
        raise CheckpointError(f"{source} has a token with id {max(names)}, but embeddings for only {size} tokens.")
    found: dict[str, Any] = {
        "tokenizer.ggml.tokens": [names.get(index, f"[PAD{index}]") for index in range(size)],
        "tokenizer.ggml.token_type": [kinds.get(index, UNUSED) for index in range(size)],
    }
    if model.get("byte_fallback"):
        # The merges of sentencepiece are in the order of scores.
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(_merges(model)):
            ranks.setdefault(left + right, rank)
        scores = [
            (-float(ranks[names[index]]) if names.get(index) in ranks else _LEAST_SCORE)
            if kinds.get(index) == NORMAL
            else 0.0
            for index in range(size)
        ]
        found["tokenizer.ggml.scores"] = scores
    return found


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs; older files have strings with a space between."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _special_ids(
    table: Mapping[str, Any], original: Tokenizer, bos: int | None, ends: Sequence[int], source: str
) -> dict[str, Any]:
    """Ids of tokens with a meaning, and whether BOS and EOS are added to a text."""
    plain, whole = (original.encode("a", add_special_tokens=add).ids for add in (False, True))
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    before, after = whole[:at], whole[at + len(plain) :]
    if before not in ([], [bos]) or after not in ([], list(ends[:1])):
        raise UnsupportedError(f"{source}: the tokenizer adds other tokens to a text than one BOS and one EOS.")
    found: dict[str, Any] = {"tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(after)}
    unknown = table["model"]["vocab"].get(table["model"].get("unk_token"))
    ids = {"bos": bos, "unknown": unknown, **dict(zip(_ENDS, ends, strict=False))}
    return found | {f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items() if index is not None}


def _templates(templates: Mapping[str, str]) -> dict[str, Any]:
    key = "tokenizer.chat_template"
    found: dict[str, Any] = {f"{key}.{name}": text for name, text in templates.items() if name != "default"}
    if found:
        found["tokenizer.chat_templates"] = [name for name in templates if name != "default"]
    return found | ({key: templates["default"]} if "default" in templates else {})


def _is_same(metadata: Mapping[str, Any], original: Tokenizer, table: Mapping[str, Any], source: str) -> bool:
    """Whether the metadata describe a tokenizer that encodes the probes as the original does."""
    rebuilt = build_tokenizer(metadata, source)
    special = "".join(f"{token['content']}x " for token in table["added_tokens"])
    return all(rebuilt.encode(text).ids == original.encode(text).ids for text in (*PROBES, special))
