"""Answers of tasks as the caller sees them: values, the user's exceptions, or errors that say why there is neither."""

from collections.abc import Callable, Sequence
from typing import Any

from fabric.client.tasks import Ended
from fabric.client.trusted import unpickle
from fabric.wire import channel
from fabric.wire.codec import CodecError, FunctionTypes, decode, decode_exception
from fabric.wire.errors import Error, RunFailed, run_failed
from fabric.wire.reasons import EXPLANATIONS, Reason


class Answers:
    """Decodes what a function's tasks answered; nothing in them is unpickled, unless values are to be trusted."""

    def __init__(self, function: Callable[..., Any] | None, returns: Any, run: str, *, trust: bool = False) -> None:
        self._types = FunctionTypes(function, returns=returns)
        self._run = run
        self._trust = trust

    def read(self, status: int, pieces: Sequence[memoryview]) -> tuple[bool, Any]:
        """(True, the value) or (False, the exception to raise)."""
        if status == channel.STATUS_NOT_TRANSPORTABLE:
            return False, self._not_transportable(bytes(pieces[0]).decode(errors="replace"))
        try:
            if status == channel.STATUS_VALUE:
                value = decode(pieces[0], pieces[1:], types=self._types)
                return True, unpickle(value) if self._trust else value
            exception = decode_exception(pieces[0], pieces[1:], types=self._types)
        except CodecError as error:
            return False, self._not_transportable(f"the result cannot be read here: {error}")
        if isinstance(exception, Error):
            exception.details.setdefault("run", self._run)
        return False, exception

    def error_of(self, ended: Ended) -> Error:
        """The error of a task that ended without an answer."""
        message = ended.message or EXPLANATIONS[ended.reason]
        attempts = f" (attempt {ended.attempt})" if ended.attempt > 1 else ""
        details: dict[str, Any] = {"run": self._run, "task": ended.task.index, "attempts": ended.attempt}
        if ended.exit_code is not None:
            details["exit_code"] = ended.exit_code
        return run_failed(ended.reason, message + attempts, **details)

    def _not_transportable(self, message: str) -> RunFailed:
        return RunFailed(message, reason=Reason.RESULT_NOT_TRANSPORTABLE, run=self._run)
