"""The manifest of a checkpoint: which files it has and of which pieces each consists, as msgpack.

Whoever reads one has it from a stranger: the job that wrote it, or the operator where that job ran.
"""

from pathlib import PurePosixPath

import msgpack

MAX_FILES = 65_536
_DIGEST_CHARS = 64


class ManifestError(ValueError):
    """A manifest that is malformed, or names a place outside its folder."""


def pack_manifest(files: list[tuple[str, list[str]]]) -> bytes:
    """The manifest of these (relative path, SHA-256 of each piece in hex)."""
    return msgpack.packb(files) or b""


def read_manifest(body: bytes) -> list[tuple[str, list[str]]]:
    """The files of a manifest, each inside the folder it is put back into.

    Raises:
        ManifestError: says which entry is wrong and what it should be.
    """
    try:
        entries = msgpack.unpackb(body)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ManifestError(f"not a checkpoint's manifest: {error}") from None
    if not isinstance(entries, list) or len(entries) > MAX_FILES:
        raise ManifestError(f"a checkpoint's manifest is a list of at most {MAX_FILES} files")
    return [_entry(entry) for entry in entries]


def _entry(entry: object) -> tuple[str, list[str]]:
    match entry:
        case [str(name), list(digests)] if all(isinstance(one, str) and len(one) == _DIGEST_CHARS for one in digests):
            path = PurePosixPath(name)
            if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
                raise ManifestError(f"{name!r:.80} is not a file inside the checkpoint's folder")
            return name, list(digests)
    raise ManifestError("a file of a checkpoint is [relative path, [SHA-256 of each piece, in hex]]")
