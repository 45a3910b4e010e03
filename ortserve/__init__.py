"""Serve verified ONNX models through BentoML with adaptive batching of our own."""
