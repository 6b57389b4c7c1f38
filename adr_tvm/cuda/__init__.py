"""CUDA: from the CUDA C that TVM generates to code objects, without a GPU."""
