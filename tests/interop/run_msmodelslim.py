"""Quantize a Llama checkpoint with msmodelslim itself. Runs in a Python environment with msmodelslim; never imported.

msmodelslim has an observer for q, k and v, but does not call it in a Llama: here the attention function calls it, after
RoPE and before the kv heads are repeated.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools.fa_quant_adapter import ForwardFactory
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

Captured = dict[str, torch.Tensor]


@ForwardFactory.register("llama", "mha")
def keep_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """msmodelslim requires an adapter for the attention's forward; observing does not change it."""
    return lambda self, *args, **kwargs: forward(*args, **kwargs)


def observe_attention(captured: Captured | None) -> None:
    """Let every attention module pass q, k and v to its observer; copy them into `captured`."""
    attend = modeling_llama.eager_attention_forward
    seen: dict[int, int] = {}

    def observed(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        quantizer = getattr(module, "fa_quantizer", None)
        if quantizer is not None:
            for kind, states in (("q", q), ("k", k), ("v", v)):
                quantizer.quant(states, qkv=kind)
            if captured is not None and quantizer.is_calib:
                sample = seen.get(module.layer_idx, 0)
                seen[module.layer_idx] = sample + 1
                for kind, states in (("q", q), ("k", k), ("v", v)):
                    captured[f"sample{sample}.layer{module.layer_idx}.{kind}"] = states.clone().contiguous()
        return attend(module, q, k, v, *args, **kwargs)

    modeling_llama.eager_attention_forward = observed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="Hugging Face directory of a float Llama")
    parser.add_argument("out", type=Path, help="directory for the quantized checkpoint")
    parser.add_argument("--calibration", type=Path, required=True, help="JSON: a list of lists of token ids")
    parser.add_argument("--float-names", nargs="*", default=[], help="linears that stay float")
    parser.add_argument("--anti-method", help="suppress outliers before: m1 to m6")
    parser.add_argument("--anti-every", type=int, default=1, help="only every so many prompts for the suppression")
    parser.add_argument("--act-method", type=int, default=1, help="ranges of inputs: 1 min-max, 2 histogram, 3 mixed")
    parser.add_argument("--float-out", type=Path, help="directory for the float model after the suppression")
    parser.add_argument("--capture", type=Path, help="also save the observed q, k and v as this safetensors file")
    options = parser.parse_args()

    random.seed(0)
    torch.manual_seed(0)
    captured: Captured | None = {} if options.capture else None
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto", attn_implementation="eager").eval()
    if model.config.tie_word_embeddings:  # msmodelslim cannot save two names of one tensor
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    observe_attention(captured)
    prompts = [[torch.tensor([ids])] for ids in json.loads(options.calibration.read_text(encoding="utf-8"))]
    if options.anti_method:
        AntiOutlier(model, prompts[:: options.anti_every], AntiOutlierConfig(anti_method=options.anti_method)).process()
    if options.float_out:
        options.float_out.mkdir(parents=True, exist_ok=True)
        # A norm with an added bias wraps the original one, whose weight is the right one; its own is a stale copy.
        state = model.state_dict()
        stale = {name.replace(".module.", ".") for name in state if ".module." in name}
        tensors = {name.replace(".module.", "."): tensor for name, tensor in state.items() if name not in stale}
        # With a description, because the norms of a plain Llama have no biases.
        save_file(tensors, options.float_out / "quant_model_weights.safetensors")
        description = {"version": "1.0.0", "model_quant_type": "FLOAT", **dict.fromkeys(tensors, "FLOAT")}
        (options.float_out / "quant_model_description.json").write_text(json.dumps(description))
    config = QuantConfig(
        w_bit=8,
        a_bit=8,
        act_method=options.act_method,
        w_sym=True,
        mm_tensor=False,
        dev_type="cpu",
        disable_names=options.float_names,
        disable_last_linear=False,
    ).fa_quant(fa_amp=0)
    calibrator = Calibrator(model, config, calib_data=prompts, disable_level="L0")
    calibrator.run()
    options.out.mkdir(parents=True, exist_ok=True)
    calibrator.save(str(options.out), save_type=["ascendV1"])
    if captured is not None:
        save_file(captured, str(options.capture))


if __name__ == "__main__":
    main()
