"""Channels and layers of a fused graph."""
