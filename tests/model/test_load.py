"""Loading quantized directories: msModelSlim's in all variants, and damaged ones of every kind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.errors import CheckpointError, FaquantError, UnsupportedError
from faquant.evaluation.divergence import window_logits
from faquant.kernels.backend import make_backend
from faquant.kernels.modules import FloatLinear, StaticLinear
from faquant.kernels.pages import BFloat16Pages, FloatPages, Int8Pages
from faquant.kernels.torch_backend import TorchEmbedding, TorchLinear, TorchRMSNorm
from faquant.model.load import load
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import tiny_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
WEIGHTS = "quant_model_weight_w8a8.safetensors"
DESCRIPTION = "quant_model_description.json"
FA = "model.layers.1.self_attn.fa_"

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Tensors, dict[str, Any]], None]


@pytest.fixture(params=["fp32", "bf16"])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return _golden(request.param, tmp_path)


@pytest.fixture
def golden_fp32(tmp_path: Path) -> Path:
    return _golden("fp32", tmp_path)


def _golden(dtype: str, folder: Path) -> Path:
    directory = folder / "golden"
    shutil.copytree(GOLDEN / f"w8a8_fa_{dtype}_ascendV1", directory)
    source = GOLDEN / ("float_float32" if dtype == "fp32" else "float_bfloat16")
    shutil.copy(source / "config.json", directory / "config.json")
    return directory


def _edit(directory: Path, edit: Edit) -> None:
    tensors, description = load_file(directory / WEIGHTS), json.loads((directory / DESCRIPTION).read_text())
    edit(tensors, description)
    save_file(tensors, directory / WEIGHTS)
    (directory / DESCRIPTION).write_text(json.dumps(description))


def _logits(directory: Path) -> torch.Tensor:
    return window_logits(load(directory), _ids())


def _float_logits() -> torch.Tensor:
    return window_logits(load(GOLDEN / "float_float32"), _ids())


def _ids() -> torch.Tensor:
    return torch.tensor(json.loads((GOLDEN / "calibration_token_ids.json").read_text())[-1])


def test_the_tools_checkpoint_loads_and_answers_like_its_float_source(golden: Path) -> None:
    model = load(golden)
    layer = model.decoder.layers[0]
    assert isinstance(layer.q_proj, StaticLinear)
    assert isinstance(layer.down_proj, FloatLinear)
    assert all(isinstance(pages, Int8Pages) for pages in model.make_pages(1, 128))
    agreement = torch.nn.functional.cosine_similarity(_logits(golden), _float_logits()).mean()
    assert agreement > 0.98


def test_a_cache_of_bfloat16_can_be_asked_for(golden: Path) -> None:
    model, ids = load(golden), _ids()
    c = model.config
    pages = model.make_pages(-(-len(ids) // 128), 128, kv_cache_dtype="bfloat16")
    assert [type(some) for some in pages] == [BFloat16Pages] * c.num_layers
    chunk = Chunk(ids.numpy(), 0, np.arange(pages[0].num_pages), Rope(c))
    logits = model.decoder.logits(PagedDecoder(model.decoder, pages, model.backend).run([chunk]))
    assert isinstance(logits, np.ndarray)
    assert torch.nn.functional.cosine_similarity(torch.from_numpy(logits), _float_logits()).mean() > 0.98
    with pytest.raises(ValueError, match="'auto' or 'bfloat16', not 'int8'"):
        model.make_pages(2, 128, kv_cache_dtype="int8")  # type: ignore[arg-type]


def test_a_static_linear_computes_the_formula_of_the_format(golden: Path) -> None:
    linear = load(golden).decoder.layers[0].q_proj
    assert isinstance(linear, StaticLinear)
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(0)).numpy()
    x8 = np.clip(np.rint(x / linear.input_scale) + linear.input_offset, -128, 127).astype(np.float64)
    expected = (x8 @ linear.weight.T.astype(np.float64) + linear.quant_bias) * linear.deq_scale.astype(np.float64)
    np.testing.assert_allclose(linear(x), expected, rtol=1e-6, atol=1e-7)


def test_a_backend_makes_the_parts_that_a_quantized_directory_leaves_float(golden: Path) -> None:
    _edit(golden, _drop_layer(1))
    model = load(golden, backend=make_backend("torch"))
    layer = model.decoder.layers[1]
    assert [type(linear) for linear in layer.linears] == [StaticLinear] * 6 + [TorchLinear]
    assert isinstance(layer.attention_norm, TorchRMSNorm)
    assert isinstance(model.decoder.embedding, TorchEmbedding)
    assert [type(pages) for pages in model.make_pages(1, 128)] == [Int8Pages, FloatPages, Int8Pages]
    ours = window_logits(load(golden), _ids())
    torch.testing.assert_close(window_logits(model, _ids()), ours, rtol=0, atol=0.03)


def test_deq_scale_as_int64_bits_and_as_float32_mean_the_same(golden_fp32: Path) -> None:
    before = _logits(golden_fp32)

    def unpack(tensors: Tensors, _: dict[str, Any]) -> None:
        for name in tensors:
            if name.endswith("deq_scale"):
                assert tensors[name].dtype == torch.int64
                tensors[name] = tensors[name].to(torch.int32).view(torch.float32)

    _edit(golden_fp32, unpack)
    assert torch.equal(_logits(golden_fp32), before)


def test_scales_repeated_over_the_channels_and_the_manuals_names_mean_the_same(golden: Path) -> None:
    before = _logits(golden)

    def respell(tensors: Tensors, description: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".fa_" in name]:
            prefix, _, rest = name.rpartition(".fa_")
            part, kind = rest.split(".")
            tensors[f"{prefix}.{part}_{kind}"] = tensors.pop(name).repeat(1, 16)
            description[f"{prefix}.{part}_{kind}"] = description.pop(name)

    _edit(golden, respell)
    assert torch.equal(_logits(golden), before)


def test_the_newer_file_names_in_parts_mean_the_same(golden: Path) -> None:
    before = _logits(golden)
    tensors = load_file(golden / WEIGHTS)
    names = sorted(tensors)
    weight_map = {}
    for part, chosen in enumerate((names[:40], names[40:]), start=1):
        file = f"quant_model_weights-0000{part}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, golden / file)
        weight_map.update(dict.fromkeys(chosen, file))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (golden / "quant_model_weights.safetensors.index.json").write_text(json.dumps(index))
    (golden / WEIGHTS).unlink()
    assert torch.equal(_logits(golden), before)


def test_a_layer_without_tables_has_float_attention(golden: Path) -> None:
    def strip(tensors: Tensors, description: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(FA)]:
            del tensors[name], description[name]

    _edit(golden, strip)
    model = load(golden)
    kinds = [type(pages) for pages in model.make_pages(1, 128)]
    assert kinds == [Int8Pages, FloatPages, Int8Pages]
    assert _logits(golden).isfinite().all()


def test_no_fa_quant_type_and_no_tables_is_float_attention(golden: Path) -> None:
    def strip(tensors: Tensors, description: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".fa_" in name]:
            del tensors[name], description[name]
        del description["fa_quant_type"]

    _edit(golden, strip)
    assert load(golden).schemes == [None] * 3


def _set(name: str, value: torch.Tensor) -> Edit:
    def edit(tensors: Tensors, _: dict[str, Any]) -> None:
        assert name in tensors
        tensors[name] = value

    return edit


def _drop(name: str) -> Edit:
    def edit(tensors: Tensors, description: dict[str, Any]) -> None:
        del tensors[name], description[name]

    return edit


def _add(name: str, value: torch.Tensor) -> Edit:
    def edit(tensors: Tensors, description: dict[str, Any]) -> None:
        tensors[name], description[name] = value, "FLOAT"

    return edit


def _drop_layer(layer: int) -> Edit:
    def edit(tensors: Tensors, description: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(f"model.layers.{layer}.self_attn.fa_")]:
            del tensors[name], description[name]

    return edit


def _with(key: str, value: object) -> Edit:
    def edit(_: Tensors, description: dict[str, Any]) -> None:
        description[key] = value

    return edit


PROJ = "model.layers.0.self_attn.q_proj."
WRONG: dict[str, tuple[Edit, str]] = {
    "NaN scale": (_set(f"{FA}k.scale", torch.full((2, 1), torch.nan)), "NaN"),
    "zero scale": (_set(f"{FA}v.scale", torch.zeros(2, 1)), "zero"),
    "negative scale": (_set(f"{FA}q.scale", torch.full((8, 1), -1.0)), "negative"),
    "infinite scale": (_set(f"{FA}q.scale", torch.full((8, 1), torch.inf)), "infinite"),
    "scale of one dimension": (_set(f"{FA}k.scale", torch.ones(2)), "shape"),
    "scale of a wrong number of heads": (_set(f"{FA}k.scale", torch.ones(8, 1)), "shape"),
    "scale of a wrong head_dim": (_set(f"{FA}k.scale", torch.ones(2, 15)), "shape"),
    "scale of integers": (_set(f"{FA}k.scale", torch.ones(2, 1, dtype=torch.int8)), "dtype"),
    "zero point of K": (_set(f"{FA}k.offset", torch.ones(2, 1, dtype=torch.int8)), "zero points must be 0"),
    "zero point of q": (_set(f"{FA}q.offset", torch.ones(8, 1, dtype=torch.int8)), "zero points must be 0"),
    "one table missing": (_drop(f"{FA}v.scale"), "lacks fa_v.scale"),
    "input scale NaN": (_set(f"{PROJ}input_scale", torch.tensor([torch.nan])), "NaN"),
    "input offset NaN": (_set(f"{PROJ}input_offset", torch.tensor([torch.nan])), "NaN"),
    "deq_scale negative": (_set(f"{PROJ}deq_scale", torch.full((128,), -1.0)), "negative"),
    "deq_scale beyond 32 bits": (_set(f"{PROJ}deq_scale", torch.full((128,), 1 << 40)), "float32 bits"),
    "deq_scale that is not the product": (_set(f"{PROJ}deq_scale", torch.full((128,), 3.0)), "weight_scale"),
    "input offset beyond int8": (_set(f"{PROJ}input_offset", torch.tensor([1e5])), "-128 to 127"),
    "input offset that is no whole number": (_set(f"{PROJ}input_offset", torch.tensor([0.5])), "-128 to 127"),
    "quant_bias that overflows": (
        _set(f"{PROJ}quant_bias", torch.full((128,), 2**31 - 1).int()),
        "overflow",
    ),
    "norm that is NaN": (_set("model.norm.weight", torch.full((128,), torch.nan)), "NaN"),
    "table that is called float": (_with(f"{FA}k.scale", "FLOAT"), "FAQuant"),
    "cache of another kind": (_with("kv_cache_type", "C8"), "C8"),
    "bias that the model does not have": (_add(f"{PROJ}bias", torch.ones(128)), "bias"),
    "deq_scale missing": (_drop(f"{PROJ}deq_scale"), "deq_scale"),
    "weight_scale of a wrong shape": (_set(f"{PROJ}weight_scale", torch.ones(127, 1)), "shape"),
    "weight_offset not zero": (_set(f"{PROJ}weight_offset", torch.ones(128, 1)), "symmetric"),
    "weight of a wrong shape": (_set(f"{PROJ}weight", torch.zeros(128, 64, dtype=torch.int8)), "shape"),
    "weight that is float": (_set(f"{PROJ}weight", torch.zeros(128, 128)), "int8"),
    "quant_bias that is float": (_set(f"{PROJ}quant_bias", torch.zeros(128)), "int32"),
    "type that is a lie": (_with(f"{PROJ}weight", "FLOAT"), "FLOAT"),
    "type that is no linear's": (_with(f"{PROJ}weight", "C8"), "C8"),
    "type that is unknown": (_with(f"{PROJ}weight", "W4A16"), "W4A16"),
    "described but missing": (_with("model.layers.9.x.weight", "FLOAT"), "missing"),
    "rotated type without metadata": (
        _with(f"{PROJ}weight", "FAQUANT_W8A8_DYNAMIC_ROTATED"),
        "without metadata.faquant",
    ),
    "zero points without metadata": (
        _with(f"{PROJ}weight", "FAQUANT_W8A8_ASYMMETRIC_DYNAMIC"),
        "without metadata.faquant",
    ),
    "inputs of 16 bits without metadata": (_with(f"{PROJ}weight", "FAQUANT_W8A16_DYNAMIC"), "without metadata.faquant"),
    "metadata that is no recipe": (_with("metadata", {"faquant": {"format": 1}}), "metadata"),
    "metadata of a later format": (_with("metadata", {"faquant": {"format": 2}}), "metadata"),
    "fa_quant_type unknown": (_with("fa_quant_type", "FAQuant2"), "fa_quant_type"),
    "model_quant_type unknown": (_with("model_quant_type", "W2A2"), "model_quant_type"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_and_named(case: str, golden_fp32: Path) -> None:
    edit, message = WRONG[case]
    _edit(golden_fp32, edit)
    with pytest.raises(FaquantError, match=message) as caught:
        load(golden_fp32)
    assert "\n" not in str(caught.value)


def test_tables_of_our_own_need_our_metadata(golden_fp32: Path) -> None:
    def add(tensors: Tensors, description: dict[str, Any]) -> None:
        tensors[f"{FA}k.center"] = torch.zeros(2, 16)
        description[f"{FA}k.center"] = "FAQuant"

    _edit(golden_fp32, add)
    with pytest.raises(CheckpointError, match="metadata"):
        load(golden_fp32)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_hidden_layers": 2}, CheckpointError),
        ({"num_hidden_layers": 4}, CheckpointError),
        ({"vocab_size": 300}, CheckpointError),
        ({"num_key_value_heads": 3}, CheckpointError),
        ({"num_key_value_heads": 4}, CheckpointError),
        ({"tie_word_embeddings": True, "hidden_size": 120}, CheckpointError),
        ({"fa_quant_type": None}, CheckpointError),
        ({"model_type": "gpt2"}, UnsupportedError),
        ({"auto_map": {"AutoModel": "x.Y"}}, UnsupportedError),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    change: dict[str, Any], error: type[FaquantError], golden_fp32: Path
) -> None:
    path = golden_fp32 / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error):
        load(golden_fp32)


def test_weight_scales_that_the_arithmetic_does_not_need_may_be_missing(golden: Path) -> None:
    before = _logits(golden)

    def strip(tensors: Tensors, description: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith(("weight_scale", "weight_offset"))]:
            del tensors[name], description[name]

    _edit(golden, strip)
    assert torch.equal(_logits(golden), before)


def test_quantized_weights_without_a_description_are_not_taken_for_floats(golden_fp32: Path) -> None:
    (golden_fp32 / DESCRIPTION).unlink()
    (golden_fp32 / WEIGHTS).rename(golden_fp32 / "model.safetensors")
    with pytest.raises(CheckpointError, match="says how it is quantized"):
        load(golden_fp32)


@pytest.mark.parametrize("name", ["default", "static"])
def test_tables_that_contradict_the_recipe_are_refused(name: str, tmp_path: Path) -> None:
    tiny_model("smollm", tmp_path / "float")
    out = tmp_path / "out"
    quantize(tmp_path / "float", out, RECIPES[name], [[1, 2, 3, 4, 5, 6, 7, 8]])
    sound = (out / WEIGHTS).read_bytes(), (out / DESCRIPTION).read_text()
    prefix = "model.layers.0.self_attn.fa_"

    def add_q(tensors: Tensors, description: dict[str, Any]) -> None:
        tensors[f"{prefix}q.scale"] = torch.ones(9, 1)
        description[f"{prefix}q.scale"] = "FAQuant"

    def lie(key: str, value: object) -> Edit:
        def edit(_: Tensors, description: dict[str, Any]) -> None:
            description["metadata"]["faquant"][key] = value

        return edit

    edits = [
        add_q,
        _drop(f"{prefix}k.center"),
        _drop(f"{prefix}k.equalizer"),
        lie("qk_block", 0),
        lie("qk_block", 3),
        lie("down_block", 0),
        lie("qk_block", "8"),
        lie("v_block", 2),
        lie("v_folded", False),
        lie("down_block", 8),
        lie("residual_rotation", True),
        lie("hidden_block", 0),
        lie("hidden_block", 4),
        _drop_layer(1),
        lie("max_position", 10**6),
        lie("format", 2),
    ]
    for edit in edits:
        (out / WEIGHTS).write_bytes(sound[0])
        (out / DESCRIPTION).write_text(sound[1])
        _edit(out, edit)
        with pytest.raises(CheckpointError):
            load(out)


def test_biases_that_the_configuration_does_not_name_are_not_dropped(tmp_path: Path) -> None:
    tiny_model("llama-bias", tmp_path / "float")
    path = tmp_path / "float" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_bias": False}))
    with pytest.raises(CheckpointError, match=r"q_proj\.bias"):
        load(tmp_path / "float")
