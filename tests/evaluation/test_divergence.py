"""The measures are right, and they really use the cache that serves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from faquant.errors import UsageError
from faquant.evaluation.divergence import compare, variants, window_logits
from faquant.kernels.arrays import Floats, Integers
from faquant.kernels.backend import Linear
from faquant.kernels.modules import DynamicLinear, FloatLinear, StaticLinear
from faquant.kernels.pages import Int8Pages
from faquant.model.load import Model, load
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import tiny_model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """A quantized model and its float source."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_model("smollm", folder / "float")
    source = load(folder / "float")
    quantize(folder / "float", folder / "out", RECIPES["default"], [_tokens(source, 60)])
    return load(folder / "out"), source


def _tokens(model: Model, count: int) -> list[int]:
    return torch.randint(0, model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(1)).tolist()


def test_a_model_does_not_diverge_from_itself(pair: tuple[Model, Model]) -> None:
    _, source = pair
    result = compare(source, {"same": source}, _tokens(source, 50), window=20)["same"]
    assert result.kl_mean == result.kl_max == 0.0
    assert result.top1 == 1.0
    assert result.perplexity == result.perplexity_float
    assert result.tokens == 50


def test_figures_equal_their_definitions(pair: tuple[Model, Model]) -> None:
    model, source = pair
    ids = _tokens(source, 30)
    result = compare(source, {"both": model}, ids, window=30)["both"]
    p, q = (window_logits(m, torch.tensor(ids)).double().log_softmax(-1) for m in (source, model))
    kl = (p.exp() * (p - q)).sum(-1)
    assert result.kl_mean == pytest.approx(float(kl.mean()), rel=1e-3)
    assert result.kl_max == pytest.approx(float(kl.max()), rel=1e-3)
    assert result.top1 == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    loss = -q[torch.arange(29), torch.tensor(ids[1:])].mean()
    assert result.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_windows_start_afresh_and_a_single_last_token_is_left_out(pair: tuple[Model, Model]) -> None:
    model, source = pair
    ids = _tokens(source, 41)
    whole = compare(source, {"both": model}, ids, window=20)["both"]
    halves = [compare(source, {"both": model}, ids[i : i + 20], window=20)["both"] for i in (0, 20)]
    assert whole.tokens == 40
    assert whole.kl_mean == pytest.approx(sum(half.kl_mean for half in halves) / 2, rel=1e-6)


def test_the_parts_add_up_to_about_the_whole(pair: tuple[Model, Model]) -> None:
    model, source = pair
    results = compare(source, variants(model, source), _tokens(source, 60), window=60)
    assert set(results) == {"attention", "linears", "both"}
    assert 0 < results["attention"].kl_mean < results["both"].kl_mean
    assert 0 < results["linears"].kl_mean < 1.5 * results["both"].kl_mean


@pytest.mark.parametrize("is_static", [False, True])
def test_an_input_multiplier_is_not_taken_for_something_folded_into_v(
    pair: tuple[Model, Model], is_static: bool
) -> None:
    model, source = pair
    plain = source.decoder.layers[0].v_proj
    assert isinstance(plain, FloatLinear)
    multiplier = np.geomspace(0.25, 4, plain.weight.shape[1], dtype=np.float32)
    divided = plain.weight / multiplier
    scale = np.abs(divided).max(1) / np.float32(127)
    weight = np.rint(divided / scale[:, None]).astype(np.int8)
    step, zero = np.full(1, 0.5, np.float32), np.zeros(1, np.float32)

    def variants_with(by: Floats | None) -> set[str]:
        linear: Linear = DynamicLinear(weight, scale, input_multiplier=by)
        if is_static:
            linear = StaticLinear(weight, step, zero, np.zeros(len(weight), np.int32), scale * step, by)
        layer = replace(model.decoder.layers[0], v_proj=linear)
        decoder = replace(model.decoder, layers=[layer, *list(model.decoder.layers)[1:]])
        return set(variants(replace(model, decoder=decoder, metadata=None), source))

    assert variants_with(multiplier) == {"attention", "linears", "both"}
    assert variants_with(None) == {"linears", "both"}


def test_a_quantized_source_is_refused(pair: tuple[Model, Model]) -> None:
    model, _ = pair
    with pytest.raises(TypeError, match="must be a float model, not one with a DynamicLinear"):
        variants(replace(model, metadata=None), model)


def test_corrupting_the_scales_in_the_cache_is_seen(pair: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = pair
    ids = _tokens(source, 40)
    sound = compare(source, {"both": model}, ids, window=60)["both"]
    append = Int8Pages.append

    def corrupting(self: Int8Pages, k: torch.Tensor, v: torch.Tensor, slots: Integers, positions: Integers) -> None:
        append(self, k, v, slots, positions)
        assert self.k_scale is not None
        assert self.v_scale is not None
        written = slots // self.page_size, slice(None), slots % self.page_size
        self.k_scale[written] *= 1.5
        self.v_scale[written] *= 0.5

    monkeypatch.setattr(Int8Pages, "append", corrupting)
    corrupt = compare(source, {"both": model}, ids, window=60)["both"]
    assert corrupt.kl_mean > 10 * sound.kl_mean
    assert corrupt.top1 < sound.top1


def test_a_corrupt_scale_in_the_scheme_is_seen(pair: tuple[Model, Model]) -> None:
    model, source = pair
    ids = _tokens(source, 40)
    sound = compare(source, {"both": model}, ids, window=60)["both"]
    schemes = [replace(scheme, k_equalizer=scheme.k_equalizer * 50) for scheme in model.schemes if scheme is not None]
    # The equalizer alone cancels between q and k; a wrong center does not.
    same = compare(source, {"both": replace(model, schemes=schemes)}, ids, window=60)["both"]
    assert same.kl_mean == pytest.approx(sound.kl_mean, rel=0.5)
    schemes = [replace(scheme, rotation_block=2) for scheme in model.schemes if scheme is not None]
    wrong = [replace(scheme, k_scale=np.full((3, 1), 1e-3, np.float32)) for scheme in schemes]
    assert compare(source, {"both": replace(model, schemes=wrong)}, ids, window=60)["both"].kl_mean > 3 * sound.kl_mean


def test_nothing_to_measure_is_refused(pair: tuple[Model, Model]) -> None:
    model, source = pair
    with pytest.raises(UsageError, match="fewer than two"):
        compare(source, {"both": model}, [1])
    with pytest.raises(UsageError, match="exceeds the context"):
        compare(source, {"both": model}, _tokens(source, 30), window=10**6)
