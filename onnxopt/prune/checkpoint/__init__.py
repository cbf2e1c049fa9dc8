"""Channels, heads, layers and words of a checkpoint, in torch."""
