import pytest

from oracles.gguf_files import tiny_model, tokenizer_metadata, trained


@pytest.fixture(scope="session")
def tokens():
    """The metadata of a tokenizer of 300 tokens."""
    return tokenizer_metadata(trained())


@pytest.fixture(scope="session")
def llama():
    """A tiny Llama of transformers."""
    return tiny_model()
