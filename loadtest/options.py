"""The options of the load test; all of them are in the web page's form as well."""

from __future__ import annotations

from typing import Any

from locust.argument_parser import LocustArgumentParser

SHAPES = ("constant", "ramp", "spike")


def add(parser: LocustArgumentParser) -> None:
    """Add them, in no groups: the page shows none of those. One without a value comes back from its form as text: `number` reads it."""
    parser.add_argument("--pictures", default="examples/digits", help="folder of pictures to send, searched through its subfolders")
    parser.add_argument("--texts", default=None, help="file of texts to send, one a line; a few built-in ones otherwise")
    parser.add_argument("--batch", type=int, default=8, help="pictures or texts in one request to a batch endpoint")
    parser.add_argument("--think-time-s", type=float, default=0.0, help="seconds each user waits between two requests")
    parser.add_argument(
        "--shape", choices=SHAPES, default="constant", help="constant; ramp: from nothing to everything; spike: a sudden rush and its end"
    )
    parser.add_argument("--ramp-s", type=float, default=60.0, help="ramp: seconds until all is there; ends a quarter later, or with -t")
    parser.add_argument("--spike-base", type=float, default=0.1, help="spike: share of the load before and after it, 0 to 1")
    parser.add_argument("--spike-after-s", type=float, default=20.0, help="spike: seconds before it, and after it to recover")
    parser.add_argument("--spike-s", type=float, default=10.0, help="spike: seconds that it lasts")
    parser.add_argument(
        "--rate", type=float, default=None, help="open loop: requests arrive at random (Poisson), so many a second, whatever the answers do"
    )
    parser.add_argument("--answer-within-s", type=float, default=10.0, help="open loop: what is not answered so long after the end failed")
    parser.add_argument(
        "--max-p99-ms", type=float, default=None, help="exit with status 1 where the 99th percentile of the successful requests is above"
    )
    parser.add_argument("--max-error-rate", type=float, default=None, help="exit with status 1 where more than this share fails, 0 to 1")
    parser.add_argument("--min-rps", type=float, default=None, help="exit with status 1 where fewer requests a second are answered")


def number(value: Any) -> float | None:
    """The option's number; None where none was given. Raises ValueError for what is no number."""
    return None if value in (None, "") else float(value)
