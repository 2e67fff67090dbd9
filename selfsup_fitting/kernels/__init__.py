"""Native kernels of training by fitting: torch reference, C++ and CUDA under one name each."""
