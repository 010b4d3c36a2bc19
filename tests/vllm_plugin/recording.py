"""What vLLM's workers run; they import it by name."""

import hashlib
from typing import Any

from torch import Tensor


def record(model: Any) -> None:
    """Hash the hidden states of all tokens from now on, or what a stage passes to the next one of a pipeline."""
    model.seen = hashlib.sha256()

    def see(_: Any, __: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output["residual_stream"]
        model.seen.update(hidden.numpy().tobytes())

    model.register_forward_hook(see)


def taken(model: Any) -> str:
    """The sha256 so far."""
    return str(model.seen.hexdigest())
