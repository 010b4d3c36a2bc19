"""Calibration texts: the built-in set, the user's files, and their tokenization."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from ..errors import CheckpointError, UnsupportedError, UsageError

MAX_FILE_BYTES = 64 << 20
PIECE_CHARS = 1 << 16  # longer texts are tokenized in pieces: a tokenizer needs about 100 bytes of memory per token
ROLES = ("system", "user", "assistant", "tool")
KINDS = ("text", "messages", "token_ids")
MAX_TOKEN_ID = (1 << 31) - 1


class CalibrationTokenizer(Protocol):
    """The interface of a tokenizer for calibration."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, by default with BOS and other special tokens that the model expects."""

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """`messages` in the model's chat template, BOS included.

        Raises:
            UnsupportedError: the model has no template, or it cannot be run.
            UsageError: the template refuses the messages.
        """


@dataclass(frozen=True)
class CalibrationRecord:
    """One sample: either a text, a conversation, or token ids.

    A message is {"role": one of ROLES, "content": its text}; tool calls are part of the content, as the model writes
    them.
    origin: file and line, for errors. plain_if_refused: if the model's chat template refuses the messages (many have no
        tool role), use plain lines instead of raising an error; for the built-in set, which users cannot fix.

    Raises:
        UsageError: not exactly one of the three is given, or it is empty or malformed.
    """

    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    token_ids: tuple[int, ...] | None = None
    origin: str = field(default="calibration record", compare=False)
    plain_if_refused: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise UsageError(f"{self.origin}: give exactly one of text, messages and token_ids; found {found}.")
        if self.text is not None:
            _check_text(self.text, "text", self.origin)
            if not self.text.strip():
                raise UsageError(f"{self.origin}: text is empty. Remove the record or fill it.")
        if self.messages is not None:
            _check_messages(self.messages, self.origin)
        if self.token_ids is not None:
            _check_token_ids(self.token_ids, self.origin)


def builtin_records() -> list[CalibrationRecord]:
    """The built-in calibration set: texts by the project, under the project's license.

    Raises:
        CheckpointError: the installation is damaged.
    """
    name = "faquant's built-in calibration.jsonl"
    try:
        data = resources.files(__package__).joinpath("calibration.jsonl").read_bytes()
        return [replace(record, plain_if_refused=True) for record in _parse_jsonl(_decode(data, name), name)]
    except (OSError, UsageError) as error:
        raise CheckpointError(f"The built-in calibration set is damaged: {error} Reinstall faquant.") from None


def read_records(path: Path) -> list[CalibrationRecord]:
    """Read the user's calibration file.

    A .txt file is one text; a long one is split between paragraphs into pieces of at most PIECE_CHARS characters.
    In a .jsonl file, each line is an object with exactly one of text (a string), messages (a list of objects with role
    and content) and token_ids (a list of whole numbers); blank lines are skipped.

    Raises:
        UsageError: the file is missing, too large, empty, not UTF-8 or of another type, or a line is malformed.
    """
    kind = path.suffix.lower()
    if kind not in (".txt", ".jsonl"):
        raise UsageError(
            f"{path}: calibration data must be a .txt file (one text) or a .jsonl file (one JSON object per line)."
        )
    text = _decode(_read_bytes(path), str(path))
    if not text.strip():
        raise UsageError(f"{path} has no text. Pass a file with calibration texts, or use the built-in set.")
    if kind == ".jsonl":
        return _parse_jsonl(text, str(path))
    pieces = list(_pieces(text))
    return [
        CalibrationRecord(text=piece, origin=str(path) if len(pieces) == 1 else f"{path}, piece {number}")
        for number, piece in enumerate(pieces, 1)
        if piece.strip()
    ]


def tokenize_records(
    records: Sequence[CalibrationRecord],
    tokenizer: CalibrationTokenizer | None,
    vocab_size: int,
    max_tokens_each: int,
    context: int | None = None,
) -> list[list[int]]:
    """Token ids of `records`, in order. Every sequence has between 1 and `max_tokens_each` ids; given token ids, which
    are never split, have up to `context` (None: the same).

    Longer texts and conversations become several consecutive sequences, so nothing is dropped. If the model has no
    usable chat template, messages become lines of "role: content".

    Raises:
        UsageError: there are no records, a limit is not positive, token ids are too many or outside the vocabulary, the
            chat template refuses messages, or there is text but no tokenizer.
        CheckpointError: the tokenizer yields ids that the model does not have.
    """
    if not records:
        raise UsageError("There are no calibration records. Pass a file with records, or use the built-in set.")
    if vocab_size < 1 or max_tokens_each < 1:
        raise UsageError(
            f"vocab_size ({vocab_size}) and the tokens of a calibration sequence ({max_tokens_each}) "
            "must be at least 1."
        )
    result: list[list[int]] = []
    for record in records:
        if record.token_ids is not None:
            result.append(_given_ids(record.token_ids, record.origin, vocab_size, context or max_tokens_each))
            continue
        if tokenizer is None:
            raise UsageError(
                f"{record.origin}: this is text, but the model has no tokenizer.json. Add that file to its directory, "
                'or pass token ids: a .jsonl file with lines {"token_ids": […]}.'
            )
        ids = _encode(record, tokenizer)
        if not ids:
            raise UsageError(f"{record.origin}: the tokenizer produces no tokens for it. Remove the record.")
        if min(ids) < 0 or max(ids) >= vocab_size:
            wrong = max(ids) if max(ids) >= vocab_size else min(ids)
            raise CheckpointError(
                f"{record.origin}: the tokenizer produces id {wrong}, but the model's vocabulary has {vocab_size} "
                "entries. The tokenizer's files do not belong to this model."
            )
        result += [ids[start : start + max_tokens_each] for start in range(0, len(ids), max_tokens_each)]
    return result


def fingerprint(ids: Sequence[Sequence[int]]) -> str:
    """SHA-256, in hex, over the sequences: the length of each, then its ids, as little-endian 64-bit integers."""
    digest = hashlib.sha256()
    for sequence in ids:
        digest.update(struct.pack(f"<{len(sequence) + 1}q", len(sequence), *sequence))
    return digest.hexdigest()


def _encode(record: CalibrationRecord, tokenizer: CalibrationTokenizer) -> list[int]:
    text, templated = (record.text, False) if record.text is not None else _render(record, tokenizer)
    ids: list[int] = []
    for number, piece in enumerate(_pieces(text)):
        # BOS comes only at the beginning, and templates write their own.
        ids += tokenizer.encode(piece, add_special_tokens=number == 0 and not templated)
    return ids


def _render(record: CalibrationRecord, tokenizer: CalibrationTokenizer) -> tuple[str, bool]:
    """The conversation as text, and whether it was rendered by the chat template."""
    messages = record.messages or ()
    try:
        return tokenizer.render_chat(messages, add_generation_prompt=False), True
    except UnsupportedError:
        pass
    except UsageError as error:
        if not record.plain_if_refused:
            raise UsageError(f"{record.origin}: {error} Change the messages, or pass them as text.") from None
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages) + "\n", False


def _given_ids(ids: tuple[int, ...], origin: str, vocab_size: int, limit: int) -> list[int]:
    if max(ids) >= vocab_size:
        raise UsageError(
            f"{origin}: token id {max(ids)} is beyond the model's vocabulary of {vocab_size}. "
            "They are from another model's tokenizer."
        )
    if len(ids) > limit:
        raise UsageError(
            f"{origin}: {len(ids)} token ids are more than the limit of {limit} per calibration sequence. "
            "Split them into several lines."
        )
    return list(ids)


def _pieces(text: str) -> Iterator[str]:
    """Split `text` into pieces of at most PIECE_CHARS characters whose concatenation is `text`.

    Splits after a blank line, else after a line, else before a space, because tokens do not cross these.
    """
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = start + PIECE_CHARS
        cut = text.rfind("\n\n", start, end) + 2
        if cut <= start + 2:
            cut = text.rfind("\n", start, end) + 1
        if cut <= start + 1:
            cut = text.rfind(" ", start + 1, end)
        if cut <= start:
            cut = end
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file. Pass a .txt or .jsonl file.")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist. Pass a .txt or .jsonl file, or use the built-in set.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UsageError(f"{path} cannot be read: {error}.") from None
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(
            f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB. Calibration needs a few thousand tokens: use a sample."
        )
    return data


def _decode(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{source}, line {line}: this is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(f"{source}, line {line}: there is a NUL character. Save the file as plain UTF-8 text.")
    return text


def _parse_jsonl(text: str, source: str) -> list[CalibrationRecord]:
    records = []
    # Not splitlines(): JSON strings may contain U+2028 and others that do not end a line of JSON.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            records.append(_parse_line(line, f"{source}, line {number}"))
    if not records:
        raise UsageError(f"{source} has no records. Each line must be a JSON object with text, messages or token_ids.")
    return records


def _parse_line(line: str, origin: str) -> CalibrationRecord:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise UsageError(f"{origin}: duplicate key {_show(key)}. Keep one.")
            result[key] = value
        return result

    try:
        value = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        # A JSONDecodeError says "line 1", which could be mistaken for a line of the file.
        fault = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UsageError(f"{origin}: this is not JSON ({fault}). Each line must be a complete JSON object.") from None
    if not isinstance(value, dict):
        raise UsageError(f'{origin}: each line must be a JSON object such as {{"text": "…"}}, not {_show(value)}.')
    unknown = [key for key in value if key not in KINDS]
    if unknown:
        raise UsageError(f"{origin}: unknown key {_show(unknown[0])}. Give exactly one of {', '.join(KINDS)}.")
    for key, kind in (("text", str), ("messages", list), ("token_ids", list)):
        if key in value and not isinstance(value[key], kind):
            wanted = "a string" if kind is str else "a list"
            raise UsageError(f"{origin}: {key} must be {wanted}, not {_show(value[key])}.")
    return CalibrationRecord(
        text=value.get("text"),
        messages=tuple(value["messages"]) if "messages" in value else None,
        token_ids=tuple(value["token_ids"]) if "token_ids" in value else None,
        origin=origin,
    )


def _check_text(value: object, what: str, origin: str) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{origin}: {what} must be a string, not {_show(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{origin}: {what} has an unpaired surrogate at character {error.start + 1}. "
            "Write the character itself, or both surrogates."
        ) from None


def _check_messages(messages: tuple[dict[str, str], ...], origin: str) -> None:
    if not messages:
        raise UsageError(f"{origin}: messages is empty. Remove the record or fill it.")
    for number, message in enumerate(messages, 1):
        what = f"message {number}"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise UsageError(
                f"{origin}: {what} must be an object with only role and content, not {_show(message)}. "
                "Write tool calls into the content."
            )
        if not isinstance(message["role"], str) or message["role"] not in ROLES:
            raise UsageError(f"{origin}: {what}: role must be {', '.join(ROLES)}, not {_show(message['role'])}.")
        _check_text(message["content"], f"{what}: content", origin)
    if not any(message["content"].strip() for message in messages):
        raise UsageError(f"{origin}: no message has any content. Remove the record or fill it.")


def _check_token_ids(ids: tuple[int, ...], origin: str) -> None:
    if not ids:
        raise UsageError(f"{origin}: token_ids is empty. Remove the record or fill it.")
    for position, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= MAX_TOKEN_ID:
            raise UsageError(
                f"{origin}: token_ids[{position}] must be a whole number from 0 to {MAX_TOKEN_ID}, not {_show(token)}."
            )


def _show(value: object) -> str:
    """`value` for an error message, shortened."""
    try:
        shown = ascii(value)
    except (ValueError, RecursionError):  # thousands of digits or brackets
        return f"such a {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:57] + "..."
