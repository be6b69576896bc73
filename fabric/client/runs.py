"""A handle on a run of the control plane: state, attempts, logs, cost, reasons, receipts and, if detached, result."""

import base64
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from fabric.client.answers import Answers
from fabric.client.http import LONG_POLL_S
from fabric.client.office import in_time
from fabric.client.proof import LeaseInEpoch, RunProof, prove
from fabric.client.session import Session
from fabric.wire import channel, frames
from fabric.wire.amounts import dc_to_usd, format_dc
from fabric.wire.equivocation import Equivocation
from fabric.wire.errors import Error, InvalidRequest, ServiceError, Timeout, run_failed
from fabric.wire.machines import RUN_EDGES, RunState, is_terminal
from fabric.wire.reasons import EXPLANATIONS, Reason
from fabric.wire.receipts import Receipt, ReceiptError, SignedReceipt

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost so far. Amounts are exact USD; `accrued` is charged, `held` set aside, the rest measured."""

    accrued: Decimal
    held: Decimal
    rate_per_hour: Decimal
    gpu_ms: int
    utilised_gpu_ms: int
    energy_mj: int

    def __str__(self) -> str:
        usd = format_dc(int(self.accrued * 100_000))
        return f"{usd} for {self.gpu_ms / 1000:.3f} GPU-s"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a run is where it is: offers considered, how many rejected for which reason, the chosen, the next best."""

    considered: int
    rejected: dict[str, int]
    chosen: dict[str, Any] | None
    next_best: dict[str, Any] | None
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class RunReceipt:
    """A run's signed receipts, the keys of the operators that signed them, and their way into closed epochs.

    `equivocations` prove that an operator signed two different receipts under one number.
    """

    fabric_id: str
    receipts: tuple[SignedReceipt, ...]
    session_keys: dict[str, tuple[bytes, ...]]
    epochs: tuple[LeaseInEpoch, ...] = ()
    equivocations: tuple[Equivocation, ...] = ()

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> "RunReceipt":
        """From what the control plane answers, or what was saved of it.

        Raises:
            ReceiptError: it is no such thing.
        """
        try:
            keys = {
                operator: tuple(bytes.fromhex(key) for key in facts["session_keys"])
                for operator, facts in answer["operators"].items()
            }
            signed = tuple(SignedReceipt.from_bytes(base64.b64decode(r["receipt"])) for r in answer["receipts"])
            epochs = tuple(map(LeaseInEpoch.from_answer, answer.get("epochs", ())))
            lies = tuple(map(Equivocation.from_json, answer.get("equivocations", ())))
            return cls(answer["fabric_id"], signed, keys, epochs, lies)
        except ReceiptError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ReceiptError(f"not a run's receipts: {type(error).__name__}: {error}") from None

    def to_answer(self) -> dict[str, Any]:
        """The same as JSON has it, to keep and to verify later."""
        operators = {name: {"session_keys": [key.hex() for key in keys]} for name, keys in self.session_keys.items()}
        receipts = [{"receipt": base64.b64encode(signed.to_bytes()).decode()} for signed in self.receipts]
        epochs = [link.to_answer() for link in self.epochs]
        lies = [proof.to_json() for proof in self.equivocations]
        return {
            "fabric_id": self.fabric_id,
            "operators": operators,
            "receipts": receipts,
            "epochs": epochs,
            "equivocations": lies,
        }

    def verify(self) -> tuple[Receipt, ...]:
        """The receipts' statements, after signatures, task lists and each lease's chain were checked. Works offline.

        Raises:
            ReceiptError: says which receipt is not what it claims.
        """
        from fabric.client.verification import verify_chain, verify_equivocation

        for proof in self.equivocations:
            verify_equivocation(self.fabric_id, proof, self.session_keys)
        return verify_chain(self.fabric_id, self.receipts, self.session_keys)

    def proof(self) -> RunProof:
        """The way of the run's tasks into closed epochs: task, receipt, lease, GPU, usage root. Works offline.

        Raises:
            ReceiptError: a receipt or a path is not what it claims.
        """
        self.verify()
        return prove(self.epochs, self.receipts)

    @property
    def gpu_ms(self) -> int:
        """GPU time of all leases, from the newest receipt of each."""
        newest = {signed.receipt.lease: signed.receipt for signed in sorted(self.receipts, key=lambda s: s.receipt.seq)}
        return sum(line.gpu_ms for receipt in newest.values() for line in receipt.gpus)


class Run:
    """A run, by id. Every property asks the control plane anew."""

    def __init__(
        self,
        session: Session,
        run: str,
        function: Callable[..., Any] | None = None,
        returns: Any = None,
        *,
        trust: bool = False,
    ) -> None:
        self.id = run
        self._session = session
        self._answers = Answers(function, returns, run, trust=trust)

    def __repr__(self) -> str:
        return f"<fabric.Run {self.id}>"

    @property
    def status(self) -> RunState:
        """Its state now."""
        return RunState(self._facts()["state"])

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Every try of every task, in order."""
        return self._facts()["attempts"]

    @property
    def leases(self) -> list[dict[str, Any]]:
        """Where it ran or runs."""
        return self._facts()["leases"]

    @property
    def cost(self) -> Cost:
        cost = self._facts()["cost"]
        return Cost(
            dc_to_usd(int(cost["accrued_dc"])),
            dc_to_usd(int(cost["held_dc"])),
            dc_to_usd(int(cost["rate_dc_per_hour"])),
            cost["gpu_ms"],
            cost["utilised_gpu_ms"],
            cost["energy_mj"],
        )

    def explain(self) -> Explanation:
        return Explanation(**self._facts()["explain"])

    def receipt(self) -> RunReceipt:
        """What was signed of it so far."""
        return RunReceipt.from_answer(self._session.call(self._session.plane.receipt(self.id)))

    def cancel(self) -> None:
        """End it now; a run that is over stays as it is."""
        self._session.call(self._session.plane.cancel(self.id))

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Its output line by line; with `follow` until the run is over. On several nodes each names its rank."""
        for _, line in self.lines(follow=follow):
            yield line

    def lines(self, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """As `logs`, each line with its stream: 1 is stdout, 2 stderr."""
        lines: SimpleQueue[tuple[int, str] | BaseException | None] = SimpleQueue()
        self._session.loop.post(lambda: self._session.loop.start(self._read_logs(lines, follow=follow)))
        while (line := lines.get()) is not None:
            if isinstance(line, BaseException):
                raise line
            yield line

    def wait(self, timeout: float | None = None) -> RunState:
        """Its terminal state. A control plane that is away is waited for.

        Raises:
            InvalidRequest: `timeout` is no number of seconds.
            Timeout: it is not over after `timeout` seconds, as far as is known; it goes on.
        """
        return RunState(self._finished(timeout, _deadline(timeout))["state"])

    def result(self, timeout: float | None = None) -> Any:
        """The value of a detached run, waiting up to `timeout` seconds, also for a control plane that is away.

        Raises:
            InvalidRequest: `timeout` is no number of seconds, or the run is not detached.
            Timeout: it is not over yet, as far as is known; it goes on.
            RunFailed: it ended without a value; the user's own exception is raised as itself.
        """
        until = _deadline(timeout)
        facts = self._finished(timeout, until)
        result = facts.get("result") or {}
        if result.get("blob"):
            value, answer = self._read_result(self._answer(lambda: self._session.plane.blob(result["blob"]), until))
            if value:
                return answer
            raise answer
        if facts["state"] == RunState.SUCCEEDED:
            raise InvalidRequest(f"{self.id} was a {facts['kind']}: its values went to the process that called it")
        reason = Reason(facts["reason"] or Reason.INTERNAL_ERROR)
        message = facts["message"] or result.get("message") or EXPLANATIONS[reason]
        attempts = facts["attempts"]
        code = attempts[-1].get("exit_code") if attempts else None
        ended = {} if code is None else {"exit_code": code}
        raise run_failed(reason, message, run=self.id, attempts=len(attempts), **ended)

    def _facts(self) -> dict[str, Any]:
        return self._session.call(self._current())

    async def _current(self) -> dict[str, Any]:
        await self._session.office.registrar.flush()
        return await self._session.plane.run(self.id)

    def _answer(self, ask: Callable[[], Awaitable[T]], until: float | None) -> T:
        """What the control plane answers once it is there; asked for the last time when it is time."""
        try:
            return self._session.call(self._session.office.until_answered(ask, until))
        except ServiceError as error:
            if not error.retryable:
                raise
            raise Timeout(f"{self.id} may go on, but {error.message}", reason=Reason.TIMEOUT) from None

    def _finished(self, timeout: float | None, until: float | None) -> dict[str, Any]:
        facts = self._answer(in_time(self._current, until), until)
        while not is_terminal(RUN_EDGES, RunState(facts["state"])):
            left = LONG_POLL_S if until is None else until - time.monotonic()
            if left <= 0:
                raise Timeout(f"{self.id} is {facts['state']} after {timeout:g} s; it goes on", reason=Reason.TIMEOUT)
            wait = partial(
                self._session.plane.run, self.id, wait_s=max(1, min(LONG_POLL_S, left)), since=facts["state"]
            )
            facts = self._answer(in_time(wait, until), until)
        return facts

    def _read_result(self, blob: bytes) -> tuple[bool, Any]:
        header, body = frames.unpack(blob)
        if header[0] != channel.RESULT or len(header[2]) != 1:
            raise ServiceError(f"the stored result of {self.id} is not a result")
        _, _, status, *_, sizes = header[2][0]
        return self._answers.read(status, list(frames.split(body, sizes)))

    async def _read_logs(self, lines: SimpleQueue[Any], *, follow: bool) -> None:
        ranks: bool | None = None
        try:
            async for line in self._session.plane.logs(self.id, follow=follow):
                if ranks is None:
                    ranks = _has_ranks(await self._current())
                lines.put((line["stream"], f"[rank {line['task']}] {line['text']}" if ranks else line["text"]))
            lines.put(None)
        except Error as error:
            lines.put(error)


def _deadline(timeout: float | None) -> float | None:
    """When that is, by the monotonic clock."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or math.isnan(timeout):
        raise InvalidRequest(f"timeout={timeout!r} is not a time in seconds; None waits until the run is over")
    return time.monotonic() + timeout


def _has_ranks(facts: dict[str, Any]) -> bool:
    """Whether its tasks are the ranks of a run on several nodes; once it prints, all of them have begun."""
    return facts["kind"] in ("run", "submit") and any(attempt["task"] for attempt in facts["attempts"])
