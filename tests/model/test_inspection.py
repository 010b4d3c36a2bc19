"""The report of inspect matches the loaded model."""

from pathlib import Path

from faquant.model.inspection import inspect
from faquant.model.load import load
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import tiny_model


def test_the_cache_takes_what_inspect_says(tmp_path: Path) -> None:
    tiny_model("smollm", tmp_path / "float")
    for name in ("default", "static", "attention-only", "mindie"):
        quantize(tmp_path / "float", tmp_path / name, RECIPES[name], [[1, 2, 3, 4, 5]])
        pages = load(tmp_path / name).make_pages(2, 128)
        assert inspect(tmp_path / name).kv_bytes_per_token == sum(layer.bytes_per_token for layer in pages)
        held = sum(
            tensor.nbytes
            for layer in pages
            for tensor in (layer.k, layer.v, layer.k_scale, layer.v_scale)  # type: ignore[attr-defined]
            if tensor is not None
        )
        assert held == 2 * 128 * inspect(tmp_path / name).kv_bytes_per_token


def test_a_float_model_counts_its_float_cache(tmp_path: Path) -> None:
    tiny_model("llama2", tmp_path / "float")
    seen = inspect(tmp_path / "float")
    assert seen.kv_bytes_per_token == sum(
        layer.bytes_per_token for layer in load(tmp_path / "float").make_pages(1, 128)
    )
    assert seen.quant_type == "FLOAT"
    assert seen.fa_quant_type is None
