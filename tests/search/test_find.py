"""The search measures the loss of recipes, and chooses the cheapest that is good enough."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from faquant.errors import UsageError
from faquant.evaluation.divergence import compare, variants
from faquant.model.load import load
from faquant.quantization.layerwise import LayerQuantizer
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from faquant.search import SearchResult, find
from faquant.search.costs import Kind
from faquant.search.space import ATTENTION, LINEAR, Measured
from oracles.threads import set_threads
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
def best(source: Path) -> SearchResult:
    return find(source, PROMPTS, TEXTS)


def chosen(found: SearchResult) -> Measured:
    (row,) = (row for row in found.candidates if row.chosen)
    return row


def row(found: SearchResult, part: str, name: str) -> Measured:
    (row,) = (row for row in found.candidates if (row.part, row.name) == (part, name))
    return row


def test_without_a_bound_the_least_kl_at_full_speed_is_taken(best: SearchResult) -> None:
    assert best.recipe.name == "auto"
    assert best.recipe.linear is not None
    assert not best.recipe.linear.float_layers
    parts = {part: [row for row in best.candidates if row.part == part] for part in ("attention", "linears")}
    assert [row.name for row in parts["attention"]] == list(ATTENTION)
    assert sorted(row.name for row in parts["linears"]) == sorted(LINEAR)
    expected = sum(min(row.kl for row in rows) for rows in parts.values())
    assert chosen(best).kl == pytest.approx(expected, rel=0.3)
    assert best.tokens == 100


def test_a_candidate_costs_what_the_checkpoint_will(best: SearchResult, source: Path, tmp_path: Path) -> None:
    """The same calibration, written and read back, has the same KL, to the last bit."""
    quantize(source, tmp_path / "out", RECIPES["default"], PROMPTS)
    model, plain = load(tmp_path / "out"), load(source)
    results = [compare(plain, variants(model, plain), text, window=50) for text in TEXTS]
    for part, name, variant in (("attention", "token, mapped, P 16", "attention"), ("linears", "rotated", "linears")):
        mean = sum(result[variant].kl_mean for result in results) / 2
        assert row(best, part, name).kl == pytest.approx(mean, rel=1e-15)


def test_the_answer_does_not_depend_on_the_threads(
    source: Path, best: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums of a tiny model may be the same for any number, so the number is checked, too."""
    seen: list[int] = []

    def watch(name: str) -> None:
        work = getattr(LayerQuantizer, name)

        def watched(*arguments: Any) -> Any:
            seen.append(torch.get_num_threads())
            return work(*arguments)

        monkeypatch.setattr(LayerQuantizer, name, watched)

    for name in ("start", "observe", "tensors", "finish"):
        watch(name)
    for threads in (1, 4):
        set_threads(threads)
        assert find(source, PROMPTS, TEXTS) == best
        assert torch.get_num_threads() == threads
    assert set(seen) == {1}


def test_a_loose_bound_buys_the_cheapest(source: Path, best: SearchResult) -> None:
    found = find(source, PROMPTS, TEXTS, max_kl=0.02)
    assert chosen(found).kl <= 0.02
    assert found.recipe.attention is not None
    assert found.recipe.attention.kv_scale != "token"
    assert found.recipe.attention.p == "uint8"
    assert found.max_kl == 0.02


def seconds(shape: tuple[int, int], batches: Sequence[int]) -> dict[tuple[Kind, int], float]:
    """Times of a machine on which 16-bit inputs take half as long again, and floats three times as long."""
    return {
        (kind, batch): shape[0] * shape[1] * factor
        for kind, factor in (("narrow", 1.0), ("wide", 1.5), ("float", 3.0))
        for batch in batches
    }


def test_a_tight_bound_gives_better_inputs_to_the_linears_that_lose_most(source: Path, best: SearchResult) -> None:
    attention = min(row.kl for row in best.candidates if row.part == "attention")
    bound = attention + 0.6 * (chosen(best).kl - attention)
    found = find(source, PROMPTS, TEXTS, max_kl=bound, seconds=seconds)
    assert chosen(found).kl <= bound
    assert found.batches == (1, 32)
    assert found.recipe.linear is not None
    by_bits = {
        bits: {row.name: row.kl for row in found.candidates if row.part == "group" and f"of {bits} bits" in row.change}
        for bits in (8, 16)
    }
    assert len(by_bits[8]) == len(by_bits[16]) == 13  # four groups in each of three layers, and the head
    assert sum(by_bits[16].values()) < 0.8 * sum(by_bits[8].values())
    everything = next(row.kl for row in found.candidates if (row.part, row.name) == ("linears", "rotated"))
    assert sum(by_bits[8].values()) == pytest.approx(everything, rel=0.3)
    wide, left = found.recipe.linear.wide_inputs, found.recipe.linear.float_layers
    assert wide
    assert not set(wide) & set(left)
    names = chosen(found).change.partition("16-bit inputs: ")[2].partition(". float")[0]
    assert all(module.rpartition(".")[2] in names for module in wide)


def test_a_tighter_bound_leaves_linears_float(source: Path, best: SearchResult) -> None:
    attention = min(row.kl for row in best.candidates if row.part == "attention")
    bound = attention + 0.1 * (chosen(best).kl - attention)
    found = find(source, PROMPTS, TEXTS, max_kl=bound, batches=(512,), seconds=seconds)
    assert chosen(found).kl <= bound
    assert found.batches == (512,)
    assert found.recipe.linear is not None
    assert found.recipe.linear.float_layers


def test_a_search_that_was_cut_off_goes_on(source: Path, best: SearchResult, tmp_path: Path) -> None:
    """Interrupted after each measurement: nothing is measured twice, and the table is the same."""
    journal = tmp_path / "journal.json"
    measured: list[str] = []
    while True:
        steps: list[str] = []

        def progress(what: str, done: int, total: int, steps: list[str] = steps) -> None:
            steps.append(what)
            if len(set(steps)) == 2:
                raise KeyboardInterrupt

        try:
            found = find(source, PROMPTS, TEXTS, progress=progress, journal=journal)
        except KeyboardInterrupt:
            measured.append(steps[0])
            continue
        break
    assert found == best
    assert measured == ["attention", "linears"]
    assert steps[0] == "the whole"
    assert [path.name for path in tmp_path.iterdir()] == ["journal.json"]


@pytest.mark.parametrize("change", ["calibration", "text", "damaged", "older arithmetic"])
def test_the_journal_of_another_search_is_discarded(
    source: Path, best: SearchResult, tmp_path: Path, change: str
) -> None:
    journal = tmp_path / "journal.json"
    find(source, PROMPTS, TEXTS, journal=journal)
    before = journal.read_text()
    if change == "damaged":
        journal.write_text(before[:100])
    elif change == "older arithmetic":  # with the same version number
        values = json.loads(before)
        journal.write_text(json.dumps({**values, "identity": " ".join(values["identity"])}))
    steps: set[str] = set()
    find(
        source,
        [*PROMPTS, ids(9, 77)] if change == "calibration" else PROMPTS,
        [ids(50, 97)] if change == "text" else TEXTS,
        progress=lambda what, done, total: steps.add(what),
        journal=journal,
    )
    assert steps == {"attention", "linears", "the whole"}
    assert (journal.read_text() == before) == (change in ("damaged", "older arithmetic"))


def test_no_candidate_rotates_a_residual_stream_that_cannot_be(tmp_path: Path) -> None:
    """Norms of outputs do not allow it, as `quantize` says."""
    tiny_model("olmo3", tmp_path)
    found = find(tmp_path, PROMPTS, TEXTS)
    assert {measured.name for measured in found.candidates if measured.part == "linears"} == LINEAR.keys() - {"folded"}


def test_what_cannot_be_had_is_refused(source: Path) -> None:
    with pytest.raises(UsageError, match="No recipe stays within a KL of 1e-07; the attention alone costs"):
        find(source, PROMPTS, TEXTS, max_kl=1e-7, seconds=seconds)
    with pytest.raises(UsageError, match="above 0"):
        find(source, PROMPTS, TEXTS, max_kl=-1.0)
    with pytest.raises(UsageError, match="no text"):
        find(source, PROMPTS, [])
    with pytest.raises(UsageError, match="from 1 on, not 0"):
        find(source, PROMPTS, TEXTS, max_kl=1.0, batches=(0,))


def test_biases_of_k_are_found_and_handled(source: Path, tmp_path: Path) -> None:
    """Channels of K far from zero, constant before RoPE: cheap recipes for other models are not good enough here."""
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
