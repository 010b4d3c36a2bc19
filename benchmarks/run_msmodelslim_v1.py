"""Quantize a Llama with msmodelslim's newer pipeline of processors. Runs in a Python environment with msmodelslim;
never imported.

That pipeline does not support Llama; its adapter for Qwen3 has the same modules, and is extended here to observe q, k
and v.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from msmodelslim.core.const import DeviceType
from msmodelslim.core.context import ContextFactory, ContextManager
from msmodelslim.core.quant_service.modelslim_v1.save import AscendV1Config
from msmodelslim.core.quant_service.modelslim_v1.save.interface import AscendV1SaveInterface
from msmodelslim.core.runner.pipeline_parallel_runner import PPRunner
from msmodelslim.model.qwen3.model_adapter import Qwen3ModelAdapter
from msmodelslim.processor import (
    FA3QuantProcessorConfig,
    FlexSmoothQuantProcessorConfig,
    IterSmoothProcessorConfig,
    LinearProcessorConfig,
    QuaRotProcessorConfig,
)
from msmodelslim.processor.quant.fa3.interface import FA3QuantAdapterInterface, FA3QuantPlaceHolder
from msmodelslim.processor.quarot import QuaRotInterface
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama

SMOOTHING = {"iter": IterSmoothProcessorConfig, "flex": FlexSmoothQuantProcessorConfig}
RATIOS = {"q": 0.9999, "k": 0.9999, "v": 1.0}


class LlamaAdapter(Qwen3ModelAdapter, QuaRotInterface, FA3QuantAdapterInterface, AscendV1SaveInterface):
    """The adapter for a Llama. The calibration data are token ids, so it has no tokenizer."""

    def _load_tokenizer(self, trust_remote_code: bool = False) -> None:
        return None

    def init_model(self, device: DeviceType = DeviceType.CPU) -> PreTrainedModel:
        """The float model, with a separate tensor for the head, so that the embedding is not rotated twice."""
        model = AutoModelForCausalLM.from_pretrained(self.model_path, dtype="auto", attn_implementation="eager").eval()
        if model.config.tie_word_embeddings:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
            model.config.tie_word_embeddings = False
        return model

    def handle_dataset(self, dataset: list[list[int]], device: DeviceType = DeviceType.CPU) -> list[list[torch.Tensor]]:
        return [[torch.tensor([ids])] for ids in dataset]

    def inject_fa3_placeholders(
        self, root_name: str, root_module: torch.nn.Module, should_inject: Callable[[str], bool]
    ) -> None:
        if should_inject(f"{root_name}.self_attn"):
            for kind, ratio in RATIOS.items():
                root_module.set_submodule(f"self_attn.fa_{kind}", FA3QuantPlaceHolder(ratio))

    def ascendv1_save_postprocess(self, model: torch.nn.Module, save_directory: str) -> None:
        """Save the float model's config.json, with an untied head."""
        path = Path(save_directory, "config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2), encoding="utf-8")


def observe_attention() -> None:
    """Pass q, k and v through the observers that msmodelslim adds to the attention module."""
    attend = modeling_llama.eager_attention_forward

    def observed(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if hasattr(module, "fa_q"):
            q, k, v = module.fa_q(q), module.fa_k(k), module.fa_v(v)
        return attend(module, q, k, v, *args, **kwargs)

    modeling_llama.eager_attention_forward = observed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="Hugging Face directory of a float Llama")
    parser.add_argument("out", type=Path, help="directory for the quantized checkpoint")
    parser.add_argument("--calibration", type=Path, required=True, help="JSON: a list of lists of token ids")
    parser.add_argument("--float-out", type=Path, help="directory for the float model after rotation and smoothing")
    parser.add_argument("--float-names", nargs="*", default=[], help="linears that stay float")
    parser.add_argument("--quarot", action="store_true", help="fold rotations of the residual stream and of V")
    parser.add_argument("--smoothing", choices=list(SMOOTHING), help="which smoothing after that")
    parser.add_argument("--weight-method", default="minmax", help="how weights are rounded: minmax, ssz, gptq")
    parser.add_argument("--act-method", default="minmax", help="an input's range: minmax, histogram")
    parser.add_argument("--aggregation", choices=["max", "mean"], default="max", help="minmax over the batches")
    options = parser.parse_args()

    observe_attention()
    adapter = LlamaAdapter("llama", options.model)
    runner = PPRunner(adapter=adapter)
    if options.quarot:
        runner.add_processor(QuaRotProcessorConfig(export_extra_info=False))
    if options.smoothing:
        # The input of a float down_proj needs no smoothing, and an unnecessary folded scale costs accuracy.
        down_is_float = any(name.endswith("down_proj") for name in options.float_names)
        pairs = ["norm-linear", "ov"] if down_is_float else ["norm-linear", "ov", "up-down"]
        runner.add_processor(SMOOTHING[options.smoothing](include=["*"], enable_subgraph_type=pairs))
    if options.float_out:
        options.float_out.mkdir(parents=True, exist_ok=True)
        runner.add_processor(AscendV1Config(save_directory=str(options.float_out), part_file_size=0))
    act = {"scope": "per_tensor", "dtype": "int8", "symmetric": False, "method": options.act_method}
    if options.act_method == "minmax":
        act["ext"] = {"aggregation_type": options.aggregation}
    weight = {"scope": "per_channel", "dtype": "int8", "symmetric": True, "method": options.weight_method}
    runner.add_processor(
        LinearProcessorConfig(qconfig={"act": act, "weight": weight}, include=["*"], exclude=options.float_names)
    )
    runner.add_processor(FA3QuantProcessorConfig())
    runner.add_processor(AscendV1Config(save_directory=str(options.out), part_file_size=0))
    options.out.mkdir(parents=True, exist_ok=True)
    with ContextManager(ContextFactory().create()):
        runner.run(calib_data=json.loads(options.calibration.read_text(encoding="utf-8")), device=DeviceType.CPU)


if __name__ == "__main__":
    main()
