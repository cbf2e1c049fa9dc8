"""The commands of the command line, a few to a file; each registers itself with `app`."""
