"""Make models smaller: what may go, what it costs, and how the rest makes up for it."""
