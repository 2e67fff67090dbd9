"""Native kernels of SO-HandNet: torch reference, C++ and CUDA under one name each."""
