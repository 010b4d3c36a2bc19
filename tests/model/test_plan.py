"""The plan for a float model matches the memory of the quantized one."""

from pathlib import Path

import pytest

from faquant.errors import UsageError
from faquant.kernels.cpu import StoredEmbedding
from faquant.model.decoder import Decoder
from faquant.model.inspection import inspect
from faquant.model.load import load
from faquant.model.plan import WORKER_BYTES, Plan, plan
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES, Recipe
from oracles.configs import LLAMA_8B, LLAMA_70B, write_config
from oracles.tiny_models import tiny_model


def held_by(decoder: Decoder) -> int:
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
        assert before.ours.weight_bytes == pytest.approx(held_by(model.decoder), rel=0.02)
        assert after.ours.weight_bytes == pytest.approx(held_by(model.decoder), rel=0.05)
        assert before.ours.kv_bytes_per_token == after.ours.kv_bytes_per_token == model.cache_bytes_per_token()
        assert before.ours.name == recipe.name
        # msModelSlim's format does not contain the recipe's name.
        assert after.ours.name == ("msmodelslim" if recipe.format == "msmodelslim" else recipe.name)
        assert before.bfloat16.kv_bytes_per_token == after.bfloat16.kv_bytes_per_token


def test_a_config_is_enough_and_the_sizes_are_the_familys(tmp_path: Path) -> None:
    made = planned(LLAMA_70B, tmp_path)
    assert made.bfloat16.weight_bytes == pytest.approx(2 * 70.55e9, rel=1e-3), "70.55 billion parameters"
    assert made.ours.weight_bytes == pytest.approx(70.55e9 + 128256 * 8192, rel=2e-3)
    assert made.bfloat16.kv_bytes_per_token == 320 << 10
    assert made.bfloat16.kv_bytes_per_token / made.ours.kv_bytes_per_token == pytest.approx(1.97, abs=0.005)
    memory = 96 << 30
    tokens = made.tokens_in(made.ours, memory)
    assert made.memory_for(made.ours, tokens) <= memory < made.memory_for(made.ours, tokens + 1)
    assert made.tokens_in(made.bfloat16, memory) == 0


def test_a_rank_of_llama_8b(tmp_path: Path) -> None:
    """Four ranks in each of two stages, by hand.

    An output of k inputs takes k bytes, a float32 scale and an int32 correction. A rank has 1,024 outputs of q_proj and
    o_proj, 256 of k_proj and v_proj, 3,584 of gate_proj and up_proj, all of 4,096 inputs; and 1,024 of down_proj:

        (2 * 1,024 + 2 * 256 + 2 * 3,584) * (4,096 + 8) + 1,024 * (14,336 + 8) = 54,611,968 a layer

    The first stage has 16 layers and the whole embedding, 128,256 * 4,096 * 2 = 1,050,673,152; the last one 16 layers
    and 32,064 outputs of the head, 32,064 * (4,096 + 8) = 131,590,656. A key/value head takes 2 * 128 + 4 bytes.
    """
    made = planned(LLAMA_8B, tmp_path, tensor_parallel=4, pipeline_parallel=2)
    assert made.ours.weight_bytes == 16 * 54_611_968 + 1_050_673_152 == 1_924_464_640
    assert made.ours.kv_bytes_per_token == 16 * 2 * 260
    # A layer's 218,103,808 weights and the embedding's 32,064 rows, two bytes each.
    assert made.bfloat16.weight_bytes == 16 * 218_103_808 // 4 * 2 + 32_064 * 4096 * 2
    assert made.bfloat16.kv_bytes_per_token == 16 * 2 * 2 * 128 * 2
    assert made.program_bytes == WORKER_BYTES
    # 512 tokens: 3 * 4,096, 2 * 3,584 and twice 14,336 floats; 64 sequences: twice 128,256.
    assert made.step_bytes == 4 * (512 * (12_288 + 7_168 + 28_672) + 64 * 256_512)
    found = made.to_json(8 << 30)
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"], made.ranks) == (4, 2, 8)
    left = (8 << 30) - 1_924_464_640 - made.step_bytes - WORKER_BYTES
    assert found["footprints"]["default"]["kv_cache_memory"] == left
    assert found["footprints"]["default"]["tokens"] == left // 8320


def test_ranks_beyond_the_key_value_heads_hold_one_each(tmp_path: Path) -> None:
    """Llama 70B on 16 ranks in each of three stages of 27, 27 and 26 layers, by hand: 512 outputs of q_proj and o_proj,
    128 of k_proj and v_proj, 1,792 of gate_proj and up_proj, all of 8,192 inputs, and 512 of down_proj:

        (2 * 512 + 2 * 128 + 2 * 1,792) * (8,192 + 8) + 512 * (28,672 + 8) = 54,568,960 a layer

    The embedding has 128,256 * 8,192 * 2 = 2,101,346,304 bytes.
    """
    made = planned(LLAMA_70B, tmp_path, tensor_parallel=16, pipeline_parallel=3)
    assert made.ours.weight_bytes == 27 * 54_568_960 + 2_101_346_304 == 3_574_708_224
    assert made.ours.kv_bytes_per_token == 27 * 260
    # With 8 ranks a key/value head is on one rank only, and the bytes are the same.
    assert planned(LLAMA_70B, tmp_path, tensor_parallel=8).ours.kv_bytes_per_token == 80 * 260


def test_each_size_is_that_of_the_stage_with_the_most_of_it(tmp_path: Path) -> None:
    """Of 80 layers, eight of twelve stages have 7, the first three and the last one 6. The embedding weighs more than
    a layer, whose weights are 855,638,016 bytes and 8 for each of its 83,968 outputs; the cache is largest where most
    layers are. A float head of a float16 model is held in float32, so that the last stage weighs most."""
    layer = 855_638_016 + 8 * 83_968
    made = planned(LLAMA_70B, tmp_path, pipeline_parallel=12)
    assert made.ours.weight_bytes == 6 * layer + 2_101_346_304
    assert made.ours.kv_bytes_per_token == 7 * 8 * 260
    small = LLAMA_70B | {"vocab_size": 1000}
    assert planned(small, tmp_path, pipeline_parallel=12).ours.weight_bytes == 7 * layer
    only = Recipe.model_validate({"name": "head-float", "linear": {"float_layers": ["lm_head"]}})
    made = planned(LLAMA_70B | {"dtype": "float16"}, tmp_path, only, pipeline_parallel=2)
    assert made.ours.weight_bytes == 40 * layer + 4 * 128_256 * 8192


def test_what_a_quantized_model_holds_is_divided_too(tmp_path: Path) -> None:
    """The tensors of its files: those of linears by outputs, norms and tables of attention not at all."""
    tiny_model("llama-bias", tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "out", RECIPES["default"], [[1, 2, 3, 4, 5]])
    seen, one = inspect(tmp_path / "out"), plan(tmp_path / "out")
    assert one.ours.weight_bytes == seen.weight_bytes
    config, ranks = seen.config, 2
    made = plan(tmp_path / "out", tensor_parallel=ranks)
    linears = sum(seen.bytes_by_module[name] for name in config.linears)
    assert made.ours.weight_bytes == pytest.approx(one.ours.weight_bytes - linears / 2, abs=len(config.linears))
    assert made.ours.kv_bytes_per_token * ranks == one.ours.kv_bytes_per_token
    stages = plan(tmp_path / "out", pipeline_parallel=config.num_layers)
    assert stages.ours.kv_bytes_per_token == max(seen.kv_bytes_by_layer)
    held = [0] * config.num_layers
    for name, size in seen.bytes_by_module.items():
        layer = name.split(".")[2] if ".layers." in name else 0 if "embed" in name else -1
        held[int(layer)] += size
    assert stages.ours.weight_bytes == max(held)


def planned(config: dict[str, object], directory: Path, recipe: Recipe | None = None, **ranks: int) -> Plan:
    write_config(config, directory)
    return plan(directory, recipe, **ranks)


def test_a_recipe_for_a_quantized_model_is_refused(tmp_path: Path) -> None:
    tiny_model("smollm", tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "out", RECIPES["default"], [[1, 2, 3]])
    with pytest.raises(UsageError, match="quantized already"):
        plan(tmp_path / "out", RECIPES["static"])
