"""Serve verified ONNX models through BentoML with adaptive batching of our own."""

import os

# ONNX Runtime's official builds report to Microsoft over HTTPS, from a thread of their own, and read this when they are loaded: here,
# before any module can import it. Set it to 0 to allow that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"  # of the project: pyproject.toml says the same, and a bento has no pyproject.toml
