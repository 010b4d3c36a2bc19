"""Checkpoint directories in and out: safetensors and JSON only, read with suspicion and written atomically."""
