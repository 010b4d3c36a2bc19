"""Parts of benchmarks/gpu.py. A section runs in a process of its own, and the report is made from what it wrote."""
