"""Writes safetensors files by hand, valid or not."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
A = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
QUANT = "quant_model_weight_w8a8"


def raw(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def put(directory: Path, content: bytes, name: str = "model.safetensors") -> Path:
    (directory / name).write_bytes(content)
    return directory


def put_index(directory: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> None:
    (directory / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def put_parts(directory: Path, stem: str = "model", index: str = ".safetensors.index.json") -> dict[str, torch.Tensor]:
    tensors = {"x": torch.arange(6).reshape(2, 3), "y": torch.ones(3, dtype=torch.bfloat16), "z": torch.tensor(2.5)}
    names = [f"{stem}-{i:05}-of-00002.safetensors" for i in (1, 2)]
    save_file({"x": tensors["x"]}, directory / names[0])
    save_file({"y": tensors["y"], "z": tensors["z"]}, directory / names[1])
    put_index(directory, {"x": names[0], "y": names[1], "z": names[1]}, stem + index)
    return tensors


def is_same(found: npt.NDArray[Any], tensor: torch.Tensor) -> bool:
    """Whether an array has the bits of a tensor, in NumPy's dtype for them: uint16 is bfloat16."""
    dtype = "uint16" if tensor.dtype == torch.bfloat16 else str(tensor.dtype).removeprefix("torch.")
    bits = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return found.dtype == np.dtype(dtype) and found.shape == tuple(tensor.shape) and found.tobytes() == bits.tobytes()
