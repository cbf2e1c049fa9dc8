"""Kernels of the runtime that several targets share."""
