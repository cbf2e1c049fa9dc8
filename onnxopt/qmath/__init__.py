"""Arithmetic of quantization: grids, codes and their errors. Pure NumPy; it knows no graph and no runtime."""
