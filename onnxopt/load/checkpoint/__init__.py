"""Checkpoints: their folder, task, network and pooling."""
