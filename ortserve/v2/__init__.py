"""The Open Inference Protocol v2 (KServe, Triton): a model's tensors in and out, beside what its task makes of them.

The way of a request: `routes.py` -> `request_reader.py` -> `inference.py` -> `response_writer.py`. All but the readers and writers speak of
`messages.py` alone and know no HTTP, so that another transport has only to read into those and to write from them.
"""
