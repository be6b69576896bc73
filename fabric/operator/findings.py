"""A finding: what a check saw, whether it is good, and how to mend it when it is not."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """`bad` makes the doctor fail; `warning` is shown and does not."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result. `mend` says what to do and is empty when nothing needs to be done."""

    check: str
    verdict: Verdict
    detail: str
    mend: str = ""
    where: str = ""

    def at(self, where: str) -> "Finding":
        """The same finding, of the host at this address."""
        return Finding(self.check, self.verdict, self.detail, self.mend, where)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, members: dict[str, Any]) -> "Finding":
        return cls(**{**members, "verdict": Verdict(members["verdict"])})


def good(check: str, detail: str) -> Finding:
    return Finding(check, Verdict.OK, detail)


def warning(check: str, detail: str, mend: str) -> Finding:
    return Finding(check, Verdict.WARNING, detail, mend)


def bad(check: str, detail: str, mend: str) -> Finding:
    return Finding(check, Verdict.BAD, detail, mend)


def failed(findings: Iterable[Finding]) -> bool:
    """Whether any of them is bad."""
    return any(finding.verdict is Verdict.BAD for finding in findings)
