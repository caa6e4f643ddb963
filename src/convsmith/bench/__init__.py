"""Benchmarks: how long a convolution takes, next to PyTorch and to what the GPU allows."""
