"""Native kernels of V2V-PoseNet: torch reference, C++ and CUDA under one name each."""
