"""Every call of the stock Triton client that this service answers, against a running one: `make serve`, then

    python examples/triton_client/client.py [HOST:PORT]

`pip install 'tritonclient[http]'` brings the client; output.txt is what it printed.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
from PIL import Image

SEVEN = "examples/seven.png"


def main(address: str) -> None:
    """Ask and print."""
    client = triton.InferenceServerClient(address)
    say("server live, ready", client.is_server_live(), client.is_server_ready())
    say("server metadata", client.get_server_metadata())
    [model] = [one["name"] for one in client.get_model_repository_index() if one["name"] == "digits"]
    say("repository index", client.get_model_repository_index())
    say("model ready", client.is_model_ready(model))
    metadata = client.get_model_metadata(model)
    say("model metadata", metadata)
    say("model configuration", client.get_model_config(model))

    [spec] = metadata["inputs"]
    _, height, width, _ = spec["shape"]
    picture = Image.open(SEVEN).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    rows = np.stack([np.asarray(picture), np.zeros((height, width, 3), np.uint8)])
    for binary in (True, False):
        pixels = triton.InferInput(spec["name"], list(rows.shape), spec["datatype"])
        pixels.set_data_from_numpy(rows, binary_data=binary)
        wanted = triton.InferRequestedOutput("probabilities", binary_data=binary)
        answer = client.infer(model, [pixels], outputs=[wanted], request_id="mine")
        say(f"{'binary' if binary else 'JSON'} tensors: id, shape, classes", answer.get_response()["id"], *shape_and_best(answer))
    best = triton.InferRequestedOutput("probabilities", class_count=2)
    say("classification", client.infer(model, [pixels], outputs=[best]).as_numpy("probabilities"))
    futures = [client.async_infer(model, [pixels]) for _ in range(4)]
    say("four at once", [shape_and_best(future.get_result()) for future in futures])

    wrong = triton.InferInput(spec["name"], [1, 2, 2, 3], spec["datatype"])
    wrong.set_data_from_numpy(np.zeros((1, 2, 2, 3), np.uint8))
    try:
        client.infer(model, [wrong])
    except triton.InferenceServerException as error:
        say("a wrong shape", error)
    [counted] = client.get_inference_statistics(model)["model_stats"]
    say("statistics: inferences, executions", counted["inference_count"], counted["execution_count"])


def shape_and_best(answer: triton.InferResult) -> tuple[tuple[int, ...], list[int]]:
    """The shape of the probabilities, and the best class of each row."""
    probabilities = answer.as_numpy("probabilities")
    return probabilities.shape, probabilities.argmax(axis=1).tolist()


def say(what: str, *values: Any) -> None:
    """One line."""
    print(f"{what}: {', '.join(map(str, values))}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:3000")
