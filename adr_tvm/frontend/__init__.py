"""ONNX in: checking the file, importing it into Relax, comparing the dense network with ONNX Runtime."""
