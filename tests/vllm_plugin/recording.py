"""What vLLM's workers run; they import it by name."""

import hashlib
from typing import Any


def record(model: Any) -> None:
    """Hash the hidden states of all tokens from now on."""
    model.seen = hashlib.sha256()
    model.register_forward_hook(lambda _, __, hidden: model.seen.update(hidden.numpy().tobytes()))


def taken(model: Any) -> str:
    """The sha256 so far."""
    return str(model.seen.hexdigest())
