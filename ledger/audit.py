"""The audit: runs checkers of invariants over a database's rows and reports which rows break which.

A checker only reads, and yields findings in the order of rows, so that the first names the first bad row. The ledger's
own are `ledger.checks.LEDGER_CHECKS`; other parts add theirs to the list they pass to `run_audit`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlmodel import Session

from ledger.sealer import Sealer

FINDINGS_PER_CHECK = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that breaks an invariant: ``key`` is its primary key as text."""

    table: str
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Check:
    """A checker: ``invariant`` is its number in the list of the design, ``run`` yields what breaks it."""

    name: str
    invariant: int
    run: Callable[[Session], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check's findings, the first few."""

    name: str
    invariant: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All checks that ran, how many entries the sealed chain covers and does not cover yet, and its head."""

    results: tuple[CheckResult, ...]
    sealed: int
    unsealed_tail: int
    head: bytes

    @property
    def clean(self) -> bool:
        return not any(result.findings for result in self.results)


def run_audit(
    session: Session, checks: Sequence[Check], *, now_ms: int, known_heads: Mapping[int, bytes] | None = None
) -> AuditReport:
    """Run checks, in their order, and walk the sealed chain. Takes minutes on large databases; writes nothing.

    ``known_heads`` are heads of earlier reports (``sealed``: ``head``), kept by whoever audits: without them nobody can
    see that the end of the chain was cut off together with the newest entries.
    """
    results = [
        CheckResult(check.name, check.invariant, tuple(islice(check.run(session), FINDINGS_PER_CHECK)))
        for check in checks
    ]
    seal = Sealer(session).verify(now_ms, known_heads)
    broken = () if seal.fault is None else (Finding(seal.fault.table, seal.fault.key, seal.fault.message),)
    results.append(CheckResult("sealed chain", 24, broken))
    return AuditReport(tuple(results), seal.sealed, seal.tail, seal.head)
