"""What comes out: the package, its golden cases, its contract, layouts for other stacks, the report."""
