"""The benchmark against other tools: `make peers` installs them, `make bench` runs everything side by side."""
