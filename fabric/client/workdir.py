"""A folder that travels with a run: packed here, the same folder always to the same bytes; unpacked on the node.

`.fabricignore` in the folder leaves files out, one pattern a line as in `.gitignore`: `*.log`, `data/` (folders),
`/out` (only at the top), `!keep.log` (not left out after all), `#` comments. Version control, caches and environments
are left out anyway. Links stay links when they lead inside the folder.
"""

import fnmatch
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from fabric.wire.errors import InvalidRequest

MAX_BYTES = 256 << 20
IGNORE_FILE = ".fabricignore"

_ALWAYS = (".git/", ".hg/", ".svn/", "__pycache__/", "*.pyc", ".venv/", "venv/", "node_modules/", ".ipynb_checkpoints/")


def pack_workdir(folder: str | os.PathLike[str]) -> bytes:
    """An uncompressed tar of the folder's files, sorted, without owners and times.

    Raises:
        InvalidRequest: no folder, a link that leads out of it, or too large; says what takes the room.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - False also for what can be no path at all
        raise InvalidRequest(f"workdir={str(folder)!r} is not a folder")
    root = Path(folder).resolve()
    target, sizes = io.BytesIO(), dict[str, int]()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in _files(root, _patterns(root), ""):
            entry = archive.gettarinfo(root / path, path)
            if entry is None or not (entry.isreg() or entry.isdir() or entry.issym()):
                continue  # a socket, pipe or device
            _check_link(root, path, entry)
            top = path.partition("/")[0]
            sizes[top] = sizes.get(top, 0) + entry.size
            if sum(sizes.values()) > MAX_BYTES:
                raise InvalidRequest(_too_large(root, sizes))
            _add(archive, _plain(entry), root / path)
    return target.getvalue()


def unpack_workdir(packed: bytes, folder: Path) -> None:
    """Write the files; nothing outside the folder, whatever the archive says."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def _files(root: Path, patterns: list[tuple[str, bool]], inside: str) -> Iterator[str]:
    """Relative paths of what is not left out, folders before what is in them."""
    for entry in sorted(os.scandir(root / inside), key=lambda one: one.name):
        path = f"{inside}{entry.name}"
        is_folder = entry.is_dir(follow_symlinks=False)
        if _left_out(path, patterns, is_folder=is_folder):
            continue
        yield path
        if is_folder:
            yield from _files(root, patterns, f"{path}/")


def _patterns(root: Path) -> list[tuple[str, bool]]:
    """(pattern, whether it leaves out), in their order: the last that matches decides."""
    file = root / IGNORE_FILE
    own = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    lines = [line.strip() for line in (*_ALWAYS, *own)]
    return [(line.removeprefix("!"), not line.startswith("!")) for line in lines if line and not line.startswith("#")]


def _left_out(path: str, patterns: list[tuple[str, bool]], *, is_folder: bool) -> bool:
    out = False
    for pattern, leaves_out in patterns:
        wanted = pattern.strip("/")
        if pattern.endswith("/") and not is_folder:
            continue
        anchored = "/" in pattern.rstrip("/")
        if fnmatch.fnmatchcase(path if anchored else path.rpartition("/")[2], wanted):
            out = leaves_out
    return out


def _check_link(root: Path, path: str, entry: tarfile.TarInfo) -> None:
    if entry.issym():
        leads = Path(os.path.normpath(root / Path(path).parent / entry.linkname))
        if Path(entry.linkname).is_absolute() or not leads.is_relative_to(root):
            raise InvalidRequest(
                f"workdir: the link {path} leads to {entry.linkname}, outside the folder; put it into {IGNORE_FILE}"
            )


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what differs between two checkouts of the same files."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    entry.pax_headers = {}
    return entry


def _add(archive: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> None:
    if entry.islnk():
        entry.type, entry.linkname = tarfile.REGTYPE, ""
    if not entry.isreg():
        archive.addfile(entry)
        return
    with path.open("rb") as file:
        archive.addfile(entry, file)


def _too_large(root: Path, sizes: dict[str, int]) -> str:
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    shown = ", ".join(f"{name} ({size >> 20} MiB)" for name, size in largest)
    return (
        f"workdir={str(root)!r} has more than {MAX_BYTES >> 20} MiB; the largest so far: {shown}. "
        f"Name what is not needed in {IGNORE_FILE}, or put data where the run can read it"
    )
