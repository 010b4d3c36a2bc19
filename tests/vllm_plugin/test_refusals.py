"""Settings of vLLM's that a model cannot run with, and the plugin's own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CompilationMode
from vllm.model_executor.model_loader import DefaultModelLoader

from faquant.errors import UnsupportedError, UsageError
from faquant.formats import open_checkpoint
from faquant.formats.base import Opened
from faquant.vllm.attention import LayerCache
from faquant.vllm.model import FaquantModel
from faquant.vllm.quantization import FaquantConfig, Loader
from faquant.vllm.settings import check, scales_of
from oracles.tiny_models import tiny_model

pytestmark = pytest.mark.vllm


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    tiny_model("llama3", tmp_path)
    return open_checkpoint(tmp_path)


def settings(**other: Any) -> Any:
    """vLLM's defaults, but for some fields of any of its parts."""
    model = {
        "model": "OUT",
        "max_model_len": 512,
        "runner_type": "generate",
        "convert_type": "none",
        "hf_overrides": {},
        "hf_config_path": None,
        "enable_prompt_embeds": False,
        "dtype": torch.bfloat16,
    }
    cache = {"user_specified_block_size": False, "block_size": 16}
    parallel = {"pipeline_parallel_size": 1}
    compilation = {"mode": CompilationMode.NONE}
    parts = {"model": model, "cache": cache, "parallel": parallel, "compilation": compilation}
    whole = {"lora_config": None, "speculative_config": None, "kv_transfer_config": None, "additional_config": {}}
    for name, value in other.items():
        (holder,) = [fields for fields in (*parts.values(), whole) if name in fields]
        holder[name] = value
    return SimpleNamespace(**{f"{name}_config": SimpleNamespace(**part) for name, part in parts.items()}, **whole)


def of_user(size: int) -> dict[str, Any]:
    return {"user_specified_block_size": True, "block_size": size}


def speculation(method: str) -> dict[str, Any]:
    return {"speculative_config": SimpleNamespace(method=method)}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"pipeline_parallel_size": 2, "mode": CompilationMode.VLLM_COMPILE},
        {"enable_prompt_embeds": True, "dtype": torch.float32},
        {"hf_config_path": "OUT"},
        of_user(128),
        of_user(384),
        speculation("ngram"),
        speculation("suffix"),
    ],
)
def test_what_runs(given: dict[str, Any], opened: Opened) -> None:
    check(settings(**given), opened)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pipeline_parallel_size": 2}, "runs pipelines only without --enforce-eager"),
        ({"max_model_len": 513}, r"Pass --max-model-len 512\."),
        ({"lora_config": object()}, "LoRA"),
        ({"hf_overrides": {"rms_norm_eps": 0.5}}, "--hf-overrides .* Change config.json"),
        ({"hf_overrides": lambda config: config}, "--hf-overrides"),
        ({"hf_config_path": "other"}, "--hf-config-path"),
        ({"enable_prompt_embeds": True}, r"torch.bfloat16\. Pass --dtype float32\."),
        ({"runner_type": "pooling"}, "--runner pooling"),
        ({"convert_type": "embed"}, "--convert embed"),
        ({"kv_transfer_config": object()}, "--kv-transfer-config and --kv-offloading-size"),
        (of_user(16), r"--block-size 16: .* or pass 128\."),
        (of_user(64), r"or pass 128\."),
        (of_user(192), r"or pass 256\."),
        *((speculation(method), f"{method} is not") for method in ("draft_model", "eagle", "medusa", "custom_class")),
    ],
)
def test_refusals(given: dict[str, Any], message: str, opened: Opened) -> None:
    with pytest.raises(UnsupportedError, match=message):
        check(settings(**given), opened)


def test_dynamic_rope(tmp_path: Path) -> None:
    tiny_model("llama3", tmp_path, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(UnsupportedError, match=r"RoPE of type dynamic .* `faquant serve`"):
        check(settings(), open_checkpoint(tmp_path))


@pytest.mark.parametrize(("given", "scales"), [({}, "row"), ({"faquant_scales": "shard", "other": 1}, "shard")])
def test_scales(given: dict[str, Any], scales: str) -> None:
    assert scales_of(settings(additional_config=given)) == scales


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"faquant_scales": "shards"}, "must be row or shard, not 'shards'"),
        ({"faquant_scales": None}, "not None"),
        ({"faquant_scale": "shard"}, "'faquant_scale' is unknown. The plugin's only setting is faquant_scales"),
    ],
)
def test_wrong_additional_config(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scales_of(settings(additional_config=given))


def test_a_part_of_another_model() -> None:
    """A draft model."""
    with pytest.raises(UnsupportedError, match=r"'draft_model'.* --speculative-config"):
        FaquantModel(vllm_config=settings(), prefix="draft_model")


def test_other_weights_for_a_running_model() -> None:
    with pytest.raises(UnsupportedError, match="Start vLLM again"):
        FaquantModel.load_weights(FaquantModel.__new__(FaquantModel), [])


def test_another_load_format() -> None:
    with pytest.raises(UsageError, match="Leave --load-format at auto"):
        FaquantConfig().get_quant_method(torch.nn.Linear(1, 1), "model.layers.0")


MSMODELSLIM = Path(__file__).parents[1] / "data" / "interop" / "msms-w8a8-fa3-int8"


def load(quant_config: object, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What Loader returns for a checkpoint whose config.json does not say that it is quantized; vLLM's own loader would
    return its name."""
    monkeypatch.setattr(DefaultModelLoader, "load_model", lambda *given, **more: "vLLM's own")
    model: Any = SimpleNamespace(model=str(MSMODELSLIM))
    config: Any = SimpleNamespace(model_config=model, quant_config=quant_config)
    return Loader.load_model(Loader.__new__(Loader), config, model)


def test_msmodelslim_s_format_without_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"quant_model_description.*\. Pass --quantization faquant\."):
        load(None, monkeypatch)


def test_other_plugins_may_read_msmodelslim_s_format(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(object(), monkeypatch) == "vLLM's own"


def test_a_draft_model_is_not_the_plugin_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DefaultModelLoader, "load_model", lambda *given, **more: "vLLM's own")
    config: Any = SimpleNamespace(model_config=object(), quant_config=FaquantConfig())
    assert Loader.load_model(Loader.__new__(Loader), config, settings().model_config) == "vLLM's own"


def test_pages_that_are_not_contiguous() -> None:
    cache = LayerCache(4, 2, 16, 64)
    cache.kv_cache = torch.zeros(3, 128, 2, 32, dtype=torch.int8).transpose(1, 2)
    with pytest.raises(UnsupportedError, match="Unset VLLM_KV_CACHE_LAYOUT"):
        _ = cache.pages


def test_pages_may_lie_apart() -> None:
    """Only the bytes of each are contiguous."""
    cache, memory = LayerCache(4, 2, 16, 64), torch.arange(3 * 2 * 256, dtype=torch.int16).to(torch.int8)
    cache.kv_cache = memory.view(3, 2, 2, 4, 32)[:, 1]
    assert torch.equal(cache.pages.view(torch.int8), memory.view(3, 2, 256)[:, 1])
