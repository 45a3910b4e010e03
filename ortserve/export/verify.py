"""The gate: a stored file, run through the session that serves, against the model as it was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ortserve.execution import Execution
from ortserve.export.loaded import Reference
from ortserve.export.options import Options
from ortserve.export.tasks import Advance, BuildTask, Case, Samples, cut, rows
from ortserve.manifest import Agreement, BatchCheck, ParityReport, Precision
from ortserve.session import Session, Tensors


@dataclass(frozen=True)
class Expected:
    """Everything a stored file is compared with; computed once, used for every precision."""

    reference: str
    cases: tuple[Case, ...]
    measurement: Tensors  # the samples' inputs; {} where there are none
    answers: Tensors  # the reference's to them
    note: str
    unmeasurable: str | None  # why agreement on them would say nothing


def expect(task: BuildTask, reference: Reference, max_batch: int, samples: Samples | None, advance: Advance) -> Expected:
    """The reference's answers to the task's probes, and to the samples if there are any."""
    probes = task.probes(max_batch)
    measurement = samples.measurement if samples is not None else {}
    count = rows(measurement) if measurement else 0
    total = sum(rows(probe.tensors) for probe in probes) + count
    cases: list[Case] = []
    done = 0
    for probe in probes:
        cases.append(Case(probe.inputs, probe.tensors, probe.batches, reference(probe.tensors)))
        advance(done := done + rows(probe.tensors), total)
    parts: list[Tensors] = []
    for start in range(0, count, max_batch):
        parts.append(reference(cut(measurement, start, start + max_batch)))
        advance(done := done + rows(parts[-1]), total)
    if not parts:
        return Expected(reference.description, tuple(cases), {}, {}, f"no {task.samples}", f"no {task.samples}")
    answers = joined(parts)
    cases.append(Case(task.samples, measurement, (min(max_batch, count),), answers))
    note = samples.note if samples is not None else ""
    return Expected(reference.description, tuple(cases), measurement, answers, note, task.unmeasurable(answers))


def verify(path: Path, task: BuildTask, expected: Expected, precision: Precision, options: Options, advance: Advance) -> ParityReport:
    """The evidence for one stored file: every case at every batch size, and the agreement. Never raises for a number that failed."""
    session = Session.open(path, Execution(provider="CPUExecutionProvider"), outputs=[spec.name for spec in task.outputs])
    count = rows(expected.measurement) if expected.measurement else 0
    total = sum(sum(case.batches) for case in expected.cases) + count
    done = 0
    checks: list[BatchCheck] = []
    for case in expected.cases:
        for batch in case.batches:
            have = session.run(cut(case.tensors, 0, batch))
            differences = task.compare(case, have, precision, options)
            checks.append(BatchCheck(inputs=case.inputs, batch=batch, outputs=differences, finite=_finite(have)))
            advance(done := done + batch, total)
    step = max(batch for case in expected.cases for batch in case.batches)
    parts: list[Tensors] = []
    for start in range(0, count, step):
        parts.append(session.run(cut(expected.measurement, start, start + step)))
        advance(done := done + rows(parts[-1]), total)
    failures = [line for check in checks for line in _failures(check)]
    agreement = _agreement(task, expected, parts, precision, options)
    if not agreement.passed:
        shown = "not measurable" if agreement.value is None else f"{agreement.value:.2%}, wanted at least {agreement.limit:.2%}"
        failures.append(f"{agreement.measure}: {shown} ({agreement.note})")
    return ParityReport(
        reference=expected.reference,
        provider=session.provider,
        checks=tuple(checks),
        agreement=agreement,
        passed=not failures,
        failures=tuple(failures),
    )


def joined(parts: list[Tensors]) -> Tensors:
    """The rows of all parts, in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _agreement(task: BuildTask, expected: Expected, parts: list[Tensors], precision: Precision, options: Options) -> Agreement:
    """Fp32 passes without a measured agreement: its other limits are tight. A lower precision does not."""
    if expected.unmeasurable is None:
        return task.agreement(joined(parts), expected.answers, precision, options, expected.note)
    samples = rows(expected.measurement) if expected.measurement else 0
    limit = task.agreement_limit(precision, options)
    return Agreement(measure=task.measure, value=None, limit=limit, samples=samples, passed=precision == "fp32", note=expected.unmeasurable)


def _finite(tensors: Tensors) -> bool:
    return all(bool(np.isfinite(tensor).all()) for tensor in tensors.values())


def _failures(check: BatchCheck) -> list[str]:
    """One line for each number of a check that is beyond its limit."""
    where = f"{check.inputs}, batch {check.batch}"
    if not check.finite:
        return [f"NaN or Inf in the answer ({where})"]
    return [
        f"{name}: max-abs {difference.max_abs:.2e}, limit {difference.limit:.0e}, cosine {difference.cosine_min:.4f} ({where})"
        for name, difference in check.outputs.items()
        if not difference.passed
    ]
