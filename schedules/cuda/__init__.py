"""TIR kernels for CUDA: one PrimFunc is one kernel, with its blocks and threads bound."""
