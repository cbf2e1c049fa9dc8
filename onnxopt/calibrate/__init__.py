"""Calibration: data that stands for what users send, and statistics of a model's tensors over it."""
