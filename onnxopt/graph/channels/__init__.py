"""Channels of a graph: which entries of which weights belong together."""
