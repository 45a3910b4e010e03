"""Hides the modules named in WITHOUT from the process, as if they were not installed."""

import os
import sys

for name in filter(None, os.environ.get("WITHOUT", "").split(",")):
    sys.modules[name] = None  # type: ignore[assignment]
