"""Quantization of float directories."""
