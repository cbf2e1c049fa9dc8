"""Kernels of ONNX Runtime's CUDA provider."""
