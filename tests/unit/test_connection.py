"""The connection below the edge: heads that are slow, split, pipelined or offer another protocol."""

from __future__ import annotations

import time

import pytest

from ortserve import connection
from ortserve.connection import Connection
from ortserve.http1 import MAX_HEAD_BYTES
from tests.connections import ANSWER, CLOSING, KEPT_ALIVE_S, LAST, OFFER, POST, answers, hasty, talk


def test_a_connection_is_kept_while_the_body_of_an_answered_request_still_comes_and_no_longer() -> None:
    began = time.monotonic()
    long = POST.replace(b"Content-Length: 5", b"Content-Length: 12")
    pieces = [long, *[b"x"] * 6, b"x" + POST]  # each comes before the connection is given up, all of them after that
    assert answers(talk(pieces, app=hasty, pause_s=KEPT_ALIVE_S / 4)) == [[], []]
    assert time.monotonic() - began > 2 * KEPT_ALIVE_S


@pytest.mark.parametrize("request_", [POST, OFFER], ids=["plain", "offers h2c"])
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_request_in_any_pieces_is_one_request(request_: bytes, size: int) -> None:
    sent = request_ + request_ + CLOSING
    assert answers(talk([sent[start : start + size] for start in range(0, len(sent), size)])) == [ANSWER, ANSWER, LAST]


def test_a_chunked_body_with_an_offer_is_kept() -> None:
    sent = OFFER.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked").replace(b"hello", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")
    assert answers(talk([sent + CLOSING])) == [ANSWER, LAST]


def test_a_head_that_does_not_end_in_time_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    for sent in ([b"GET /"], [b"GET / HTTP/1.1\r\nHost: x\r\n"], [POST, b"GET / HTTP/1.1\r\nX: "]):
        said = talk(sent)
        assert b"HTTP/1.1 408 " in said
        assert b'"code":"request_timeout"' in said


def test_a_connection_on_which_nothing_comes_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    assert talk([]) == b""


def test_a_body_may_take_longer_than_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    pieces = [POST[:-1], *[b""] * 100, POST[-1:], CLOSING]  # 101 pauses of 1 ms and more
    assert answers(talk(pieces)) == [ANSWER, LAST]


def test_an_answer_of_a_process_that_is_leaving_closes_its_connection_and_loses_nothing_sent_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Connection, "leaving", True)
    assert answers(talk([POST])) == [ANSWER]
    said = talk([POST + POST + POST])
    assert answers(said) == [ANSWER] * 3
    assert said.count(b"connection: close") == 1


def test_a_head_over_the_limit_is_431_in_one_piece_and_in_many() -> None:
    head = b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"
    for pieces in ([head], [head[start : start + 4096] for start in range(0, len(head), 4096)]):
        said = talk(pieces)
        assert said.startswith(b"HTTP/1.1 431 ")
        assert b'"code":"headers_too_large"' in said


def test_whitespace_behind_a_value_is_no_part_of_it() -> None:
    said = talk([POST.replace(b"Host: x", b"Expect:\t100-continue \t"), CLOSING])
    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    assert answers(said) == [ANSWER, LAST]


def test_head_and_continue_are_answered_over_a_real_connection() -> None:
    said = talk([POST.replace(b"POST", b"HEAD"), POST.replace(b"Host: x", b"Expect: 100-continue"), CLOSING])
    head, rest = said.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert rest.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    assert answers(said) == [ANSWER, LAST]
