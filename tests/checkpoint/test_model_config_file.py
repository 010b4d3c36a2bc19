"""config.json as a file: its object is read, and any other content raises one clear error."""

import json
import os
from pathlib import Path

import pytest

from faquant.checkpoint.files import MAX_JSON_BYTES
from faquant.checkpoint.model_config import load_config, parse_config
from faquant.errors import CheckpointError, FaquantError
from oracles.configs import LLAMA


def write(directory: Path, data: bytes) -> Path:
    (directory / "config.json").write_bytes(data)
    return directory


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b"3",
        b"\xff\xfe{}",
        b'{"a": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
        b'{"model_type": "llama", "rms_norm_eps": NaN}',
        b'{"model_type": "\\ud800"}',
        b" " * (MAX_JSON_BYTES + 1),
    ],
    ids=["empty", "cut", "list", "null", "number", "utf-16", "digits", "deep", "nan", "surrogate", "large"],
)
def test_a_file_that_is_no_configuration_is_one_error(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(FaquantError) as caught:
        load_config(write(tmp_path, data))
    assert str(tmp_path / "config.json") in str(caught.value)
    str(caught.value).encode("utf-8")


def test_a_file_is_read_as_its_object(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, json.dumps(LLAMA).encode())) == parse_config(LLAMA)


def test_a_missing_directory_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_config(tmp_path)
    with pytest.raises(CheckpointError, match="is not a directory"):
        load_config(tmp_path / "x")


def test_a_pipe_or_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_config(tmp_path)
