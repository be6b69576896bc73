"""What other control planes on the same PostgreSQL committed: their topics, heard by LISTEN and passed on here.

A wake-up that is lost while the connection is down is made up for: after each connect all that wait are told to look.
"""

import threading
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy import Engine, create_engine, pool

from api.database import CHANNEL

_log = structlog.get_logger(__name__)
_LOOK_S = 0.5
_RECONNECT_S = 1.0


class Listener:
    """One connection and one thread of this process.

    Args:
        url: of the PostgreSQL database.
        notify: is told each topic; called from the listener's thread.
        caught_up: is called after each connect, when what was said before is not known.
    """

    def __init__(self, url: str, notify: Callable[..., None], caught_up: Callable[[], None]) -> None:
        self._engine: Engine = create_engine(url, poolclass=pool.NullPool, isolation_level="AUTOCOMMIT")
        self._notify, self._caught_up = notify, caught_up
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Returns when the thread is over."""
        self._closed.set()
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001 - the outermost loop; whatever broke, connect again
                _log.warning("not listening to other control planes; connecting again", error=repr(error))
                self._closed.wait(_RECONNECT_S)

    def _listen(self) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(f"LISTEN {CHANNEL}")
            driver: Any = connection.connection.driver_connection
            self._caught_up()
            while not self._closed.is_set():
                for said in driver.notifies(timeout=_LOOK_S):
                    self._notify(said.payload)
