"""Give linear layers fewer bits, as a plan says."""
