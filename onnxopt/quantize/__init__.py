"""Decide the precision of every linear layer: statistics, grids, accuracy, cost."""
