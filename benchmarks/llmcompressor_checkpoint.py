"""Quantizes a model by llm-compressor: W8A8 with a scale per token, and K/V tables per head by its default observer.

    python benchmarks/llmcompressor_checkpoint.py MODEL OUT CALIBRATION.jsonl [--float-cache]

With --float-cache there are no K/V tables: vLLM has no int8 cache for them.

Runs in an environment with llmcompressor 0.14.0.1 and torch 2.13.0, without faquant. CALIBRATION is faquant's built-in
set, src/faquant/quantization/calibration.jsonl; its first 24 samples of at least 64 tokens are used, up to 384 tokens
each. docs/other_tools.md has the figures of `faquant evaluate --quick` for the result, and after `faquant calibrate`.
"""

import json
import sys
from pathlib import Path

SAMPLES, SHORTEST, LONGEST = 24, 64, 384


def main() -> None:
    # Here, because faquant's own environment does not have them.
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_directory, out, calibration, *flags = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    samples = []
    for line in Path(calibration).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        text = record.get("text") or tokenizer.apply_chat_template(
            [{**message, "role": message["role"].replace("tool", "user")} for message in record["messages"]],
            tokenize=False,
        )
        ids = tokenizer(text)["input_ids"][:LONGEST]
        if len(ids) >= SHORTEST:
            samples.append(ids)
    samples = samples[:SAMPLES]
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.bfloat16)
    data = Dataset.from_dict({"input_ids": samples, "attention_mask": [[1] * len(ids) for ids in samples]})
    cache = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="attn_head", dynamic=False)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=data,
        recipe=QuantizationModifier(
            ignore=["lm_head"], scheme="W8A8", kv_cache_scheme=None if "--float-cache" in flags else cache
        ),
        max_seq_length=LONGEST,
        num_calibration_samples=len(samples),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(out, save_compressed=True)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
