"""The kernels for NVIDIA GPUs, in Triton. Each has the bits of kernels/reference.py, and so of the C++ kernels.

Every rounding is an operation of its own (`ROUNDED`), divisions and roots are correctly rounded, and sums of floats
have the reference's order. Integer sums are exact in any order, so tiles of products can have any shape.

With TRITON_INTERPRET=1 in the environment when this package is imported, kernels run on tensors in the CPU's memory.
"""
