"""Run a graph, or a piece of it, to see what it does."""
