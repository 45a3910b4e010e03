"""Reading bodies and taking multipart apart: whatever is built well comes back, whatever is not is refused, in linear time."""

from __future__ import annotations

import asyncio
import contextlib
import string
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ortserve import body
from ortserve.errors import PayloadTooLarge, QueueFull, RequestError, RequestTimeout

LIMIT = 100

# --- multipart --------------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters='"\r\n\\', exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
boundaries = st.text(string.ascii_letters + string.digits + "'()+_,-./:=?", min_size=1, max_size=70)


@given(files=st.lists(st.tuples(names, names, st.binary(max_size=300)), min_size=1, max_size=8), boundary=boundaries)
def test_what_httpx_builds_comes_back(files: list[tuple[str, str, bytes]], boundary: str) -> None:
    parts = [(field, (filename, data, "image/png")) for field, filename, data in files]
    if any(f"--{boundary}".encode() in data for _, _, data in files):
        return  # no body can hold its own boundary
    request = httpx.Request("POST", "http://x/", files=parts, headers={"content-type": f'multipart/form-data; boundary="{boundary}"'})
    kind, options = body.media_type({name.lower(): value for name, value in request.headers.raw})
    assert kind == "multipart/form-data"
    found = body.parse_multipart(request.read(), options[b"boundary"], max_parts=8)
    assert [(part.name, bytes(part.data), part.content_type) for part in found] == [(field, data, "image/png") for field, _, data in files]
    assert all(part.filename is not None for part in found)


@given(fields=st.dictionaries(names, st.text(st.characters(codec="utf-8"), max_size=50), min_size=1, max_size=5))
def test_form_fields_have_no_filename(fields: dict[str, str]) -> None:
    request = httpx.Request("POST", "http://x/", data=fields, files={"f": b""})
    _, options = body.media_type({name.lower(): value for name, value in request.headers.raw})
    found = body.parse_multipart(request.read(), options[b"boundary"], max_parts=6)
    assert [(part.name, bytes(part.data).decode(), part.filename) for part in found[:-1]] == [(*item, None) for item in fields.items()]


DISPOSITION = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n'


def part(data: bytes, headers: bytes = DISPOSITION) -> bytes:
    return b"--B\r\n" + headers + b"\r\n" + data + b"\r\n"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (part(b"abc") + b"--B--", [b"abc"]),
        (part(b"abc") + b"--B--\r\nepilogue", [b"abc"]),
        (b"preamble\r\n" + part(b"abc") + b"--B--\r\n", [b"abc"]),
        (b"\r\n" + part(b"abc") + b"--B--\r\n", [b"abc"]),
        (part(b"") + part(b"x") + b"--B--\r\n", [b"", b"x"]),
        (part(b"\r\n--b\r\n--\r\n\r\n") + b"--B--\r\n", [b"\r\n--b\r\n--\r\n\r\n"]),
        (part(b"a --B-- b") + b"--B--\r\n", [b"a --B-- b"]),  # a boundary counts at the start of a line alone
        (b"--B \t\r\n" + DISPOSITION + b"\r\nabc\r\n--B--", [b"abc"]),  # padding after it is allowed (RFC 2046, 5.1.1)
        (b"--B--\r\n", []),
    ],
)
def test_well_formed_bodies(sent: bytes, expected: list[bytes]) -> None:
    assert [bytes(found.data) for found in body.parse_multipart(sent, b"B", max_parts=2)] == expected


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"--",
        b"--B",
        b"--B\r\n",
        b"nothing of it",
        part(b"abc"),  # no last boundary
        part(b"abc") + b"--B",
        part(b"abc") + b"--B-",
        part(b"abc") + b"--Bx--",
        b"--B\r\n" + DISPOSITION,  # headers without an end
        b"--B\r\n\r\nno headers\r\n--B--",
        part(b"abc", b"Content-Type: image/png\r\n") + b"--B--",
        part(b"abc", b"Content-Disposition: attachment; name=image\r\n") + b"--B--",
        part(b"abc", b"Content-Disposition: form-data\r\n") + b"--B--",
        part(b"abc", DISPOSITION + b"X: " + b"a" * body.MAX_PART_HEADER_BYTES + b"\r\n") + b"--B--",
        part(b"abc", DISPOSITION + b"A: b\r\n" * 3000) + b"--B--",
        part(b"") * 3 + b"--B--",  # more than max_parts
        b"--B\n" + DISPOSITION.replace(b"\r", b"") + b"\nabc\n--B--",  # bare line feeds
    ],
)
def test_malformed_bodies_are_refused(sent: bytes) -> None:
    with pytest.raises(RequestError, match="expected"):
        body.parse_multipart(sent, b"B", max_parts=2)


@pytest.mark.parametrize("cut", range(len(part(b"abc") + b"--B--")))
def test_every_cut_is_refused(cut: int) -> None:
    with pytest.raises(RequestError):
        body.parse_multipart((part(b"abc") + b"--B--")[:cut], b"B", max_parts=2)


@pytest.mark.parametrize("boundary", [b"", b"x" * 71])
def test_boundaries_have_1_to_70_characters(boundary: bytes) -> None:
    with pytest.raises(RequestError, match="1 to 70"):
        body.parse_multipart(b"--" + boundary + b"--", boundary, max_parts=1)


@settings(max_examples=300)
@given(
    sent=st.one_of(
        st.binary(max_size=200), st.lists(st.sampled_from([b"--B", b"--B--", b"\r\n", b"\r\n\r\n", DISPOSITION, b"x", b"--"])).map(b"".join)
    )
)
def test_rubbish_is_parsed_or_refused(sent: bytes) -> None:
    try:
        parts = body.parse_multipart(sent, b"B", max_parts=5)
    except RequestError:
        return
    assert all(bytes(found.data) in sent for found in parts)


@settings(max_examples=300)
@given(
    value=st.one_of(
        st.binary(max_size=80),
        st.lists(st.sampled_from([b'"', b";", b"=", b"\\", b"name", b"*", b"0", b"''", b"%ff", b"filename", b" "])).map(b"".join),
    )
)
def test_any_header_value_is_read_or_refused(value: bytes) -> None:
    body.media_type({b"content-type": value})
    sent = part(b"abc", b"Content-Disposition: form-data; " + value + b"\r\nContent-Type: " + value + b"\r\n") + b"--B--"
    with contextlib.suppress(RequestError):
        body.parse_multipart(sent, b"B", max_parts=2)


def test_data_is_a_view_not_a_copy() -> None:
    sent = part(b"abc") + b"--B--"
    assert body.parse_multipart(sent, b"B", max_parts=1)[0].data.obj is sent


MIB = 1024 * 1024
ATTACKS: dict[str, Callable[[int], bytes]] = {
    "almost boundaries": lambda size: part(b"\r\n--A" * (size // 5)) + b"--B--",
    "line ends": lambda size: part(b"\r\n" * (size // 2)) + b"--B--",
    "dashes": lambda size: part(b"-" * size) + b"--B--",
    "no end": lambda size: part(b"\r\n--" * (size // 4))[:-2],
    "preamble of almost boundaries": lambda size: b"\r\n--A" * (size // 5),
    "boundary lines of blanks": lambda size: b"--B" + b" " * size + b"\r\n",
    "many parts": lambda size: part(b"") * (size // len(part(b""))) + b"--B--",
    "many broken parts": lambda size: b"\r\n--B\r\n" * (size // 7),
}


def seconds(work: Callable[[], Any]) -> float:
    """The shortest of several runs."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("boundary", [b"B", b"-" * 69 + b"B", b"\r" * 69 + b"B"], ids=["short", "dashes", "returns"])
def test_time_grows_no_faster_than_the_body(attack: str, boundary: bytes) -> None:
    def parse(sent: bytes) -> None:
        with contextlib.suppress(RequestError):
            body.parse_multipart(sent, boundary, max_parts=1000)

    small, large = (
        ATTACKS[attack](size).replace(b"--B", b"--" + boundary) if attack.startswith("many") else ATTACKS[attack](size)
        for size in (MIB, 20 * MIB)
    )
    # 20 times the bytes: 20 times the time where it is linear, 400 times where it is quadratic. Below 1 ms noise is measured.
    assert seconds(lambda: parse(large)) < 100 * max(seconds(lambda: parse(small)), 1e-3)


# --- reading ----------------------------------------------------------------------------------------------------------

Message = dict[str, Any]


def sender(messages: Sequence[Message], stay: bool = False) -> Callable[[], Awaitable[Message]]:
    """An ASGI receive() that gives these messages, then waits for ever (`stay`) or says that the client left."""
    left = list(messages)

    async def receive() -> Message:
        if left:
            return left.pop(0)
        if stay:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return receive


def chunks(*data: bytes, more: bool = False) -> list[Message]:
    sent = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in data]
    if not more:
        sent[-1] = {**sent[-1], "more_body": False}
    return sent


def read(
    receive: Callable[[], Awaitable[Any]],
    headers: dict[bytes, bytes] | None = None,
    budget: body.BufferBudget | None = None,
    timeout_s: float = 60,
) -> bytes:
    budget = budget or body.BufferBudget(10 * LIMIT)
    return asyncio.run(body.read(receive, headers or {}, limit_bytes=LIMIT, timeout_s=timeout_s, budget=budget))


@given(data=st.lists(st.binary(max_size=30), min_size=1, max_size=8))
def test_a_body_is_what_was_sent_or_too_large(data: list[bytes]) -> None:
    whole, budget = b"".join(data), body.BufferBudget(1000)
    if len(whole) > LIMIT:
        with pytest.raises(PayloadTooLarge):
            read(sender(chunks(*data)), budget=budget)
        assert budget.used == 0
    else:
        assert read(sender(chunks(*data)), budget=budget) == whole
        assert budget.used == len(whole)  # until the caller gives them back


@pytest.mark.parametrize("declared", [b"101", b"9" * 30, b"9" * 5000])
def test_a_declared_length_over_the_limit_is_refused_unread(declared: bytes) -> None:
    async def never() -> Message:
        raise AssertionError("a byte was asked for")

    with pytest.raises(PayloadTooLarge, match="at most 100 bytes"):
        read(never, {b"content-length": declared})


@pytest.mark.parametrize("declared", [b"0", b"3", b"-1", b"1e1", b"", b"\xb2"])
def test_a_declared_length_is_not_believed(declared: bytes) -> None:
    with pytest.raises(PayloadTooLarge):
        read(sender(chunks(b"x" * 60, b"x" * 60)), {b"content-length": declared})


def test_an_endless_body_is_refused_after_the_limit() -> None:
    taken = 0

    async def endless() -> Message:
        nonlocal taken
        taken += 10
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    with pytest.raises(PayloadTooLarge):
        read(endless)
    assert taken == LIMIT + 10


def test_a_body_that_stops_coming_times_out_and_gives_its_bytes_back() -> None:
    budget = body.BufferBudget(1000)
    with pytest.raises(RequestTimeout):
        read(sender(chunks(b"x", more=True), stay=True), budget=budget, timeout_s=0.01)
    assert budget.used == 0


def test_a_caller_that_leaves_gives_its_bytes_back() -> None:
    budget = body.BufferBudget(1000)
    with pytest.raises(body.ClientGone):
        read(sender(chunks(b"x", more=True)), budget=budget)
    assert budget.used == 0


def test_a_worker_holds_no_more_bytes_than_its_budget() -> None:
    budget = body.BufferBudget(50)
    budget.take(30)
    with pytest.raises(QueueFull):
        read(sender(chunks(b"x" * 15, b"x" * 15)), budget=budget)
    assert budget.used == 30


def test_media_type_is_lower_case_and_its_parameters_are_not() -> None:
    assert body.media_type({b"content-type": b'Multipart/Form-Data; boundary="aB;c"'}) == ("multipart/form-data", {b"boundary": b"aB;c"})
    assert body.media_type({}) == ("", {})
