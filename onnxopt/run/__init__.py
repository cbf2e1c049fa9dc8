"""Artifacts from Python: session, providers, batcher, inputs, generation, answers."""
