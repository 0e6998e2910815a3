"""Arrays in the memory of a CUDA device: whose they are, and how they become arguments of kernels and results."""
