"""What several passes say alike."""
