"""Forms that ONNX Runtime's CPU provider runs fast, one per file."""
