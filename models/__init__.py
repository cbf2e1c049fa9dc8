"""The recipes: one source per file."""
