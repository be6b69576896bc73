"""What a database's own failure means, and what to do about it; None for errors that are ours.

Pure: reads the driver's codes. Whatever failed, the transaction it failed in changed nothing.
"""

from sqlalchemy.exc import DBAPIError

_SQLITE = {
    "SQLITE_READONLY": "is read-only; give the control plane's user write permission on the file and its folder, or "
    "mount it read-write",
    "SQLITE_FULL": "has no room: the disk or the quota is full; free space there",
    "SQLITE_CORRUPT": "is damaged; stop the control plane and restore it from a copy",
    "SQLITE_NOTADB": "cannot be opened as a database; move the file away or restore it from a copy",
    "SQLITE_CANTOPEN": "cannot be opened; check that its folder exists and is the control plane's user's",
    "SQLITE_IOERR": "cannot be read or written: the disk reports an error; check the disk, then the file",
    "SQLITE_BUSY": "is locked by another program; one control plane per SQLite file, end the other one",
    "SQLITE_PERM": "may not be opened by this user; give it permission on the file and its folder",
}
_POSTGRESQL = {
    "25006": "is read-only (a standby, or default_transaction_read_only is on); set FABRIC_DATABASE_URL to the primary",
    "53100": "has no room: the server's disk is full; free space there",
    "53200": "is out of memory; look at the server",
    "53300": "takes no more connections; raise max_connections or stop other clients",
    "42501": "refuses this user; grant it the rights on schema and tables",
    "3D000": "does not exist; create it, or correct FABRIC_DATABASE_URL",
    "XX001": "is damaged; stop the control plane and restore it from a copy",
    "XX002": "has a damaged index; run REINDEX, then `fabric audit`",
}
_POSTGRESQL_CLASSES = {
    "08": "cannot be reached; check that the server runs and FABRIC_DATABASE_URL names it",
    "28": "refuses the login; correct user and password in FABRIC_DATABASE_URL",
    "57": "is shutting down or was restarted; wait until the server runs again",
}


def holds_nul(error: DBAPIError) -> bool:
    """Whether PostgreSQL was given text with the character NUL, which it cannot store or look for."""
    return "NUL (0x00)" in str(error.orig)


def fault(error: DBAPIError) -> str | None:
    """What is the matter with the database and what to do, to follow its name; None when it is not at fault."""
    found = error.orig
    name = getattr(found, "sqlite_errorname", None)
    if name is not None:
        return next((says for code, says in _SQLITE.items() if name.startswith(code)), None)
    state = getattr(found, "sqlstate", None)
    if state is not None:
        return _POSTGRESQL.get(state, _POSTGRESQL_CLASSES.get(state[:2]))
    lost = error.connection_invalidated or "connection" in str(found).lower()
    return _POSTGRESQL_CLASSES["08"] if lost else None
