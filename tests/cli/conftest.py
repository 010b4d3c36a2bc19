from pathlib import Path

import pytest

from faquant.cli.main import run
from oracles import gguf_files
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "float"
    tiny_model("smollm", directory, vocab_size=VOCAB_SIZE, max_position_embeddings=4096)
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "own.txt"
    path.write_text("A short text of our own, long enough for a window. " * 8)
    return path


@pytest.fixture(scope="module")
def quantized(source: Path, text: Path) -> Path:
    out = source.parent / "out"
    assert run(["quantize", str(source), "-o", str(out), "--calibration", str(text), "--no-evaluate"]) == 0
    return out


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = gguf_files.tiny_model(head_dim=16)
    tokens = gguf_files.tokenizer_metadata(gguf_files.trained())
    metadata = gguf_files.model_metadata(model.config, "llama") | tokens
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    gguf_files.write(path, "llama", metadata, gguf_files.gguf_tensors(model))
    return path
