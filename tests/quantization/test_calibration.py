"""The calibration set and its loader: properties, hostile files, and requirements of the built-in set."""

import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faquant.errors import CheckpointError, UnsupportedError, UsageError
from faquant.quantization import calibration
from faquant.quantization.calibration import (
    CalibrationRecord,
    builtin_records,
    fingerprint,
    read_records,
    tokenize_records,
)


class ByteTokenizer:
    """One token per byte, after `bos` if there is one; the chat template raises `fault`."""

    def __init__(self, fault: Exception | None = None, bos: list[int] | None = None) -> None:
        self.fault = fault
        self.bos = bos or []

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return (self.bos if add_special_tokens else []) + list(text.encode())

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        if self.fault is not None:
            raise self.fault
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return text + "<assistant>" * add_generation_prompt


NO_TEMPLATE = UnsupportedError("no chat template")
REFUSAL = UsageError("The template knows no tool role.")


def write(folder: Path, content: str | bytes, name: str = "c.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def body(record: CalibrationRecord) -> str:
    return record.text or "\n".join(message["content"] for message in record.messages or ())


# The built-in set


def test_builtin_is_varied_and_of_the_promised_size() -> None:
    records = builtin_records()
    texts = [body(record) for record in records]
    assert 40 <= len(records) <= 60
    assert 30_000 <= sum(len(text.encode()) for text in texts) <= 50_000
    assert sum(record.messages is not None for record in records) >= 5
    assert len({text[:40] for text in texts}) == len(texts)
    long = [text for text in texts if len(text) >= 3500 or sum("一" <= c <= "鿿" for c in text) >= 550]
    assert len(long) >= 4
    assert any(len(text) < 80 for text in texts)
    letters = "".join(texts)
    for script in ("CJK", "CYRILLIC", "HIRAGANA", "ARABIC", "DEVANAGARI", "HANGUL"):
        assert sum(unicodedata.name(letter, "").startswith(script) for letter in letters) >= 60, script
    code = ("def ", "#include", "template <", "fn ", "useState", "GROUP BY", "#!/bin/sh", "<html", "<?xml")
    for needle in (*code, "\\frac", "|---", "<tool_call>", "From: ", " ERROR ", "ß", "è", "¡", "ã"):
        assert needle in letters, needle
    roles = {message["role"] for record in records for message in record.messages or ()}
    assert roles == set(calibration.ROLES)
    assert any(is_json(text) for text in texts)


def is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def test_builtin_holds_no_markup_of_a_model_and_no_traces_of_a_machine() -> None:
    letters = "\n".join(body(record) for record in builtin_records())
    assert not re.search(r"<\|\w+\|>|</?s>|\[/?INST\]|/home/|/tmp/|C:\\\\", letters)
    assert not re.search(r"copyright|all rights reserved|\(c\)|SPDX|GPL", letters, re.IGNORECASE)


def test_builtin_stands_under_the_projects_license() -> None:
    root = Path(__file__).parents[2]
    assert 'license = "Apache-2.0"' in (root / "pyproject.toml").read_text(encoding="utf-8")


def test_held_out_texts_share_nothing_with_the_calibration_set() -> None:
    folder = Path(calibration.__file__).parents[1] / "evaluation" / "texts"
    held_out = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    assert set(held_out) == {"prose", "code", "chinese", "tools"}
    width = 40
    seen = set()
    for record in builtin_records():
        text = " ".join(body(record).split())
        seen |= {text[start : start + width] for start in range(len(text) - width + 1)}
    for name, text in held_out.items():
        flat = " ".join(text.split())
        assert not any(flat[start : start + width] in seen for start in range(len(flat) - width + 1)), name
        assert 1500 <= len(flat) <= 14_000


def test_builtin_tokenizes_with_and_without_a_template() -> None:
    for fault in (None, NO_TEMPLATE, REFUSAL):
        ids = tokenize_records(builtin_records(), ByteTokenizer(fault), 256, 512)
        assert all(1 <= len(sequence) <= 512 for sequence in ids)
        assert len(fingerprint(ids)) == 64


def test_a_damaged_installation_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibration.resources, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="Reinstall faquant"):
        builtin_records()
    write(tmp_path, '{"txet": "a"}', "calibration.jsonl")
    with pytest.raises(CheckpointError, match=r"line 1.*txet.*Reinstall faquant"):
        builtin_records()


# Reading


def test_jsonl_reads_all_three_kinds(tmp_path: Path) -> None:
    lines = [
        {"text": "one\u2028line"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]},
        {"token_ids": [3, 0, 7]},
    ]
    content = "\ufeff" + "\r\n\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\r\n"
    records = read_records(write(tmp_path, content))
    assert [record.text for record in records] == ["one\u2028line", None, None]
    assert records[1].messages == tuple(lines[1]["messages"])  # type: ignore[arg-type]
    assert records[2].token_ids == (3, 0, 7)
    assert records[2].origin.endswith("c.jsonl, line 5")
    assert tokenize_records(records[1:], ByteTokenizer(), 256, 99) == [list(b"<user>hi<assistant>"), [3, 0, 7]]
    assert tokenize_records(records[1:2], ByteTokenizer(NO_TEMPLATE), 256, 99) == [list(b"user: hi\nassistant: \n")]


def test_txt_is_one_text(tmp_path: Path) -> None:
    records = read_records(write(tmp_path, "A.\n\nB.\n", "c.TXT"))
    assert [record.text for record in records] == ["A.\n\nB.\n"]


def test_long_txt_is_cut_between_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PIECE_CHARS", 12)
    text = "aaa bbb.\n\nccc.\n\nddddddddddddddddddddd eee fff ggg hhh\niii\n"
    records = read_records(write(tmp_path, text, "c.txt"))
    assert records[0].text == "aaa bbb.\n\n"
    assert "".join(record.text or "" for record in records) == text
    assert [record.origin for record in records] == [
        f"{tmp_path / 'c.txt'}, piece {number}" for number in range(1, len(records) + 1)
    ]


@given(st.text(alphabet="ab \n", max_size=80), st.integers(1, 9))
def test_pieces_lose_nothing(text: str, width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "PIECE_CHARS", width)
        pieces = list(calibration._pieces(text))
    assert "".join(pieces) == text
    assert all(1 <= len(piece) <= width for piece in pieces)


HOSTILE_LINES = [
    ("not json", "line 2: this is not JSON .*column"),
    ('{"text": "a"', "not JSON"),
    ("[" * 100_000, "line 2: "),
    ('{"token_ids": ' + "[" * 400 + "]" * 400 + "}", r"token_ids\[0\]"),
    ('{"token_ids": [' + "9" * 5000 + "]}", "line 2: "),
    ('"text"', "must be a JSON object"),
    ("[1, 2]", "must be a JSON object"),
    ("null", "must be a JSON object"),
    ("{}", "exactly one of text, messages and token_ids; found none"),
    ('{"text": "a", "token_ids": [1]}', "exactly one .* found text and token_ids"),
    ('{"text": "a", "text": "b"}', "duplicate key 'text'"),
    ('{"prompt": "a"}', "unknown key 'prompt'"),
    ('{"text": "a", "weight": 1}', "unknown key 'weight'"),
    ('{"text": null}', "text must be a string, not None"),
    ('{"text": 5}', "text must be a string, not 5"),
    ('{"text": ""}', "text is empty"),
    ('{"text": " \\n\\t"}', "text is empty"),
    ('{"text": "a\\ud800b"}', "unpaired surrogate at character 2"),
    ('{"messages": {}}', "messages must be a list"),
    ('{"messages": []}', "messages is empty"),
    ('{"messages": ["hi"]}', "message 1 must be an object"),
    ('{"messages": [{"role": "user"}]}', "message 1 must be an object with only role and content"),
    ('{"messages": [{"role": "user", "content": "a", "name": "b"}]}', "only role and content"),
    ('{"messages": [{"role": "User", "content": "a"}]}', "role must be system, user, assistant, tool, not 'User'"),
    ('{"messages": [{"role": ["user"], "content": "a"}]}', "role must be"),
    ('{"messages": [{"role": "user", "content": ["a"]}]}', "content must be a string"),
    ('{"messages": [{"role": "user", "content": "\\udfff"}]}', "surrogate"),
    ('{"messages": [{"role": "user", "content": " "}]}', "no message has any content"),
    ('{"token_ids": "1 2"}', "token_ids must be a list"),
    ('{"token_ids": []}', "token_ids is empty"),
    ('{"token_ids": [1, -1]}', r"token_ids\[1\] must be a whole number from 0"),
    ('{"token_ids": [1, 2.0]}', r"token_ids\[1\]"),
    ('{"token_ids": [true]}', r"token_ids\[0\]"),
    ('{"token_ids": [[1]]}', r"token_ids\[0\]"),
    ('{"token_ids": [NaN]}', r"token_ids\[0\]"),
    ('{"token_ids": [2147483648]}', r"token_ids\[0\]"),
]


@pytest.mark.parametrize(("line", "message"), HOSTILE_LINES, ids=[line[:40] for line, _ in HOSTILE_LINES])
def test_malformed_lines_are_refused_with_their_place(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_records(write(tmp_path, f'{{"text": "fine"}}\n{line}\n{{"text": "fine"}}\n'))
    assert str(caught.value).startswith(f"{tmp_path / 'c.jsonl'}, line 2: ")
    assert len(str(caught.value)) < len(str(tmp_path)) + 400


@pytest.mark.parametrize("name", ["c.jsonl", "c.txt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no text"),
        (b"\xef\xbb\xbf", "has no text"),
        (b" \n\r\n\t", "has no text"),
        (b'{"text": "a"}\n{"text": "\xff"}', "line 2: this is not UTF-8"),
        ("text".encode("utf-16"), "line 1: this is not UTF-8"),
        (b"ok\nt\0e\0x\0t\0", "line 2: there is a NUL character"),
    ],
)
def test_files_without_usable_text_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_records(write(tmp_path, content, name))


def test_files_that_are_no_calibration_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.txt file .* or a \.jsonl file"):
        read_records(write(tmp_path, "{}", "c.json"))
    with pytest.raises(UsageError, match="does not exist"):
        read_records(tmp_path / "missing.jsonl")
    with pytest.raises(UsageError, match=r"cannot be read|does not exist"):
        read_records(tmp_path / "nul\0.txt")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UsageError, match="is not a file"):
        read_records(tmp_path / "folder.jsonl")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UsageError, match="is not a file"):
        read_records(tmp_path / "pipe.txt")


def test_an_enormous_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    with path.open("wb") as file:
        file.truncate(calibration.MAX_FILE_BYTES + 1)
    with pytest.raises(UsageError, match="larger than 64 MiB"):
        read_records(path)


def test_a_line_with_very_many_keys_is_refused_quickly(tmp_path: Path) -> None:
    line = "{" + ", ".join(f'"k{number}": 0' for number in range(200_000)) + "}"
    with pytest.raises(UsageError, match="unknown key 'k0'"):
        read_records(write(tmp_path, line))


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("c.txt", "c.jsonl"):
        path = write(folder, content, name)
        try:
            records = read_records(path)
        except UsageError:
            continue
        assert records


def test_a_record_is_exactly_one_thing() -> None:
    with pytest.raises(UsageError, match="none of them"):
        CalibrationRecord()
    with pytest.raises(UsageError, match="text and messages"):
        CalibrationRecord(text="a", messages=({"role": "user", "content": "a"},))
    assert CalibrationRecord(text="a", origin="x") == CalibrationRecord(text="a")


# Tokens


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5), st.integers(1, 7))
def test_texts_are_split_and_nothing_is_lost(texts: list[str], limit: int) -> None:
    ids = tokenize_records([CalibrationRecord(text=text) for text in texts], ByteTokenizer(), 256, limit)
    assert [token for sequence in ids for token in sequence] == list("".join(texts).encode())
    assert all(1 <= len(sequence) <= limit for sequence in ids)
    assert len(ids) == sum(-(-len(text.encode()) // limit) for text in texts)


def test_token_ids_pass_unchanged_or_are_refused() -> None:
    record = CalibrationRecord(token_ids=(0, 9, 9), origin="c.jsonl, line 4")
    assert tokenize_records([record], ByteTokenizer(), 10, 3) == [[0, 9, 9]]
    with pytest.raises(UsageError, match="line 4: token id 9 is beyond the model's vocabulary of 9"):
        tokenize_records([record], ByteTokenizer(), 9, 3)
    with pytest.raises(UsageError, match="line 4: 3 token ids are more than the limit of 2"):
        tokenize_records([record], ByteTokenizer(), 10, 2)


def test_foolish_arguments_and_tokenizers_are_refused() -> None:
    record = CalibrationRecord(text="abc")
    with pytest.raises(UsageError, match="no calibration records"):
        tokenize_records([], ByteTokenizer(), 256, 8)
    with pytest.raises(UsageError, match="at least 1"):
        tokenize_records([record], ByteTokenizer(), 256, 0)
    with pytest.raises(CheckpointError, match="produces id 99, but the model's vocabulary has 99"):
        tokenize_records([record], ByteTokenizer(), 99, 8)
    mute = ByteTokenizer()
    mute.encode = lambda text, add_special_tokens=True: []  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="produces no tokens"):
        tokenize_records([record], mute, 99, 8)


def test_what_a_template_refuses_in_a_users_file_is_an_error() -> None:
    record = CalibrationRecord(messages=({"role": "tool", "content": "a"},), origin="c.jsonl, line 4")
    with pytest.raises(UsageError, match=r"^c\.jsonl, line 4: The template knows no tool role\. Change"):
        tokenize_records([record], ByteTokenizer(REFUSAL), 256, 8)
    with pytest.raises(CheckpointError, match="damaged"):
        tokenize_records([record], ByteTokenizer(CheckpointError("damaged")), 256, 8)


def test_bos_stands_once_and_a_template_writes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PIECE_CHARS", 2)
    records = [CalibrationRecord(text="abcd"), CalibrationRecord(messages=({"role": "user", "content": "a"},))]
    ids = tokenize_records(records, ByteTokenizer(bos=[1]), 256, 99)
    assert ids == [[1, *b"abcd"], [*b"<user>a"]]
    assert tokenize_records(records[1:], ByteTokenizer(NO_TEMPLATE, [1]), 256, 99) == [[1, *b"user: a\n"]]


def test_fingerprint_is_fixed_and_sees_the_borders() -> None:
    assert fingerprint([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert fingerprint([[1, 2], [3]]) == "be3cb7e04dcce365974b9116333f0587adb7a1d2469dcd987e098564d77203b7"
    seen = {fingerprint(ids) for ids in ([[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[3], [1, 2]], [[]], [])}
    assert len(seen) == 6


@given(st.lists(st.lists(st.integers(0, 2**31 - 1)), max_size=4), st.lists(st.lists(st.integers(0, 9)), max_size=4))
def test_fingerprint_tells_sequences_apart(a: list[list[int]], b: list[list[int]]) -> None:
    assert (fingerprint(a) == fingerprint(b)) == (a == b)
