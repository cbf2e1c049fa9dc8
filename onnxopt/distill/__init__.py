"""Teach a small model what a large one does; accelerate runs it on one processor or on many machines."""
