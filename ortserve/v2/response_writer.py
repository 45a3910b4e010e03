"""An answer to the body of an HTTP response: JSON, and behind it the tensors that were asked for as bytes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ortserve.errors import RequestError
from ortserve.replies import Reply, to_json
from ortserve.v2.messages import InferResponse, OutputTensor

HEADER = b"inference-header-content-length"


def write(response: InferResponse) -> Reply:
    """The whole response. Raises RequestError where an output has values that JSON has no word for."""
    pieces: list[bytes | memoryview] = []
    outputs = []
    for output in response.outputs:
        said: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if output.binary:
            piece = _bytes(output)
            pieces.append(piece)
            said["parameters"] = {"binary_data_size": len(piece)}
        else:
            said["data"] = _values(output)
        outputs.append(said)
    identity = {} if response.id is None else {"id": response.id}
    document = to_json({"model_name": response.model, "model_version": response.version, **identity, "outputs": outputs})
    if not pieces:
        return Reply(200, document)
    # Joined once: what goes to the socket has to be one piece of bytes.
    return Reply(200, b"".join([document, *pieces]), b"application/octet-stream", [(HEADER, str(len(document)).encode())])


def size(response: InferResponse) -> int:
    """About how many bytes its tensors are."""
    return sum(output.data.nbytes if isinstance(output.data, np.ndarray) else 64 * len(output.data) for output in response.outputs)


def _bytes(output: OutputTensor) -> bytes | memoryview:
    """Little-endian, row by row; of texts each behind its length in four bytes."""
    if isinstance(output.data, list):
        return b"".join(struct.pack("<I", len(text)) + text for text in output.data)
    return output.data.reshape(-1).view(np.uint8).data


def _values(output: OutputTensor) -> Any:
    if isinstance(output.data, list):
        return [text.decode() for text in output.data]
    if output.data.dtype.kind == "f" and not np.isfinite(output.data).all():
        raise RequestError(
            f"the output {output.name!r} has values that are no numbers of JSON, NaN or infinity: ask for it with binary_data: true"
        )
    return output.data.reshape(-1)
