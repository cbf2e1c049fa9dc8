"""What people write, and its tokens."""
