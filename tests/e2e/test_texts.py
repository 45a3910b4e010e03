"""Texts over HTTP: embeddings that equal sentence-transformers', OpenAI's stock client, classes that equal PyTorch's; and bad input."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from ortserve.export.tasks.feature_extraction import SENTENCES
from tests.serving import Server
from tests.texts import WORDS, minilm

pytestmark = pytest.mark.e2e

TEXTS = [
    *SENTENCES.read_text(encoding="utf-8").splitlines(),
    "naïve café, ＦＵＬＬ ｗｉｄｔｈ, 𝒻𝒶𝓃𝒸𝓎, e\u0301, ﬁne",  # noqa: RUF001  meant: one text in five scripts of letters
    "👩‍👩‍👧 family 🏳️‍🌈 and 🇩🇪 flags",
    "عربي ثم עברית ثم русский, ελληνικά, 日本語, 한국어, ไทย",
    "a",
    "...?!",
    "x" * 300,
    "zero\u200bwidth and soft\u00adhyphen\ttab\nnew line",
    "long " * 200,
]


@pytest.fixture(scope="module")
def embedder(texts_home: Path) -> Iterator[Server]:
    with Server(texts_home, env={"ORTSERVE_MODEL": "minilm"}) as server:
        yield server


@pytest.fixture(scope="module")
def client(embedder: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=embedder.base_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def wanted() -> NDArray[np.float32]:
    """sentence-transformers' own embeddings of TEXTS."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm()), device="cpu", local_files_only=True)
    embeddings: NDArray[np.float32] = model.encode(TEXTS, batch_size=8, show_progress_bar=False)
    return embeddings


def farthest(have: Any, want: NDArray[np.float32]) -> float:
    """The largest cosine distance of any row."""
    rows = np.asarray(have, np.float64)
    exact = want.astype(np.float64)
    cosines = (rows * exact).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(exact, axis=1)
    return float(1 - cosines.min())


def test_embeddings_equal_sentence_transformers_together_and_alone(client: httpx.Client, wanted: NDArray[np.float32]) -> None:
    together = client.post("/embed", json={"inputs": TEXTS}).json()
    assert (together["model"], together["version"]) == ("minilm", "1")
    assert farthest(together["embeddings"], wanted) < 1e-4
    with ThreadPoolExecutor(8) as pool:
        alone = list(pool.map(lambda text: client.post("/embed", json={"inputs": text}).json(), TEXTS))
    assert farthest([answer["embeddings"][0] for answer in alone], wanted) < 1e-4
    assert sum(answer["usage"]["tokens"] for answer in alone) == together["usage"]["tokens"]


def test_int8_keeps_the_order_of_similarities(texts_home: Path, tmp_path: Path, wanted: NDArray[np.float32]) -> None:
    from scipy.stats import spearmanr

    profile = tmp_path / "int8.yaml"
    profile.write_text("description: int8\nexecution: [{provider: CPUExecutionProvider, precision: [int8]}]\n")
    with Server(texts_home, env={"ORTSERVE_MODEL": "minilm", "ORTSERVE_PROFILE": str(profile)}) as server:
        answer = httpx.post(f"{server.base_url}/embed", json={"inputs": TEXTS}, timeout=60).json()
    have = np.array(answer["embeddings"])
    pairs = np.triu_indices(len(TEXTS), 1)
    assert spearmanr((have @ have.T)[pairs], (wanted @ wanted.T)[pairs]).statistic > 0.97


def test_texts_of_unlike_length_share_batches_and_their_padding_is_counted(
    client: httpx.Client, embedder: Server, wanted: NDArray[np.float32]
) -> None:
    def counted(name: str) -> float:
        return embedder.metrics().get((name, frozenset({("model", "minilm")})), 0)

    names = ("ortserve_tokens_total", "ortserve_padding_tokens_total", "ortserve_batch_size_rows_count", "ortserve_batch_size_rows_sum")
    before = [counted(name) for name in names]
    answer = client.post("/embed", json={"inputs": TEXTS[:64]}).json()
    assert farthest(answer["embeddings"], wanted[:64]) < 1e-4
    tokens, padding, batches, rows = (counted(name) - was for name, was in zip(names, before, strict=True))
    assert tokens == answer["usage"]["tokens"]
    assert 0 < padding < tokens / 2
    assert rows == 64
    assert batches < 40


def test_the_stock_openai_client_works(embedder: Server, wanted: NDArray[np.float32]) -> None:
    address = {"base_url": f"{embedder.base_url}/v1", "api_key": "none", "max_retries": 0}
    with openai.OpenAI(**address) as client:  # type: ignore[arg-type]
        many = client.embeddings.create(model="minilm", input=TEXTS)  # asks for base64
        assert farthest([item.embedding for item in many.data], wanted) < 1e-4
        assert [item.index for item in many.data] == list(range(len(TEXTS)))
        one = client.embeddings.create(model="minilm", input=TEXTS[0], encoding_format="float", dimensions=384, user="me")
        assert farthest([one.data[0].embedding], wanted[:1]) < 1e-4
        assert one.usage.prompt_tokens == one.usage.total_tokens > 2
        with pytest.raises(openai.UnprocessableEntityError, match="expected 'minilm'"):
            client.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.UnprocessableEntityError, match="at most 256 tokens, got 402"):
            client.embeddings.create(model="minilm", input="word " * 400)
        assert client.embeddings.create(model="minilm", input="word " * 400, extra_body={"truncate": True}).usage.total_tokens == 256

    async def several() -> list[Any]:
        async with openai.AsyncOpenAI(**address) as client:  # type: ignore[arg-type]
            return list(await asyncio.gather(*(client.embeddings.create(model="minilm", input=text) for text in TEXTS[:8])))

    assert farthest([answer.data[0].embedding for answer in asyncio.run(several())], wanted[:8]) < 1e-4


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("left_to_the_garbage_collector")
def test_bentomls_own_client_works(embedder: Server, wanted: NDArray[np.float32]) -> None:
    with bentoml.SyncHTTPClient(embedder.base_url) as client:
        assert farthest(client.embed(inputs=TEXTS[:2], truncate=False)["embeddings"], wanted[:2]) < 1e-4
        assert farthest([client.openai_embeddings(input=TEXTS[0], model="minilm")["data"][0]["embedding"]], wanted[:1]) < 1e-4


def test_only_the_models_own_task_is_offered(client: httpx.Client) -> None:
    paths = client.get("/docs.json").json()["paths"]
    assert {"/embed", "/v1/embeddings"} <= paths.keys()
    assert not {"/classify", "/classify_text"} & paths.keys()
    assert client.post("/classify_text", json={"inputs": "a"}).status_code == 404
    facts = client.get("/models/minilm").json()
    assert facts["batching"]["max_batch_tokens"] == 512
    assert facts["manifest"]["embedding"] == {"dimension": 384, "pooling": "mean", "normalized": True}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"inputs": "word " * 400}, 422, "at most 256 tokens, got 402"),
        ({"inputs": ["a", "word " * 400]}, 422, "inputs[1]: expected a text of at most 256 tokens, got 402"),
        ({"inputs": "w" * 1_000_000}, 413, "at most 32768 characters, got 1000000"),
        ({"inputs": "w" * 3_000_000}, 413, "at most 2097152 bytes"),
        ({"inputs": ["a"] * 2000}, 413, "at most 1024 in one request, got 2000"),
        ({"inputs": ""}, 422, "got an empty one"),
        ({"inputs": "a\0b"}, 422, "NUL"),
        ({"inputs": 5}, 422, "inputs"),
        (b'{"inputs":"\\ud800"}', 400, "no valid JSON"),
        (b'{"inputs":' + b"[" * 500_000, 400, "no valid JSON"),
        (b"\xff\xfe", 400, "no valid JSON"),
    ],
)
def test_bad_input_is_its_senders_fault_soon_and_harms_nobody(client: httpx.Client, body: Any, status: int, words: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/embed", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert len(answer.content) < 500
    assert client.post("/embed", json={"inputs": "a"}).status_code == 200


def test_a_cut_text_answers_as_its_beginning_does(client: httpx.Client) -> None:
    texts = ["word " * 400, "word " * 254]
    answer = client.post("/embed", json={"inputs": texts, "truncate": True}).json()
    assert answer["usage"]["tokens"] == 512
    assert farthest(answer["embeddings"][:1], np.array(answer["embeddings"][1:], np.float32)) < 1e-6


def test_a_long_text_does_not_hold_up_the_probes(client: httpx.Client, embedder: Server) -> None:
    body = json.dumps({"inputs": ["漢" * 32_000] * 6, "truncate": True}, ensure_ascii=False).encode()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.post, "/embed", content=body, headers={"Content-Type": "application/json"})
        waits = []
        while not slow.done():
            started = time.perf_counter()
            assert httpx.get(f"{embedder.base_url}/livez", timeout=30).status_code == 200
            waits.append(time.perf_counter() - started)
    assert slow.result().status_code == 200
    assert len(waits) > 5


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("left_to_the_garbage_collector")
def test_classes_equal_pytorch(texts_home: Path) -> None:
    import torch
    from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

    texts = [f"the {noun} was {very} {word}" for noun in ("film", "food", "train") for very in ("very", "not") for word in WORDS[:4]]
    model = BertForSequenceClassification.from_pretrained(texts_home / "mood").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(texts_home / "mood")
    with torch.inference_mode():
        want = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.softmax(1).numpy()
    assert len(set(want.argmax(axis=1))) > 1
    with Server(texts_home, env={"ORTSERVE_MODEL": "mood"}) as server:
        answer = httpx.post(f"{server.base_url}/classify_text", json={"inputs": texts}, timeout=60).json()
        with bentoml.SyncHTTPClient(server.base_url) as client:
            [typed] = client.classify_text(inputs=texts[0], top_k=1)["results"]
    for row, result in zip(want, answer["results"], strict=True):
        have = {prediction["label"]: prediction["score"] for prediction in result["predictions"]}
        np.testing.assert_allclose([have[label] for label in ("negative", "neutral", "positive")], row, atol=1e-4)
        assert result["predictions"][0]["class_id"] == row.argmax()
    assert typed["predictions"] == answer["results"][0]["predictions"][:1]
