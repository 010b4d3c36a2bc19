"""Runs prompts together through vLLM, once for each checkpoint, in a process that is forked after vLLM is imported.

python forked.py PROMPTS COUNT DIRECTORY...

Prints for each directory the tokens of prompts and answers, the sha256 of each row of logits, and how often a request
was preempted in a cache of five pages.
"""

import hashlib
import json
import os
import sys
from importlib import import_module
from typing import Any


def main(prompts: str, count: str, *directories: str) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for module in ("vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker"):
        import_module(module)
    import_module("vllm.plugins").load_general_plugins()
    import_module("faquant.vllm.model")

    for directory in directories:
        child = os.fork()
        if not child:
            status = 1
            try:
                print(json.dumps(answered(directory, json.loads(prompts), int(count))), flush=True)
                status = 0
            finally:
                os._exit(status)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise SystemExit(f"{directory} has failed.")


def answered(directory: str, prompts: list[list[int]], count: int) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    llm = LLM(
        directory,
        quantization="faquant",
        distributed_executor_backend="uni",
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=512,
        max_num_seqs=len(prompts),
        max_num_batched_tokens=128,
        num_gpu_blocks_override=6,  # one is vLLM's own
    )
    model = llm.apply_model(lambda model: model)[0]
    real, logits = model.compute_logits, list[str]()

    def compute(hidden: Any) -> Any:
        found = real(hidden)
        logits.extend(hashlib.sha256(row.tobytes()).hexdigest() for row in found.numpy())
        return found.clone()

    model.compute_logits = compute
    scheduler: Any = llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
    preempt, preempted = scheduler._preempt_request, []
    scheduler._preempt_request = lambda *given, **more: preempted.append(1) or preempt(*given, **more)
    sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": each} for each in prompts], sampling, use_tqdm=False)
    return {
        "directory": directory,
        "answers": [(list(each.prompt_token_ids or []), list(each.outputs[0].token_ids)) for each in answers],
        "logits": logits,
        "preempted": len(preempted),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
