"""Hides the modules, and attributes of modules, named in WITHOUT from the process, as if they were not there."""

import importlib
import os
import sys

for name in filter(None, os.environ.get("WITHOUT", "").split(",")):
    module, _, attribute = name.rpartition(".")
    if module:
        delattr(importlib.import_module(module), attribute)
    else:
        sys.modules[name] = None  # type: ignore[assignment]
