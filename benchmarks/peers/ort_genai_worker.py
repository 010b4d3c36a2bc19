"""onnxruntime-genai's model builder, and its models in onnxruntime on the CPU."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from worker import serve

CHUNK = 64
"""Tokens that are read together: those before them are attended through the cache."""


class Worker:
    """Builds models and computes logits."""

    def version(self) -> str:
        names = ("onnxruntime-genai", "onnxruntime")
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)

    def build(self, source: str, target: str, scheme: str, scales: str | None) -> None:
        """Build the float directory `source` in float32, with a scheme of the cache and its scale file."""
        options = [f"kv_cache_quant_scheme={scheme}"] + ([] if scales is None else [f"kv_cache_scale_file={scales}"])
        command = ["-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target, "-p", "fp32", "-e", "cpu"]
        cache = str(Path(target).with_name("cache"))
        done = subprocess.run(
            [sys.executable, *command, "-c", cache, "--extra_options", *options], capture_output=True, text=True
        )
        if done.returncode:
            raise ValueError(done.stderr.strip().splitlines()[-1])

    def logits(self, directory: str, tokens: list[int], file: str) -> None:
        """Write the logits of every token, float32 [tokens, vocab]."""
        config = json.loads(Path(directory, "genai_config.json").read_text())["model"]["decoder"]
        session = onnxruntime.InferenceSession(Path(directory, config["filename"]), providers=["CPUExecutionProvider"])
        kinds = {node.name: np.int8 if "int8" in node.type else np.float32 for node in session.get_inputs()}
        empty = np.zeros((1, config["num_key_value_heads"], 0, config["head_size"]))
        past = {name: empty.astype(kind) for name, kind in kinds.items() if name.startswith("past_key_values")}
        names = [node.name for node in session.get_outputs()]
        parts = []
        for start in range(0, len(tokens), CHUNK):
            some = tokens[start : start + CHUNK]
            feeds = {"input_ids": [some], "attention_mask": [[1] * (start + len(some))]}
            inputs = {name: np.array(value, np.int64) for name, value in feeds.items()}
            found = dict(zip(names, session.run(None, inputs | past), strict=True))
            parts.append(found["logits"][0])
            past = {name: found[name.replace("past_key_values", "present")] for name in past}
        np.save(file, np.concatenate(parts).astype(np.float32))


if __name__ == "__main__":
    worker = Worker()
    serve({name: getattr(worker, name) for name in ("version", "build", "logits")})
