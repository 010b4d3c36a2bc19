"""Weights that a family stores as one, as the parts that faquant computes: q, k and v, and gate and up.

Where RoPE rotates only the first R of a head's D channels, as pairs (i, i + R/2), the rows of q and k are reordered so
that it rotates pairs (i, i + D/2), and the other channels by 0. Scores do not depend on the order of the channels.
faquant's own checkpoints have the parts in this order (docs/format.md).
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..checkpoint.model_config import ModelConfig
from ..checkpoint.tensors import Rows, TensorFiles
from ..errors import CheckpointError

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Checkpoint names of linears, and of those whose outputs they have one after another."""


def divided(files: TensorFiles, config: ModelConfig, directory: Path) -> TensorFiles:
    """The tensors of a checkpoint whose family fuses linears, with those of FUSED divided.

    Raises:
        CheckpointError: a fused tensor is missing, or has another number of rows.
    """
    parts: dict[str, Rows] = {}
    for layer in range(config.num_layers):
        for fused, names in FUSED.items():
            source, start = f"model.layers.{layer}.{fused}.weight", 0
            total = sum(config.linear_shape(name)[0] for name in names)
            if source not in files:
                raise CheckpointError(f"The checkpoint has no tensor {source}, which its config.json implies.")
            if files.shape(source)[:1] != (total,):
                raise CheckpointError(
                    f"{directory}: {source} has shape {list(files.shape(source))}, but config.json implies {total} "
                    "rows."
                )
            for name in names:
                count = config.linear_shape(name)[0]
                order = None if name.endswith(("v_proj", "gate_proj", "up_proj")) else rotary_order(config, count)
                parts[f"model.layers.{layer}.{name}.weight"] = Rows(source, range(start, start + count), order)
                start += count
    return files.divided(parts)


def rotary_order(config: ModelConfig, rows: int) -> npt.NDArray[np.int64] | None:
    """Where each of the rows of q or k comes from; None: they are not reordered."""
    dim, rotary = config.head_dim, config.rope.rotary_dim(config.head_dim)
    if rotary == dim:
        return None
    half, rest = rotary // 2, (dim - rotary) // 2
    channels = np.arange(dim)
    low, high, others = channels[:half], channels[half:rotary], channels[rotary:]
    of_head = np.concatenate((low, others[:rest], high, others[rest:]))
    return (np.arange(0, rows, dim)[:, None] + of_head).reshape(-1)
