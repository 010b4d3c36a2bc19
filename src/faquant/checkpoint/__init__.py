"""Reading and writing checkpoint directories: safetensors and JSON only; input is not trusted, output is atomic."""
