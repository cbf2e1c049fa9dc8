"""What is not equal does not stay."""
