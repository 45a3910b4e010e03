"""The gate: a stored file, run through the session that serves, against the model as it was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ortserve.export.limits import MIN_CLASSES, MIN_PICTURES, Limits
from ortserve.export.loaded import Answers, Pictures, Pixels, Reference
from ortserve.manifest import Agreement, BatchCheck, Difference, ParityReport, Preprocessing
from ortserve.profile import Execution
from ortserve.session import Session

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Case:
    """Input rows of one kind, what the reference answers for them, and the batch sizes they are run at."""

    inputs: str
    pixels: Pixels
    answers: Answers
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Expected:
    """Everything a stored file is compared with; computed once, used for every precision."""

    reference: str
    cases: tuple[Case, ...]
    pictures: Pixels
    top1: NDArray[np.intp]  # the reference's class for each picture
    note: str


def batches_up_to(max_batch: int) -> tuple[int, ...]:
    """The batch sizes that are checked: one, two, an odd one, and the largest that will be served."""
    return tuple(sorted({1, 2, 7, max_batch} - set(range(max_batch + 1, 8))))


def expect(reference: Reference, preprocessing: Preprocessing, max_batch: int, pictures: Pictures | None, advance: Advance) -> Expected:
    """The reference's answers for noise (every batch size), all black, all white, and the pictures if there are any."""
    shape = (preprocessing.height, preprocessing.width, 3)
    noise = np.random.default_rng(0).integers(0, 256, (max_batch, *shape), dtype=np.uint8)
    measured = pictures.measurement if pictures is not None else np.empty((0, *shape), np.uint8)
    total = max_batch + 2 + len(measured)
    cases = [Case("noise", noise, reference(noise), batches_up_to(max_batch))]
    for name, value in (("black", 0), ("white", 255)):
        flat = np.full((1, *shape), value, np.uint8)
        cases.append(Case(name, flat, reference(flat), (1,)))
    advance(max_batch + 2, total)
    answered = []
    for start in range(0, len(measured), max_batch):
        answered.append(reference(measured[start : start + max_batch]))
        advance(max_batch + 2 + min(start + max_batch, len(measured)), total)
    if answered:
        logits, probabilities = (np.concatenate([getattr(item, name) for item in answered]) for name in ("logits", "probabilities"))
        cases.append(Case("pictures", measured, Answers(logits, probabilities), (min(max_batch, len(measured)),)))
        top1 = probabilities.argmax(axis=1)
    else:
        top1 = np.empty(0, np.intp)
    return Expected(reference.description, tuple(cases), measured, top1, pictures.note if pictures is not None else "no pictures")


def measurable(expected: Expected) -> bool:
    """Whether top-1 agreement on these pictures would say anything."""
    return len(expected.top1) >= MIN_PICTURES and len(np.unique(expected.top1)) >= MIN_CLASSES


def verify(path: Path, expected: Expected, limits: Limits, *, needs_agreement: bool, advance: Advance) -> ParityReport:
    """The evidence for one stored file: every case at every batch size, and the top-1 agreement. Never raises for a number that failed."""
    session = Session.open(path, Execution(provider="CPUExecutionProvider"), outputs=["logits", "probabilities"])
    total = sum(sum(case.batches) for case in expected.cases) + len(expected.pictures)
    done = 0
    checks: list[BatchCheck] = []
    for case in expected.cases:
        for batch in case.batches:
            checks.append(_check(session, case, batch, limits))
            advance(done := done + batch, total)
    answered: list[NDArray[np.intp]] = []
    step = max(batch for case in expected.cases for batch in case.batches)
    for start in range(0, len(expected.pictures), step):
        chunk = expected.pictures[start : start + step]
        answered.append(_answers(session, chunk).probabilities.argmax(axis=1))
        advance(done := done + len(chunk), total)
    agreement = _agreement(expected, np.concatenate(answered) if answered else np.empty(0, np.intp), limits, needs_agreement)
    failures = [line for check in checks for line in _failures(check)]
    if not agreement.passed:
        shown = "not measurable" if agreement.value is None else f"{agreement.value:.2%}, wanted at least {agreement.limit:.2%}"
        failures.append(f"top-1 agreement: {shown} ({agreement.note})")
    return ParityReport(
        reference=expected.reference,
        provider=session.provider,
        checks=tuple(checks),
        agreement=agreement,
        passed=not failures,
        failures=tuple(failures),
    )


def _answers(session: Session, pixels: Pixels) -> Answers:
    answer = session.run({session.inputs[0].name: pixels})
    return Answers(answer["logits"], answer["probabilities"])


def _check(session: Session, case: Case, batch: int, limits: Limits) -> BatchCheck:
    have = _answers(session, case.pixels[:batch])
    want = Answers(case.answers.logits[:batch], case.answers.probabilities[:batch])
    near = case.inputs == "pictures"
    # One scale for all rows of a kind: a single flat row would make a small error look large.
    scale = float(np.ptp(case.answers.logits)) or 1.0
    finite = bool(np.isfinite(have.logits).all() and np.isfinite(have.probabilities).all())
    return BatchCheck(
        inputs=case.inputs,
        batch=batch,
        logits=_difference(have.logits, want.logits, scale, limits.logits if near else limits.logits_far),
        probabilities=_difference(have.probabilities, want.probabilities, 1.0, limits.probabilities if near else limits.probabilities_far),
        finite=finite,
    )


def _difference(have: NDArray[np.float32], want: NDArray[np.float32], scale: float, limit: float) -> Difference:
    """Largest absolute difference over `scale`, and the smallest cosine of any row. NaN and another shape count as infinitely far."""
    if have.shape != want.shape or not np.isfinite(have).all():
        return Difference(max_abs=float("inf"), cosine_min=-1.0, limit=limit, passed=False)
    exact, close = want.astype(np.float64), have.astype(np.float64)
    max_abs = float(np.abs(close - exact).max()) / scale
    lengths = np.linalg.norm(close, axis=1) * np.linalg.norm(exact, axis=1)
    cosine = np.where(lengths > 0, (close * exact).sum(axis=1) / np.where(lengths > 0, lengths, 1.0), float((close == exact).all()))
    return Difference(max_abs=max_abs, cosine_min=float(min(1.0, cosine.min())), limit=limit, passed=max_abs <= limit)


def _agreement(expected: Expected, top1: NDArray[np.intp], limits: Limits, needed: bool) -> Agreement:
    pictures, classes = len(expected.top1), len(np.unique(expected.top1))
    if not measurable(expected):
        note = f"{pictures} pictures in {classes} classes; needs {MIN_PICTURES} and {MIN_CLASSES}"
        return Agreement(value=None, limit=limits.agreement, pictures=pictures, classes=classes, passed=not needed, note=note)
    value = float((top1 == expected.top1).mean())
    return Agreement(
        value=value, limit=limits.agreement, pictures=pictures, classes=classes, passed=value >= limits.agreement, note=expected.note
    )


def _failures(check: BatchCheck) -> list[str]:
    """One line for each number of a check that is beyond its limit."""
    where = f"{check.inputs}, batch {check.batch}"
    if not check.finite:
        return [f"NaN or Inf in the answer ({where})"]
    return [
        f"{name}: max-abs {difference.max_abs:.2e}, limit {difference.limit:.0e}, cosine {difference.cosine_min:.4f} ({where})"
        for name, difference in (("logits", check.logits), ("probabilities", check.probabilities))
        if not difference.passed
    ]
