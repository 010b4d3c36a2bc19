"""The plan for a float model matches the memory of the quantized one."""

import json
from pathlib import Path

import pytest

from faquant.errors import UsageError
from faquant.kernels.cpu import StoredEmbedding
from faquant.model.decoder import Decoder
from faquant.model.load import load
from faquant.model.plan import plan
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES, Recipe
from oracles.tiny_models import tiny_model


def held(decoder: Decoder) -> int:
    """Bytes of embedding, linears and head."""
    assert isinstance(decoder.embedding, StoredEmbedding)
    linears = [linear for layer in decoder.layers for linear in layer.linears]
    return decoder.embedding.weight.nbytes + sum(linear.nbytes for linear in (*linears, decoder.lm_head))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["smollm", "qwen2"])
def test_as_the_quantized_model_then_is(kind: str, dtype: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "float", dtype, hidden_size=144, intermediate_size=256)
    keeps_float = Recipe.model_validate({"name": "mixed", "linear": {"float_layers": ["*.down_proj", "lm_head"]}})
    for recipe in (*RECIPES.values(), keeps_float):
        quantize(tmp_path / "float", tmp_path / recipe.name, recipe, [[1, 2, 3, 4, 5]])
        before, after = plan(tmp_path / "float", recipe), plan(tmp_path / recipe.name)
        model = load(tmp_path / recipe.name)
        assert before.ours.weight_bytes == pytest.approx(held(model.decoder), rel=0.02)
        assert before.ours.kv_bytes_per_token == after.ours.kv_bytes_per_token == model.cache_bytes_per_token()
        assert before.ours.name == recipe.name
        # msModelSlim's format does not contain the recipe's name.
        assert after.ours.name == ("msmodelslim" if recipe.format == "msmodelslim" else recipe.name)
        assert before.bfloat16.kv_bytes_per_token == after.bfloat16.kv_bytes_per_token


def test_a_config_is_enough_and_the_sizes_are_the_familys(tmp_path: Path) -> None:
    llama = {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_hidden_layers": 80,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(llama))
    made = plan(tmp_path)
    assert made.bfloat16.weight_bytes == pytest.approx(2 * 70.55e9, rel=1e-3), "70.55 billion parameters"
    assert made.ours.weight_bytes == pytest.approx(70.55e9 + 128256 * 8192, rel=2e-3)
    assert made.bfloat16.kv_bytes_per_token == 320 << 10
    assert made.bfloat16.kv_bytes_per_token / made.ours.kv_bytes_per_token == pytest.approx(1.97, abs=0.005)
    memory = 96 << 30
    tokens = made.tokens_in(made.ours, memory)
    assert made.memory_for(made.ours, tokens) <= memory < made.memory_for(made.ours, tokens + 1)
    assert made.tokens_in(made.bfloat16, memory) == 0


def test_a_recipe_for_a_quantized_model_is_refused(tmp_path: Path) -> None:
    tiny_model("smollm", tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "out", RECIPES["default"], [[1, 2, 3]])
    with pytest.raises(UsageError, match="quantized already"):
        plan(tmp_path / "out", RECIPES["static"])
