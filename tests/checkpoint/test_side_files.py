"""The files beside the weights: what is copied, what is refused, and that the loader reads nothing else."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faquant.checkpoint import files
from faquant.checkpoint.files import MAX_JSON_BYTES, read_object
from faquant.checkpoint.model_config import load_config
from faquant.checkpoint.side_files import SIDE_FILES, copy_side_files, read_side_file, read_side_object
from faquant.errors import CheckpointError
from faquant.text.tokenizer import Tokenizer
from oracles.configs import LLAMA

Make = Callable[..., Path]
TEMPLATES = "additional_chat_templates"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_copy_side_files(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    wanted = ["LICENSE", "LICENSE.txt", "NOTICE.md", "chat_template.jinja", "generation_config.json", "tokenizer.json"]
    unwanted = ["LICENSE.py", "NOTICE.pkl", "config.json", "modeling_x.py", "pytorch_model.bin", "model.safetensors"]
    for name in wanted + unwanted:
        (source / name).write_text(name)
        (source / name).chmod(0o400)
    (source / "LICENSES").mkdir()
    (source / "vocab.json").symlink_to("tokenizer.json")
    assert copy_side_files(source, target) == sorted([*wanted, "vocab.json"])
    assert names(target) == sorted([*wanted, "vocab.json"])
    assert (target / "vocab.json").read_text() == "tokenizer.json"
    assert not (target / "vocab.json").is_symlink()
    assert (target / "LICENSE").stat().st_mode & 0o200


def test_side_files_that_are_not_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (tmp_path / "secret").write_text("x")
    path = source / "tokenizer.json"
    path.symlink_to("../secret")
    with pytest.raises(CheckpointError, match="leads out"):
        copy_side_files(source, target)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="regular file"):
        copy_side_files(source, target)
    path.unlink()
    path.touch()
    os.truncate(path, 100 << 30)
    begin = time.monotonic()
    with pytest.raises(CheckpointError, match="larger than"):
        copy_side_files(source, target)
    assert time.monotonic() - begin < 2
    assert names(target) == []


def test_named_templates_are_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / TEMPLATES).mkdir(parents=True)
    target.mkdir()
    for name in ("rag.jinja", "tool_use.jinja", "notes.txt", "run.py"):
        (source / TEMPLATES / name).write_text(name)
    wanted = [f"{TEMPLATES}/rag.jinja", f"{TEMPLATES}/tool_use.jinja"]
    assert copy_side_files(source, target) == names(target) == wanted


@pytest.mark.parametrize("read", [copy_side_files, lambda source, target: Tokenizer.from_directory(source)])
def test_unsafe_templates_are_refused(make_directory: Make, tmp_path: Path, read: Callable[[Path, Path], Any]) -> None:
    source, target = make_directory(), tmp_path / "target"
    target.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.jinja").write_text("secret")
    place = source / TEMPLATES
    place.symlink_to(outside)
    with pytest.raises(CheckpointError, match="leads out"):
        read(source, target)
    place.unlink()
    place.mkdir()
    (place / "x.jinja").symlink_to(outside / "x.jinja")
    with pytest.raises(CheckpointError, match="leads out"):
        read(source, target)
    (place / "x.jinja").unlink()
    os.mkfifo(place / "x.jinja")
    with pytest.raises(CheckpointError, match="regular file"):
        read(source, target)
    (place / "x.jinja").unlink()
    (place / "x.jinja").touch()
    os.truncate(place / "x.jinja", 100 << 30)
    with pytest.raises(CheckpointError, match="larger than"):
        read(source, target)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja"]
)
def test_the_loader_follows_no_link_out_of_the_directory(make_directory: Make, tmp_path: Path, name: str) -> None:
    directory = make_directory()
    (directory / name).unlink(missing_ok=True)
    (tmp_path / "secret").write_text("{}")
    (directory / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="leads out"):
        Tokenizer.from_directory(directory)


def test_all_that_the_loader_reads_is_copied(
    make_directory: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that the tokenizer opens is recorded, in a directory that has all files that can matter."""
    named = {"pad_token": "</s>"}
    tables: dict[str, Any] = {name: {} for name in SIDE_FILES if name.endswith(".json")}
    tables |= {"special_tokens_map.json": named, "added_tokens.json": {"<s>": 1}, "generation_config.json": {}}
    del tables["tokenizer.json"], tables["tokenizer_config.json"]
    directory = make_directory(config=LLAMA)
    for name, table in tables.items():
        (directory / name).write_text(json.dumps(table))
    (directory / TEMPLATES).mkdir()
    (directory / TEMPLATES / "tool_use.jinja").write_text("tools")
    (directory / "chat_template.jinja").write_text("plain")
    opened: set[str] = set()
    open_file = Path.open

    def recorded(path: Path, *arguments: Any, **options: Any) -> Any:
        opened.add(str(path.relative_to(directory.resolve())))
        return open_file(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "open", recorded)
        tokenizer = Tokenizer.from_directory(directory)
    assert {"tokenizer.json", "special_tokens_map.json", f"{TEMPLATES}/tool_use.jinja"} < opened
    target = tmp_path / "target"
    target.mkdir()
    copied = copy_side_files(directory, target)
    assert opened - {"config.json"} <= set(copied), "quantizing writes config.json itself"
    again = Tokenizer.from_directory(target)
    messages = [{"role": "user", "content": "x"}]
    for tools, wanted in ((None, "plain"), (TOOLS, "tools")):
        assert tokenizer.render_chat(messages, tools=tools) == again.render_chat(messages, tools=tools) == wanted
    assert again.special_tokens == tokenizer.special_tokens


@pytest.mark.parametrize("name", ["config.json", f"{TEMPLATES}/x.py", "x.jinja"])
def test_files_that_are_not_copied_are_not_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="would not be copied"):
        read_side_file(tmp_path, name)
    with pytest.raises(ValueError, match="would not be copied"):
        read_side_object(tmp_path, name)


def test_a_byte_order_mark_is_ignored(make_directory: Make) -> None:
    """RFC 8259, section 8.1, allows it. Some editors write one."""
    directory = make_directory(
        {"chat_template": "x"}, config=LLAMA, generation_config={"eos_token_id": 4}, added_tokens={"<s>": 1}
    )
    plain = Tokenizer.from_directory(directory)
    for path in directory.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    marked = Tokenizer.from_directory(directory)
    assert marked.to_json() == plain.to_json()
    assert (marked.eos_token_ids, marked.chat_template) == (plain.eos_token_ids, "x")
    assert load_config(directory).model_type == "llama"
    (directory / "x.json").write_bytes(b"\xef\xbb\xbf" * 2 + b"{}")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_object(directory, "x.json")


def test_duplicate_keys_count_as_in_transformers_only_where_asked(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1, "a": 2}')
    assert read_object(tmp_path, "x.json", last_value_counts=True) == {"a": 2}
    with pytest.raises(CheckpointError, match="duplicate key 'a'"):
        read_object(tmp_path, "x.json")
    (tmp_path / "x.json").write_bytes(b" " * (MAX_JSON_BYTES + 1))
    with pytest.raises(CheckpointError, match="larger than the limit"):
        read_object(tmp_path, "x.json")
