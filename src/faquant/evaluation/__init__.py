"""What quantization cost, measured through the cache and the kernels that serve."""
