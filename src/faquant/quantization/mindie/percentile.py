"""Static scales of q, k and v, one per head, as in msModelSlim: a percentile window per prompt, then their union."""

import torch
from torch import Tensor

from ...errors import CheckpointError
from .w8a8 import symmetric_scale

Q_RATIO = K_RATIO = 0.9999
V_RATIO = 1.0


def shortest_window(values: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Ends [heads, 1] of the shortest interval that contains int(ratio · N) of each head's N values [heads, N].

    Of equally short intervals, the lowest is taken. It contains at least one value.
    """
    count = values.shape[1]
    held = max(int(ratio * count), 1)
    ordered = values.sort(dim=1).values
    low, high = ordered[:, : count - held + 1], ordered[:, held - 1 :]
    # In float64, because rounding the differences to the values' dtype would cause ties.
    best = (high.double() - low.double()).argmin(dim=1, keepdim=True)
    return low.gather(1, best), high.gather(1, best)


class HeadObserver:
    """The range of q, k or v for each head: a window per prompt, then the union over the prompts."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._minimum: Tensor | None = None
        self._maximum: Tensor | None = None

    def update(self, states: Tensor) -> None:
        """Add one prompt's states [tokens, heads, head_dim]: q and k after RoPE, before kv heads are repeated.

        Raises:
            CheckpointError: a value is not finite.
        """
        if not states.isfinite().all():
            raise CheckpointError("Calibration overflowed: q, k or v has values that are not finite.")
        minimum, maximum = shortest_window(states.transpose(0, 1).flatten(1), self._ratio)
        self._minimum = minimum if self._minimum is None else torch.minimum(self._minimum, minimum)
        self._maximum = maximum if self._maximum is None else torch.maximum(self._maximum, maximum)

    def scale(self) -> Tensor:
        """Symmetric scales [heads, 1] in the dtype of the states.

        Raises:
            CheckpointError: nothing was observed.
        """
        if self._minimum is None or self._maximum is None:
            raise CheckpointError("An attention layer received no calibration data, so it has no scales.")
        return symmetric_scale(self._minimum, self._maximum)
