"""The search measures what a recipe would cost, and takes the cheapest that is good enough."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.errors import UsageError
from faquant.evaluation.divergence import compare, variants
from faquant.model.load import load
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from faquant.search import ATTENTION, LINEAR, Found, Measured, find
from oracles.tiny_models import tiny_model


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(0, 100, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [ids(60, seed) for seed in range(6)]
TEXTS = [ids(50, 99), ids(50, 98)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("search") / "float"
    tiny_model("qwen2", directory)
    return directory


@pytest.fixture(scope="module")
def best(source: Path) -> Found:
    return find(source, PROMPTS, TEXTS)


def chosen(found: Found) -> Measured:
    (row,) = (row for row in found.candidates if row.chosen)
    return row


def row(found: Found, part: str, name: str) -> Measured:
    (row,) = (row for row in found.candidates if (row.part, row.name) == (part, name))
    return row


def test_without_a_bound_the_least_kl_at_full_speed_is_taken(best: Found) -> None:
    assert best.recipe.name == "auto"
    assert best.recipe.linear is not None
    assert not best.recipe.linear.float_layers
    parts = {part: [row for row in best.candidates if row.part == part] for part in ("attention", "linears")}
    assert [row.name for row in parts["attention"]] == list(ATTENTION)
    assert sorted(row.name for row in parts["linears"]) == sorted(LINEAR)
    expected = sum(min(row.kl for row in rows) for rows in parts.values())
    assert chosen(best).kl == pytest.approx(expected, rel=0.3)
    assert best.tokens == 100


def test_a_candidate_costs_what_the_checkpoint_will(best: Found, source: Path, tmp_path: Path) -> None:
    """The same calibration written and read back has the same KL, to the last bit of the arithmetic."""
    quantize(source, tmp_path / "out", RECIPES["default"], PROMPTS)
    model, plain = load(tmp_path / "out"), load(source)
    results = [compare(plain, variants(model, plain), text, window=50) for text in TEXTS]
    for part, name, variant in (("attention", "token, mapped, P 16", "attention"), ("linears", "rotated", "linears")):
        mean = sum(result[variant].kl_mean for result in results) / 2
        assert row(best, part, name).kl == pytest.approx(mean, rel=1e-4)


def test_a_loose_bound_buys_the_cheapest(source: Path, best: Found) -> None:
    found = find(source, PROMPTS, TEXTS, max_kl=0.02)
    assert chosen(found).kl <= 0.02
    assert found.recipe.attention is not None
    assert found.recipe.attention.kv_scale != "token"
    assert found.recipe.attention.p == "uint8"
    assert found.max_kl == 0.02


def test_a_tight_bound_leaves_the_layers_float_that_lose_most(source: Path, best: Found) -> None:
    attention = min(row.kl for row in best.candidates if row.part == "attention")
    bound = attention + 0.6 * (chosen(best).kl - attention)
    found = find(source, PROMPTS, TEXTS, max_kl=bound)
    assert chosen(found).kl <= bound
    assert found.recipe.linear is not None
    layers = {row.name: row.kl for row in found.candidates if row.part == "layer"}
    assert len(layers) == 4  # three layers and the head
    left = {pattern.removesuffix(".*") for pattern in found.recipe.linear.float_layers}
    assert left
    assert left < layers.keys()
    assert min(layers[name] for name in left) >= max(kl for name, kl in layers.items() if name not in left)


def test_what_cannot_be_had_is_refused(source: Path) -> None:
    with pytest.raises(UsageError, match="No recipe stays within a KL of 1e-07; the attention alone costs"):
        find(source, PROMPTS, TEXTS, max_kl=1e-7)
    with pytest.raises(UsageError, match="above 0"):
        find(source, PROMPTS, TEXTS, max_kl=-1.0)
    with pytest.raises(UsageError, match="no text"):
        find(source, PROMPTS, [])


def test_biases_of_k_are_found_and_handled(source: Path, tmp_path: Path) -> None:
    """Channels of K far from zero, constant before RoPE: what is cheap for other models is not good enough here."""
    biased = tmp_path / "float"
    biased.mkdir()
    (biased / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("k_proj.bias"):
            tensor[::7] += 40.0
    save_file(tensors, biased / "model.safetensors", metadata={"format": "pt"})
    found = find(biased, PROMPTS, TEXTS)
    assert found.recipe.attention is not None
    assert found.recipe.attention.center
    assert found.recipe.attention.equalize
    plain, handled = row(found, "attention", "head"), row(found, "attention", "token, mapped, P 16")
    assert handled.kl < 0.15 * plain.kl
