"""Prune, distil, quantize and package in one go, with one report."""
