"""What a node's earlier process left open: closed at the last moment that its journal knows of each lease."""

import contextlib

from fabric.agent import events
from fabric.agent.events import Began, Closed, Finished, Held, Opened
from fabric.agent.journal import Journal
from fabric.agent.meter import LeaseMeter, MeterError
from fabric.wire.reasons import Reason


def recover(journal: Journal) -> None:
    """End every lease that is open in the journal, and what ran in it, as lost; durable when it returns."""
    for meter in _open_meters(journal):
        for run, tasks in meter.flying:
            ended = tuple((task, attempt, str(Reason.OPERATOR_LOST), b"", 0) for task, attempt in tasks)
            _settle(journal, meter, Finished(meter.lease, meter.generation, meter.last_ns, run, ended))
        _settle(journal, meter, Closed(meter.lease, meter.generation, meter.last_ns, str(Reason.OPERATOR_LOST)))
    journal.sync()


def _settle(journal: Journal, meter: LeaseMeter, event: Finished | Closed) -> None:
    meter.apply(event)
    journal.append(events.encode(event))


def _open_meters(journal: Journal) -> list[LeaseMeter]:
    """The meters of the leases that the journal does not close."""
    meters: dict[tuple[str, int], LeaseMeter] = {}
    offset = journal.start
    while offset < journal.end:
        records, offset = journal.read(offset)
        for record in records:
            event = events.decode(record)
            if isinstance(event, Began):
                continue
            key = (event.lease, event.generation)
            if isinstance(event, Opened):
                meters[key] = LeaseMeter(event)
            elif isinstance(event, Held):
                meters[key] = LeaseMeter.from_state(event.state)
            elif key in meters:
                with contextlib.suppress(MeterError):
                    meters[key].apply(event)
    return [meter for meter in meters.values() if not meter.closed]
