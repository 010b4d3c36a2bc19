"""Random generators of requests on CPUs."""

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


def guard_generators() -> None:
    """Hide the generators of requests whose token vLLM will discard from its sampler. Using them can end the service on
    CPUs (vLLM 0.32), and would make an answer depend on its chunks.

    Changes vLLM's class in this process, because vLLM has no hook for it; may be called several times.
    """
    CPUModelRunner.sample_tokens = _sample_tokens


def _sample_tokens(runner: Any, *given: Any, **more: Any) -> Any:
    """GPUModelRunner.sample_tokens without these generators."""
    generators, discarded = runner.input_batch.generators, runner.discard_request_mask.np
    waiting = np.flatnonzero(discarded[: runner.input_batch.num_reqs]).tolist()
    kept = {request: generators.pop(request) for request in waiting if request in generators}
    try:
        return super(CPUModelRunner, runner).sample_tokens(*given, **more)
    finally:
        generators.update(kept)
