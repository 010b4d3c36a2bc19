"""From a float directory to a quantized one."""
