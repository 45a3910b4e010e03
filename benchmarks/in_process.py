"""sentence-transformers without any server: `python -m benchmarks.in_process SECONDS FILE...` prints sentences per second as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from sentence_transformers import SentenceTransformer

from tests.texts import minilm

if __name__ == "__main__":
    seconds, *names = sys.argv[1:]
    texts = [text for name in names for text in json.loads(Path(name).read_bytes())["inputs"]]
    model = SentenceTransformer(str(minilm()), device="cpu", local_files_only=True)
    model.encode(texts[:64], batch_size=32, show_progress_bar=False)
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < float(seconds):
        # It sorts what it is given by length by itself: 256 at a time give it something to sort.
        at = done % len(texts)
        chunk = texts[at : at + 256]
        model.encode(chunk, batch_size=32, show_progress_bar=False)
        done += len(chunk)
    print(json.dumps({"sentences_per_s": done / elapsed}))
