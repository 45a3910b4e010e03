"""A head at a glance, beside the parser that looks at all the others: what one says of a plain request, the other says too."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from ortserve import http1
from ortserve.http1 import DROPPED_BYTES, MAX_HEAD_BYTES, PlainRequest, head_of, plain_request, whole_reply
from ortserve.replies import Reply

PLAIN = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
BODY = b"hello"


@dataclass
class Parsed:
    """What httptools makes of some bytes: the first request alone, and how many there were."""

    url: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    whole: int = 0

    def on_url(self, url: bytes) -> None:
        self.url += url if not self.whole else b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.whole:
            self.headers.append((name.lower(), value.rstrip(b" \t")))  # as `Connection` has it

    def on_body(self, body: bytes) -> None:
        self.body += body if not self.whole else b""

    def on_message_complete(self) -> None:
        self.whole += 1


def parsed(data: bytes) -> Parsed | None:
    """None: the parser does not take it."""
    found = Parsed()
    try:
        HttpRequestParser(found).feed_data(data)
    except (HttpParserError, HttpParserUpgrade):
        return None
    return found


def test_a_plain_request_is_seen() -> None:
    assert plain_request(PLAIN) == PlainRequest("POST", "/classify", b"", len(PLAIN) + 5)
    assert plain_request(PLAIN + BODY + PLAIN) == PlainRequest("POST", "/classify", b"", len(PLAIN) + 5)
    assert plain_request(PLAIN.replace(b"fy ", b"fy?top=3 ")) == PlainRequest("POST", "/classify", b"", len(PLAIN) + 11)
    told = PLAIN.replace(b"Host: x", b"X-Request-ID: \tmine \r\nconnection: Keep-Alive\r\nAccept:")
    assert plain_request(told) == PlainRequest("POST", "/classify", b"mine", len(told) + 5)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-1],
        b"\r\n\r\n" + PLAIN,
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),  # it closes
        PLAIN.replace(b"HTTP/1.1\r\n", b"HTTP/1.1 \r\n"),
        PLAIN.replace(b"Host: x", b"Connection: close"),
        PLAIN.replace(b"Host: x", b"Connection: Upgrade\r\nUpgrade: h2c"),
        PLAIN.replace(b"Host: x", b"Expect: 100-continue"),
        PLAIN.replace(b"Host: x", b"Transfer-Encoding: chunked"),
        PLAIN.replace(b"Host: x", b"A: b\r\n transfer-encoding: chunked"),
        PLAIN.replace(b"Host: x", b"A: b\nTransfer-Encoding: chunked"),
        PLAIN.replace(b"Host: x", b"A: b\rTransfer-Encoding: chunked"),
        PLAIN.replace(b"Host: x", b"Content-Length: 5"),
        PLAIN.replace(b"Host: x", b"no field"),
        PLAIN.replace(b"Host: x", b"Host : x"),
        PLAIN.replace(b"Host: x", b"Host: \x00"),
        PLAIN.replace(b"Length: 5", b"Length: 5, 5"),
        PLAIN.replace(b"Length: 5", b"Length: +5"),
        PLAIN.replace(b"Length: 5", b"Length: %d" % (DROPPED_BYTES + 1)),  # nor dropped
        PLAIN.replace(b"Length: 5", b"Length: " + 5000 * b"1"),
        PLAIN.replace(b"Content-Length: 5\r\n", b""),
        PLAIN.replace(b"Host: x", b"Host: " + MAX_HEAD_BYTES * b"x"),
    ],
)
def test_whatever_is_not_plain_is_left_to_the_parser(data: bytes) -> None:
    assert plain_request(data) is None


# Most of each are plain, or next to nothing would be compared.
NAMES = st.sampled_from(
    [b"Host", b"Accept", b"X-Request-ID", b"X-Content-Length", b"Connection"] * 4
    + [b"content-length", b"CONTENT-LENGTH ", b"Expect", b"Transfer-Encoding", b"Upgrade", b"TE", b" folded", b"", b"A\x00"]
)
COLONS = st.sampled_from([b": ", b":", b":\t"] * 4 + [b" : ", b""])
VALUES = st.sampled_from(
    [b"5", b"5 ", b"keep-alive", b"a:b", b"/x; y=z", b""] * 4
    + [b"+5", b"0x5", b"5,5", b"close", b"chunked", b"100-continue", b"h2c", b"\xe4", b"a\nContent-Length: 9", b"a\rContent-Length: 9"]
)
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n\r\n"])
FIELDS = st.lists(st.tuples(NAMES, COLONS, VALUES, ENDS), max_size=4)


@given(FIELDS, st.sampled_from([b"/a", b"/a?b", b"/%61"]))
def test_what_a_glance_says_of_a_request_the_parser_says_too(fields: list[tuple[bytes, ...]], target: bytes) -> None:
    head = b"POST " + target + b" HTTP/1.1\r\n" + b"".join([b"".join(field_) for field_ in fields])
    data = head + b"content-length: 5\r\n\r\n" + BODY + PLAIN + BODY
    seen = plain_request(data)
    if seen is None:
        return
    theirs = parsed(data)
    if theirs is None:
        return  # no proxy would have passed it on
    assert theirs.whole >= 1
    assert (seen.method, seen.path.encode()) == ("POST", theirs.url.partition(b"?")[0])
    assert seen.size == data.index(b"\r\n\r\n") + 4 + len(theirs.body)
    assert seen.request_id == dict(theirs.headers).get(b"x-request-id", b"")
    assert not {b"transfer-encoding", b"expect", b"upgrade"} & {name for name, _ in theirs.headers}


def test_a_reply_is_sent_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "formatdate", lambda *, usegmt: "now" if usegmt else "")
    reply = Reply(429, b'{"a":1}', headers=[(b"retry-after", b"1"), (b"allow", b"GET")])
    fields = b"date: now\r\ncontent-type: application/json\r\nretry-after: 1\r\nallow: GET\r\ncontent-length: 7\r\nx-request-id: mine\r\n"
    head = b"HTTP/1.1 429 Too Many Requests\r\n" + fields
    assert whole_reply(head_of(reply), reply.body, b"mine", last=False) == head + b'\r\n{"a":1}'
    assert whole_reply(head_of(reply), reply.body, b"mine", last=True) == head + b'connection: close\r\n\r\n{"a":1}'
