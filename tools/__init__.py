"""What only those who work on onnxopt need; no part of the wheel."""
