"""Text out of a decoder, token by token."""
