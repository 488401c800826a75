"""Files that are there whole or not at all, whatever happens while they are written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrc.errors import TraceError


def temporary_beside(path: Path) -> Path:
    """Make an empty file in the folder of `path`, with the rights any new file would get."""
    handle, name = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
    os.close(handle)
    # mkstemp is private to the user.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(name, 0o666 & ~umask)
    return Path(name)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, once its content is safe on the disk."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if hasattr(os, "O_DIRECTORY"):  # not on Windows, which has no such thing
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file."""
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path, cure: str = "") -> Iterator[None]:
    """Turn what the system says against writing `path` into one line, with a cure if known.

    Of two that are nested the outer one speaks.
    """
    try:
        yield
    except (OSError, TraceError) as error:
        cause = error.__cause__ if isinstance(error, TraceError) else error
        if not isinstance(cause, OSError):
            raise
        # pyarrow's errors have no strerror, but its number.
        known = os.strerror(cause.errno) if cause.errno else ""
        reason = known or [*str(cause).strip().splitlines(), "unknown"][0]
        raise TraceError(f"{path}: cannot be written ({reason}){cure}") from cause
