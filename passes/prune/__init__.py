"""Make tensors smaller by what nothing needs."""
