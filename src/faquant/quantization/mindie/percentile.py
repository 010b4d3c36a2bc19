"""Static scales of q, k and v, one per head, as the ecosystem finds them: a percentile window, then the widest."""

import torch
from torch import Tensor

from ...errors import CheckpointError
from .w8a8 import symmetric_scale

Q_RATIO = K_RATIO = 0.9999
V_RATIO = 1.0


def shortest_window(values: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Ends [heads, 1] of the shortest interval that holds int(ratio · N) of each head's N values [heads, N].

    Of equally short ones the lowest is taken. At least one value is held.
    """
    count = values.shape[1]
    held = max(int(ratio * count), 1)
    ordered = values.sort(dim=1).values
    low, high = ordered[:, : count - held + 1], ordered[:, held - 1 :]
    # In float64, because a difference that is rounded to the values' dtype would make ties.
    best = (high.double() - low.double()).argmin(dim=1, keepdim=True)
    return low.gather(1, best), high.gather(1, best)


class HeadObserver:
    """The range of q, k or v for each head: a window for each prompt, then the union over the prompts."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._minimum: Tensor | None = None
        self._maximum: Tensor | None = None

    def update(self, states: Tensor) -> None:
        """Take one prompt's states [tokens, heads, head_dim]: q and k after RoPE, before kv heads are repeated.

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
            raise CheckpointError("An attention layer saw no calibration data, so it has no scales.")
        return symmetric_scale(self._minimum, self._maximum)
