"""Which linears are made better first, and what that costs."""

from pathlib import Path

import pytest

from faquant.checkpoint.model_config import load_config
from faquant.search.costs import Costs, timed, timings
from faquant.search.upgrades import Upgrade, upgrades
from oracles.tiny_models import tiny_model

A, B = ("a",), ("b",)


def test_the_best_rate_comes_first_and_wide_before_float() -> None:
    found = upgrades(
        {A: 1.0, B: 4.0}, {A: 0.5, B: 1.0}, {A: {"wide": 1.0, "float": 4.0}, B: {"wide": 1.0, "float": 4.0}}
    )
    assert [(upgrade.group, upgrade.kind) for upgrade in found] == [
        (B, "wide"),
        (A, "wide"),
        (B, "float"),
        (A, "float"),
    ]
    assert found[0] == Upgrade(B, "wide", 3.0, 1.0)
    assert found[2] == Upgrade(B, "float", 1.0, 3.0)
    assert sum(upgrade.gain for upgrade in found) == 5.0


def test_a_group_is_left_float_at_once_where_that_has_the_better_rate() -> None:
    (only,) = upgrades({A: 1.0}, {A: 0.9}, {A: {"wide": 1.0, "float": 2.0}})
    assert only == Upgrade(A, "float", 1.0, 2.0)


def test_what_gains_nothing_is_left_alone() -> None:
    costs = {A: {"wide": 1.0, "float": 8.0}, B: {"wide": 1.0, "float": 2.0}}
    found = upgrades({A: 1.0, B: 0.0}, {A: 0.0, B: 0.1}, costs)
    assert [(upgrade.group, upgrade.kind) for upgrade in found] == [(A, "wide")]


def test_noise_makes_nothing_free() -> None:
    found = upgrades({A: 1.0}, {A: 0.5}, {A: {"wide": -0.1, "float": -0.2}})
    assert all(upgrade.cost > 0 for upgrade in found)


def test_costs_are_shares_of_the_time_of_all_int8_linears(tmp_path: Path) -> None:
    tiny_model("smollm", tmp_path)
    config = load_config(tmp_path)
    found = timings(
        config,
        (1, 8),
        lambda shape, batches: {
            (kind, batch): shape[0] * shape[1] * factor * batch
            for kind, factor in (("narrow", 1.0), ("wide", 1.5), ("float", 3.0))
            for batch in batches
        },
    )
    costs = Costs(config, (1, 8), found)
    names = tuple(config.linears)
    assert costs.added(names, "wide") == pytest.approx(0.5)
    assert costs.added(names, "float") == pytest.approx(2.0)
    assert costs.added(names, "narrow") == 0
    assert 0 < costs.added(names[:1], "wide") < 0.1


def test_kernels_are_timed() -> None:
    found = timed(float_bytes=2)((512, 512), (1, 64))
    assert set(found) == {(kind, batch) for kind in ("narrow", "wide", "float") for batch in (1, 64)}
    assert all(seconds > 0 for seconds in found.values())
