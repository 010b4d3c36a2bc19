"""How a model is divided among ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faquant.checkpoint.model_config import parse_config
from faquant.errors import UnsupportedError
from faquant.model.ranks import Heads, layers_of, outputs_of, part
from oracles.configs import LLAMA


@pytest.mark.parametrize(
    ("layers", "stages", "counts"),
    [
        (32, 1, [32]),
        (32, 2, [16, 16]),
        (80, 3, [27, 27, 26]),
        (32, 3, [11, 11, 10]),
        (32, 5, [6, 6, 7, 7, 6]),
        (30, 4, [7, 8, 8, 7]),
        (31, 4, [8, 8, 8, 7]),
        (7, 7, [1] * 7),
    ],
)
def test_layers_beyond_an_equal_number_go_to_the_middle_and_never_to_the_last_stage(
    layers: int, stages: int, counts: list[int]
) -> None:
    parts = [layers_of(layers, stage, stages) for stage in range(stages)]
    assert [len(own) for own in parts] == counts
    assert [layer for own in parts for layer in own] == list(range(layers))


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"4 layers cannot be divided among 5 stages\. .* at most 4"):
        layers_of(4, 0, 5)


@given(st.integers(0, 300), st.integers(1, 40))
def test_parts_are_all_columns_once_and_the_first_is_the_largest(size: int, ranks: int) -> None:
    parts = [part(size, rank, ranks) for rank in range(ranks)]
    assert [column for own in parts for column in own] == list(range(size))
    assert max(map(len, parts)) == len(parts[0]) == -(-size // ranks)


@pytest.mark.parametrize(
    ("ranks", "q", "kv"),
    [
        (1, [8], [[0, 1]]),
        (2, [4, 4], [[0], [1]]),
        (4, [2, 2, 2, 2], [[0], [0], [1], [1]]),
        (8, [1] * 8, [[0], [0], [0], [0], [1], [1], [1], [1]]),
    ],
)
def test_every_rank_holds_the_key_value_heads_of_its_query_heads(ranks: int, q: list[int], kv: list[list[int]]) -> None:
    config = parse_config(LLAMA)  # 8 query heads of 32 channels, 2 key/value heads
    heads = [Heads.of(config, rank, ranks) for rank in range(ranks)]
    assert [len(some.q) for some in heads] == q
    assert [head for some in heads for head in some.q] == list(range(8))
    assert [list(some.kv) for some in heads] == kv
    for rank, some in enumerate(heads):
        assert {head // config.group_size for head in some.q} == set(some.kv)
        prefix = "model.layers.0.self_attn"
        assert outputs_of(config, f"{prefix}.q_proj", rank, ranks) == range(some.q.start * 32, some.q.stop * 32)
        for name in ("k_proj", "v_proj"):
            assert outputs_of(config, f"{prefix}.{name}", rank, ranks) == range(some.kv.start * 32, some.kv.stop * 32)


def test_all_other_linears_are_divided_by_outputs() -> None:
    config = parse_config(LLAMA | {"vocab_size": 32001})
    for name, size in config.linears.items():
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            continue
        assert [outputs_of(config, name, rank, 4) for rank in range(4)] == [part(size.n, rank, 4) for rank in range(4)]
    assert outputs_of(config, "lm_head", 3, 4) == range(3 * 8001, 32001)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "fitting"),
    [(8, 2, 3, "1, 2, 4, 8"), (12, 6, 4, "1, 2, 3, 6, 12"), (9, 3, 2, "1, 3, 9")],
)
def test_heads_that_cannot_be_divided_are_refused(heads: int, kv_heads: int, ranks: int, fitting: str) -> None:
    raw = LLAMA | {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 32}
    with pytest.raises(UnsupportedError) as caught:
        Heads.of(parse_config(raw), 0, ranks)
    assert str(caught.value) == (
        f"{heads} query heads and {kv_heads} key/value heads cannot be divided among {ranks} ranks. "
        f"--tensor-parallel-size can be {fitting}."
    )


def test_norms_over_all_heads_keep_these_on_one_rank() -> None:
    config = parse_config({**LLAMA, "model_type": "olmo2", "architectures": None})
    assert len(Heads.of(config, 0, 1).q) == 8
    with pytest.raises(UnsupportedError, match="olmo2 has norms over all heads"):
        Heads.of(config, 0, 2)
