"""Runs one prompt through vLLM, and prints the answer's tokens and, for each rank, the sha256 of all hidden states.

python ranks.py DIRECTORY TENSOR_PARALLEL PIPELINE_PARALLEL DTYPE IDS COUNT [SCALES]
"""

import json
import os
import sys

from recording import record, taken


def main(
    directory: str,
    tensor_parallel: str,
    pipeline_parallel: str,
    dtype: str,
    ids: str,
    count: str,
    scales: str = "row",
) -> None:
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # to send functions
    from vllm import LLM, SamplingParams

    llm = LLM(
        directory,
        dtype=dtype,
        quantization="faquant",
        tensor_parallel_size=int(tensor_parallel),
        pipeline_parallel_size=int(pipeline_parallel),
        skip_tokenizer_init=True,
        enforce_eager=pipeline_parallel == "1",  # with it, pipelines on CPUs fail in vLLM 0.32
        additional_config={"faquant_scales": scales},
        max_num_seqs=2,
        max_num_batched_tokens=128,  # cuts the prompt
    )
    llm.apply_model(record)
    sampling = SamplingParams(temperature=0, max_tokens=int(count), ignore_eos=True, detokenize=False)
    answer = llm.generate({"prompt_token_ids": json.loads(ids)}, sampling, use_tqdm=False)[0]
    print(json.dumps({"tokens": list(answer.outputs[0].token_ids), "seen": llm.apply_model(taken)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
