"""How the weights that this repository carries were made."""
