"""transformers, with compressed-tensors for the directories that need it, in float32."""

import importlib.metadata

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from worker import serve


class Worker:
    """Computes logits."""

    def version(self) -> str:
        return ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "compressed-tensors")
        )

    def load(self, directory: str) -> int:
        """Load a model; returns the number of its layers whose K and V are quantized."""
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        return sum(hasattr(layer.self_attn, "k_scale") for layer in self._model.model.layers)

    def logits(self, tokens: list[int], file: str) -> None:
        """Write the logits of every token, float32 [tokens, vocab]."""
        with torch.inference_mode():
            np.save(file, self._model(torch.tensor([tokens])).logits[0].numpy())


if __name__ == "__main__":
    worker = Worker()
    serve({name: getattr(worker, name) for name in ("version", "load", "logits")})
