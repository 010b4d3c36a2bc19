"""Measures the loss by quantization, with the cache and kernels that serve."""
