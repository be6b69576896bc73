"""The outbox under several threads: an agent that stops closes it while an acknowledgement is still being written."""

import sqlite3
import threading

from fabric.agent.outbox import Outbox
from fabric.agent.sealer import Sealed

KEY = ("lease_a", 1)


def sealed(seqs):
    return Sealed(
        key=KEY,
        node="node_a",
        receipts=[(seq, b"receipt") for seq in seqs],
        seq=max(seqs),
        previous=bytes(32),
        covered=0,
        state=b"",
        closed=None,
    )


def test_closing_waits_for_whoever_is_in_it(tmp_path):
    for attempt in range(20):
        outbox = Outbox(tmp_path / f"{attempt}.db")
        outbox.store([sealed(range(200))], [])
        ended: list[BaseException | None] = []
        started = threading.Barrier(3)

        def work(outbox=outbox, ended=ended, started=started):
            started.wait()
            try:
                for seq in range(200):
                    outbox.ack(KEY, seq)
                    outbox.unacknowledged(KEY)
            except sqlite3.ProgrammingError as error:  # it was closed meanwhile, which is said and no more
                ended.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        started.wait()
        outbox.close()
        for thread in threads:
            thread.join()
        again = Outbox(tmp_path / f"{attempt}.db")
        left = [seq for seq, _ in again.unacknowledged(KEY)]
        assert left == list(range(200 - len(left), 200))
        again.close()
