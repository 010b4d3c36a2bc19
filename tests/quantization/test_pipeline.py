"""Quantizing a float directory: recipes, folding, output, refusals."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from faquant.checkpoint.model_config import load_config
from faquant.checkpoint.tensors import TensorFiles
from faquant.errors import CheckpointError, FaquantError, OutputError, UsageError
from faquant.evaluation.divergence import window_logits
from faquant.formats import open_checkpoint
from faquant.formats.faquant.metadata import (
    ASYMMETRIC_ROTATED_TYPE,
    ASYMMETRIC_TYPE,
    ROTATED_TYPE,
    WIDE_ROTATED_TYPE,
    WIDE_TYPE,
)
from faquant.formats.msmodelslim.description import read_description
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.pages import Int8Pages
from faquant.kernels.quantizers import hadamard
from faquant.kernels.scheme import MAP_BLOCK
from faquant.kernels.tables import DynamicTable
from faquant.model.load import Model, load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope
from faquant.quantization.layerwise import LayerQuantizer
from faquant.quantization.pipeline import metadata_of, quantize
from faquant.quantization.rounding import Gram
from faquant.quantization.tensors import SourceTensors
from faquant.recipe import RECIPES, LinearRecipe, Recipe
from oracles.tiny_models import tiny_model

KINDS = ("llama2", "llama3", "smollm", "mistral", "qwen2", "qwen3", "smollm3", "granite-bias", "ministral", "phi4-mini")
OUTPUT_NORMS = ("olmo3", "gemma3")
"""Kinds whose norms do not allow to rotate the residual stream."""

OURS = [RECIPES[name] for name in ("default", "precise", "static", "attention-only", "portable")]
VARIATIONS = [
    Recipe(name="folded", linear=LinearRecipe(rotate="folded")),
    Recipe(name="smoothed", linear=LinearRecipe(rotate="none", rounding="nearest")),
    Recipe(name="mixed", linear=LinearRecipe(float_layers=("*.v_proj", "*.up_proj", "model.layers.0.mlp.down_proj"))),
    Recipe(
        name="mixed-inputs",
        linear=LinearRecipe(float_layers=("*.v_proj",), wide_inputs=("*.q_proj", "*.up_proj", "*.1.mlp.down_proj")),
    ),
]


def _ids(count: int, seed: int, vocabulary: int) -> list[int]:
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return _model("smollm", tmp_path / "float")


def _model(kind: str, directory: Path) -> Path:
    tiny_model(kind, directory)
    return directory


def _quantize(source: Path, target: Path, recipe: Recipe, **options: object) -> Path:
    vocabulary = load_config(source).vocab_size
    quantize(source, target, recipe, [_ids(40, 1, vocabulary), _ids(25, 2, vocabulary)], **options)
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_folded_rotations_leave_the_float_model_as_it_was(kind: str, tmp_path: Path) -> None:
    source = _model(kind, tmp_path / "float")
    recipe = Recipe(name="fold", linear=LinearRecipe(rotate="folded", float_layers=("*",)))
    rotated = load(_quantize(source, tmp_path / "out", recipe))
    rotated.schemes = [None] * rotated.config.num_layers
    original = load(source)
    ids = torch.tensor(_ids(50, 3, original.config.vocab_size))
    expected = window_logits(original, ids)
    # The attention's float output is in V's rotated basis, which o_proj reverts.
    torch.testing.assert_close(window_logits(rotated, ids), expected, rtol=1e-4, atol=1e-4)


def test_balancing_without_a_rotation_counts_inputs_relative_to_their_tokens(source: Path) -> None:
    """Each token has its own scale, so a token that is large as a whole says nothing about the channels."""
    opened, recipe = open_checkpoint(source), RECIPES["portable"]
    checked = SourceTensors(opened.files)
    quantizer = LayerQuantizer(opened.config, checked, recipe, metadata_of(opened.config, recipe, "", ""))
    name, size = "model.layers.0.mlp.down_proj", opened.config.intermediate_size
    x = torch.randn(30, size, generator=torch.Generator().manual_seed(6)) * torch.linspace(0.1, 5, size)
    found = []
    for sizes in (torch.ones(30), torch.linspace(0.01, 100, 30)):
        gram = Gram(size)
        gram.add(x * sizes[:, None])
        found.append(quantizer._equalizer((name,), gram))
    torch.testing.assert_close(*found)
    weights = checked.finite(f"{name}.weight").double().square().sum(0).sqrt()
    peaks = (x / x.square().mean(-1, keepdim=True).sqrt()).abs().amax(0)
    ratio = found[0] / (peaks / weights).sqrt()
    torch.testing.assert_close(ratio, ratio[:1].expand(size), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        pytest.param(kind, recipe, id=f"{recipe.name}-{kind}")
        for recipe in (*OURS, *VARIATIONS)
        for kind in (*KINDS, *(OUTPUT_NORMS if recipe.name not in ("folded", "portable") else ()))
    ],
)
def test_every_recipe_of_ours_stays_near_the_float_model(kind: str, recipe: Recipe, tmp_path: Path) -> None:
    source = _model(kind, tmp_path / "float")
    quantized, original = load(_quantize(source, tmp_path / "out", recipe)), load(source)
    ids = torch.tensor(_ids(40, 1, original.config.vocab_size))
    p, q = (window_logits(model, ids).log_softmax(-1) for model in (original, quantized))
    assert float((p.exp() * (p - q)).sum(-1).mean()) < 2e-2
    assert all(scheme is not None for scheme in quantized.schemes)


def test_attention_only_keeps_every_weight_bit_for_bit(source: Path, tmp_path: Path) -> None:
    out = _quantize(source, tmp_path / "out", RECIPES["attention-only"])
    before, after = TensorFiles.open(source), TensorFiles.open(out)
    for name in before.names():
        assert before.dtype(name) == after.dtype(name)
        assert np.array_equal(before.get(name), after.get(name)), name
    description = read_description(out)
    assert description is not None
    assert (description.model_quant_type, description.fa_quant_type) == ("FLOAT", "FAQuant")


def test_default_writes_the_tensors_and_types_of_the_format(source: Path, tmp_path: Path) -> None:
    out = _quantize(source, tmp_path / "out", RECIPES["default"])
    description, files = read_description(out), TensorFiles.open(out)
    assert description is not None
    assert description.model_quant_type == "W8A8_DYNAMIC"
    types = description.tensor_types
    layer = "model.layers.0."
    assert types[f"{layer}mlp.down_proj.weight"] == types["lm_head.weight"] == ASYMMETRIC_ROTATED_TYPE
    assert types[f"{layer}self_attn.o_proj.weight"] == ASYMMETRIC_TYPE
    assert types[f"{layer}self_attn.fa_k.center"] == "FAQuant"
    assert files.dtype(f"{layer}mlp.up_proj.weight") == "int8"
    assert not any("fa_k.scale" in name or "fa_v.scale" in name for name in files.names())
    assert files.dtype("model.norm.weight") == "float32"
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_symmetric_inputs_have_the_types_of_the_format(source: Path, tmp_path: Path) -> None:
    """A scale per token alone, as in msModelSlim's W8A8_DYNAMIC; the weights are those of `default`."""
    symmetric = Recipe(name="symmetric", linear=LinearRecipe(activation="token"))
    out = _quantize(source, tmp_path / "out", symmetric)
    description = read_description(out)
    assert description is not None
    layer = "model.layers.0."
    assert description.tensor_types[f"{layer}mlp.down_proj.weight"] == ROTATED_TYPE
    assert description.tensor_types[f"{layer}self_attn.o_proj.weight"] == "W8A8_DYNAMIC"
    assert load(out).decoder.layers[0].up_proj.input_steps == 127
    default = TensorFiles.open(_quantize(source, tmp_path / "default", RECIPES["default"]))
    symmetric_files = TensorFiles.open(out)
    for name in default.names():
        assert np.array_equal(default.get(name), symmetric_files.get(name)), name


def test_portable_needs_nothing_at_run_time_that_other_engines_lack(source: Path, tmp_path: Path) -> None:
    """Plain W8A8_DYNAMIC linears, a float head, and calibrated scales and int8 zero points of K and V by channel."""
    opened = open_checkpoint(_quantize(source, tmp_path / "out", RECIPES["portable"]))
    assert {opened.linear_type(name) for name in opened.config.layer_linears} == {"W8A8_DYNAMIC"}
    assert opened.linear_type("lm_head") == "FLOAT"
    heads, dim = opened.config.num_kv_heads, opened.config.head_dim
    for scheme in opened.schemes:
        assert scheme is not None
        assert (scheme.k_center, scheme.k_equalizer, scheme.q_scale) == (None, None, None)
        assert (scheme.rotation_block, scheme.v_rotation_block) == (0, 0)
        assert scheme.k_scale.shape == scheme.v_scale.shape == (heads, dim)
        assert np.array_equal(scheme.k_offset, np.asarray(scheme.k_offset).astype(np.int8))


def test_inputs_of_16_bits_have_types_of_their_own(source: Path, tmp_path: Path) -> None:
    layer = "model.layers.0."
    for recipe, wide in ((RECIPES["precise"], True), (VARIATIONS[-1], False)):
        out = _quantize(source, tmp_path / recipe.name, recipe)
        description = read_description(out)
        assert description is not None
        assert description.model_quant_type == "FAQUANT_W8A16_DYNAMIC"
        types = description.tensor_types
        assert (
            types[f"{layer}mlp.up_proj.weight_scale"] == types[f"{layer}self_attn.q_proj.weight"] == WIDE_ROTATED_TYPE
        )
        assert (
            types[f"{layer}mlp.down_proj.weight"]
            == types["lm_head.weight"]
            == (WIDE_ROTATED_TYPE if wide else ASYMMETRIC_ROTATED_TYPE)
        )
        assert types[f"{layer}self_attn.o_proj.weight"] == (WIDE_TYPE if wide else ASYMMETRIC_TYPE)
        linears = load(out).decoder.layers[0]
        assert [linears.up_proj.input_steps, linears.o_proj.input_steps] == [32639, 32639 if wide else 255]


def test_inputs_of_16_bits_lose_nothing(source: Path, tmp_path: Path) -> None:
    """What is left is the loss of the weights: the same with inputs in float."""
    recipe = RECIPES["precise"].model_copy(update={"attention": None})
    opened = open_checkpoint(_quantize(source, tmp_path / "out", recipe))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"):
        table = opened.linear(name)
        assert isinstance(table, DynamicTable)
        x = torch.randn(50, table.weight.shape[1], generator=torch.Generator().manual_seed(4))
        weight = torch.from_numpy(table.weight * table.scale[:, None]).double()
        rotated = hadamard(x.double(), table.hadamard_block) if table.hadamard_block else x.double()
        exact = rotated @ weight.T
        error = {
            steps: float((CpuBackend().linear(replace(table, input_steps=steps))(x).double() - exact).norm())
            for steps in (127.0, table.input_steps)
        }
        assert error[table.input_steps] < 2e-4 * float(exact.norm())
        assert error[table.input_steps] < error[127.0] / 100


@pytest.mark.parametrize(
    ("linear", "exponent"),
    [
        (LinearRecipe(), 0.25),
        (LinearRecipe(wide_inputs=("*",)), 0.125),
        (LinearRecipe(wide_inputs=("*.gate_proj",)), 0.25),
        (LinearRecipe(wide_inputs=("*",), rounding="nearest"), 0.25),
    ],
)
def test_balancing_counts_the_sizes_of_16_bit_inputs_half(linear: LinearRecipe, exponent: float, source: Path) -> None:
    """If all linears with these inputs have 16 bits, and their weights are compensated."""
    opened, recipe = open_checkpoint(source), Recipe(name="any", linear=linear)
    checked = SourceTensors(opened.files)
    quantizer = LayerQuantizer(opened.config, checked, recipe, metadata_of(opened.config, recipe, "", ""))
    names = tuple(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up"))
    gram = Gram(opened.config.hidden_size)
    x = torch.randn(30, gram.size, generator=torch.Generator().manual_seed(6)) * torch.linspace(0.1, 5, gram.size)
    gram.add(x)
    weights = sum(checked.finite(f"{name}.weight").double().square().sum(0) for name in names)
    expected = x.double().square().mean(0) ** exponent / torch.as_tensor(weights) ** 0.25
    torch.testing.assert_close(quantizer._equalizer(names, gram), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("field", ["float_layers", "wide_inputs"])
def test_a_pattern_that_matches_no_linear_is_refused(field: str, source: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="typo", linear=LinearRecipe.model_validate({field: ["*.q_prj"]}))
    with pytest.raises(UsageError, match=rf"linear\.{field} has '\*\.q_prj', which matches no linear"):
        _quantize(source, tmp_path / "out", recipe)


def test_msmodelslims_format_has_no_inputs_of_16_bits() -> None:
    mindie = RECIPES["mindie"].model_dump()
    Recipe.model_validate(mindie)
    mindie["linear"]["wide_inputs"] = ["*.o_proj"]
    with pytest.raises(ValidationError, match=r"wide_inputs: \[\]"):
        Recipe.model_validate(mindie)


def test_zero_points_need_calibrated_scales() -> None:
    with pytest.raises(ValidationError, match=r"attention\.zero_points needs calibrated scales"):
        Recipe.model_validate({"name": "x", "attention": {"zero_points": True}})


def test_static_keeps_exactly_eight_bits_a_value(source: Path, tmp_path: Path) -> None:
    model = load(_quantize(source, tmp_path / "out", RECIPES["static"]))
    config = model.config
    for pages in model.make_pages(1, 128):
        assert isinstance(pages, Int8Pages)
        assert pages.bytes_per_token == 2 * config.num_kv_heads * -(-config.head_dim // 16) * 16
        assert pages.k_scale is None
        assert pages.v_scale is None


def test_the_same_command_writes_the_same_bytes(source: Path, tmp_path: Path) -> None:
    first, second = (_quantize(source, tmp_path / name, RECIPES["default"]) for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("name", ["default", "static"])
def test_k_is_as_precise_at_the_end_of_the_context_as_at_its_start(name: str, tmp_path: Path) -> None:
    # Large biases of K cause outliers that are constant before RoPE and rotate with the position after it.
    source = tmp_path / "float"
    tiny_model("qwen2", source, max_position_embeddings=4096)
    _add_k_outliers(source)
    out = _quantize(source, tmp_path / "out", RECIPES[name])
    model, original = load(out), load(source)
    ids = torch.tensor(_ids(64, 5, original.config.vocab_size))
    first = _k_error(model, original, ids, 0)
    last = _k_error(model, original, ids, original.config.max_position - MAP_BLOCK)
    assert last <= 1.5 * first


def _add_k_outliers(source: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = source / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("k_proj.bias"):
            tensor[::7] += 20.0
    save_file(tensors, path, metadata={"format": "pt"})


def _k_error(model: Model, original: Model, ids: torch.Tensor, position: int) -> float:
    """Mean squared error of the first layer's K in the cache, over the variance of K."""
    table = np.arange(-(-len(ids) // 128))
    keys = []
    moved = [scheme and scheme.starting_at(position) for scheme in model.schemes]
    for schemes in (moved, [None] * len(moved)):
        original.schemes = schemes
        pages = original.make_pages(len(table), 128)
        chunk = Chunk(ids.numpy(), 0, table, Rope(original.config, original.config.max_position), position)
        PagedDecoder(original.decoder, pages, original.backend).run([chunk])
        keys.append(np.asarray(pages[0].read(table, len(ids))[0]))
    return float(np.square(keys[0] - keys[1]).mean())


def test_what_was_quantized_already_is_refused(source: Path, tmp_path: Path) -> None:
    out = _quantize(source, tmp_path / "out", RECIPES["default"])
    with pytest.raises(UsageError, match="quantized already"):
        _quantize_again(out, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def _quantize_again(source: Path, target: Path) -> None:
    quantize(source, target, RECIPES["default"], [[1, 2, 3]])


def test_an_existing_target_is_kept_unless_told_otherwise(source: Path, tmp_path: Path) -> None:
    out = _quantize(source, tmp_path / "out", RECIPES["default"])
    with pytest.raises(OutputError):
        _quantize(source, out, RECIPES["static"])
    assert load(out).metadata.recipe.name == "default"  # type: ignore[union-attr]
    _quantize(source, out, RECIPES["static"], overwrite=True)
    assert load(out).metadata.recipe.name == "static"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["default", "mindie"])
def test_a_failure_on_the_way_leaves_nothing_behind(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TensorFiles.read_all
    bad = "model.layers.1.mlp.up_proj.weight"

    def damaged(self: TensorFiles, names: Iterable[str]) -> dict[str, Any]:
        names = list(names)
        if bad in names:
            raise CheckpointError("this tensor cannot be read")
        return real(self, names)

    monkeypatch.setattr(TensorFiles, "read_all", damaged)
    with pytest.raises(FaquantError, match="cannot be read"):
        quantize(source, tmp_path / "out", RECIPES[name], [[1, 2, 3]])
    assert [path.name for path in tmp_path.iterdir()] == ["float"]


def test_a_weight_that_is_not_finite_is_refused(source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        quantize(source, tmp_path / "out", RECIPES["default"], [[1, 2, 3]])


def test_calibration_longer_than_the_context_is_refused(source: Path, tmp_path: Path) -> None:
    limit = load_config(source).max_position
    with pytest.raises(UsageError, match="context"):
        quantize(source, tmp_path / "out", RECIPES["default"], [[1] * (limit + 1)])


@pytest.mark.parametrize("name", ["default", "static"])
def test_weights_that_overflow_on_the_way_are_refused(name: str, source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.k_proj.weight"] *= 1e30
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(FaquantError):
        quantize(source, tmp_path / "out", RECIPES[name], [[1, 2, 3]])
    assert not (tmp_path / "out").exists()
