"""Run a graph that nobody has run yet in a process of its own, which may die or never end."""
