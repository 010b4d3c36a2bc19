"""Each family, quantized: layers in one call have the bits of step by step, tokens one by one those of a prompt, and
what is written can be planned, inspected and loaded. test_pipeline.py compares with the float model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.checkpoint.model_config import load_config
from faquant.errors import UnsupportedError
from faquant.evaluation.divergence import window_logits
from faquant.evaluation.measure import check_pair
from faquant.kernels.arrays import Floats, Integers
from faquant.model.inspection import inspect
from faquant.model.load import Model, load, load_float
from faquant.model.paged import Batch, Chunk, PagedDecoder
from faquant.model.plan import plan
from faquant.model.rope import Rope
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES, LinearRecipe, Recipe
from oracles.tiny_models import COMMON, KINDS, tiny_model

FAMILIES = ("smollm3-window", "granite-bias", "ministral", "phi3", "phi4-mini", "olmo2", "olmo3", "gemma3")
FOLDED = ("smollm3", "granite-bias", "ministral", "phi4-mini", "olmo2", "olmo3", "gemma3")
TOKENS = 150
TABLE = np.array([3, 1, 9, 2, 8, 4, 7, 5, 6])
"""Pages of 128 tokens, up to the second block of K's maps."""


def ids(count: int, seed: int = 0) -> Integers:
    return torch.randint(COMMON["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed)).numpy()


def hidden(model: Model, counts: list[int], fused: bool) -> Floats:
    """The last hidden states of a sequence that runs in chunks of so many tokens."""
    prompt, table, pages = ids(sum(counts)), TABLE[: -(-sum(counts) // 128)], model.make_pages(len(TABLE) + 1, 128)
    rope, windows, decoder = Rope(model.config, len(prompt)), model.config.sliding_windows, model.decoder
    paged = PagedDecoder(decoder, pages, model.backend)
    assert (len(paged._layers._runs) == 1) == all(layer.is_int8 for layer in decoder.layers)
    parts, start = [], 0
    for count in counts:
        chunk = Chunk(prompt[start : start + count], start, table, rope)
        if fused:
            parts.append(paged.run([chunk]))
        else:
            batch = Batch([chunk], 128)
            attend = batch.attend
            parts.append(
                decoder.hidden(
                    batch.tokens,
                    batch.tables,
                    lambda i, q, k, v, attend=attend: attend(pages[i], windows[i], q, k, v),
                )
            )
        start += count
    return np.concatenate(parts)


@pytest.mark.parametrize("recipe", ["default", "static"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_quantized_model_has_the_same_bits_fused_and_in_any_chunks(kind: str, recipe: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "float")
    made, out = RECIPES[recipe], tmp_path / "out"
    planned = plan(tmp_path / "float", made)
    quantize(tmp_path / "float", out, made, [ids(60, 1).tolist(), ids(40, 2).tolist()])
    model = load(out)
    assert all(layer.is_int8 for layer in model.decoder.layers)
    assert model.metadata is not None
    whole = hidden(model, [TOKENS], fused=True)
    assert np.array_equal(hidden(model, [TOKENS], fused=False), whole)
    assert np.array_equal(hidden(model, [100] + [1] * (TOKENS - 100), fused=True), whole)
    assert check_pair(out, tmp_path / "float", model, load_float(tmp_path / "float")) == model.metadata.model
    found = inspect(out)
    assert (found.config.model_type, found.quant_type) == (load_config(tmp_path / "float").model_type, "W8A8_DYNAMIC")
    assert found.kv_bytes_per_token == planned.ours.kv_bytes_per_token
    again = plan(out)
    assert again.ours.kv_bytes_per_token == planned.ours.kv_bytes_per_token
    assert again.ours.weight_bytes == pytest.approx(planned.ours.weight_bytes, rel=0.2)


@pytest.mark.parametrize("kind", ["smollm3", "olmo3"])
def test_layers_with_one_map_of_k_and_with_several_run_together(kind: str, tmp_path: Path) -> None:
    """Layers without RoPE have one map; the others have one for each 1,024 positions."""
    tiny_model(kind, tmp_path / "float", max_position_embeddings=2048)
    quantize(tmp_path / "float", tmp_path / "out", RECIPES["default"], [ids(60, 1).tolist(), ids(40, 2).tolist()])
    model = load(tmp_path / "out")
    maps = {1 if scheme.k_center.ndim == 2 else len(scheme.k_center) for scheme in model.schemes if scheme is not None}
    assert max(maps) > 1
    assert (min(maps) == 1) == (kind == "smollm3")
    whole = hidden(model, [1100], fused=True)
    assert np.array_equal(hidden(model, [1100], fused=False), whole)
    assert np.array_equal(hidden(model, [1000, 60] + [1] * 40, fused=True), whole)


@pytest.mark.parametrize("kind", FAMILIES)
def test_msmodelslims_recipes_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "float")
    family = KINDS[kind][0].model_type
    for recipe in ("mindie", "mindie-plain"):
        with pytest.raises(UnsupportedError, match=f"not for {family}"):
            quantize(tmp_path / "float", tmp_path / "out", RECIPES[recipe], [[1, 2, 3]])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["olmo2", "olmo3", "gemma3"])
def test_a_rotation_of_the_residual_stream_is_refused_where_outputs_have_norms(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "float")
    recipe = Recipe(name="folded", linear=LinearRecipe(rotate="folded"))
    with pytest.raises(UnsupportedError, match=f"norms of {KINDS[kind][0].model_type} do not allow"):
        quantize(tmp_path / "float", tmp_path / "out", recipe, [[1, 2, 3]])


@pytest.mark.parametrize("kind", FOLDED)
def test_a_rotation_of_v_that_is_folded_into_float_weights_changes_nothing(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "float")
    linear = LinearRecipe(rotate="none", float_layers=("*",))
    quantize(tmp_path / "float", tmp_path / "out", Recipe(name="float", linear=linear), [ids(60, 1).tolist()])
    folded, original = load(tmp_path / "out"), load(tmp_path / "float")
    assert folded.metadata is not None
    assert folded.metadata.v_folded
    folded.schemes = [None] * folded.config.num_layers
    prompt = torch.from_numpy(ids(100))
    torch.testing.assert_close(window_logits(folded, prompt), window_logits(original, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FOLDED)
def test_equalizers_cancel_in_the_norms_and_weights(kind: str, tmp_path: Path) -> None:
    """Seen by linears that stay float, beside others with the same inputs that do not."""
    tiny_model(kind, tmp_path / "float")
    linear = LinearRecipe(rotate="none", float_layers=("*.v_proj", "*.gate_proj"))
    recipe = Recipe(name="some", attention=None, linear=linear)
    quantize(tmp_path / "float", tmp_path / "out", recipe, [ids(60, 1).tolist()])
    folded, original = load(tmp_path / "out"), load(tmp_path / "float")
    x = torch.randn(50, COMMON["hidden_size"], generator=torch.Generator().manual_seed(3)).numpy()
    has_norms = original.config.family.norms.attention is not None
    for ours, theirs in zip(folded.decoder.layers, original.decoder.layers, strict=True):
        for linears in (
            (ours.v_proj, ours.attention_norm, theirs.v_proj, theirs.attention_norm),
            (ours.gate_proj, ours.mlp_norm, theirs.gate_proj, theirs.mlp_norm),
        ):
            one, norm, other, other_norm = linears
            np.testing.assert_allclose(one(norm(x)), other(other_norm(x)), rtol=1e-4, atol=1e-4)
            assert np.allclose(norm(x), other_norm(x)) != has_norms, "there are equalizers"


def test_a_model_saved_from_the_base_class_is_known_as_the_source(tmp_path: Path) -> None:
    """By its tensors under the names of a causal language model."""
    tiny_model("smollm3", tmp_path / "float")
    path = tmp_path / "float" / "model.safetensors"
    save_file({name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}, path)
    quantize(tmp_path / "float", tmp_path / "out", RECIPES["default"], [ids(60, 1).tolist()])
    model = load(tmp_path / "out")
    assert model.metadata is not None
    assert (
        check_pair(tmp_path / "out", tmp_path / "float", model, load_float(tmp_path / "float")) == model.metadata.model
    )
