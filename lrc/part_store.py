"""What a long run has finished, in a folder, so that it may be killed at any moment and go on.

A part is a few files and a note about them. The note is written last, whole or not at all, so a
part without one was never finished and is removed. Only one process at a time may use a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from lrc.errors import TraceError
from lrc.whole_files import write_whole, writing

FORMAT = 1
_NOTE = re.compile(r"(\d{6})\.json")
_OURS = re.compile(r"\d{6}\..+|\..+\.part|joined\..+")


class PartStore:
    """Finished parts of a run.

    Parameters
    ----------
    folder : path
        Made if it is not there. What an interrupted run left half-done in it is removed.
    settings : dict
        What every part depends on, as JSON can hold it.

    Attributes
    ----------
    notes : list of dict
        What is known of each part, in order.

    Raises
    ------
    TraceError
        Another process uses the folder, it holds a run with other settings, or it is damaged or
        cannot be written.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder
        self._lock = FileLock(folder / "lock", timeout=0)
        with writing(folder):
            folder.mkdir(exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise TraceError(
                    f"{folder}: another process is recording there; wait until it is done, or "
                    "name another file"
                ) from None
        try:
            self._check_settings(settings)
            self.notes = self._read_notes()
            self._clean()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> PartStore:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()

    def close(self) -> None:
        """Let others use the folder, which disappears if there are no parts."""
        if self._lock.is_locked:
            if self.notes:
                self._lock.release()
            else:
                self.remove()

    def add(self, files: Mapping[str, Callable[[Path], None]], note: dict) -> None:
        """Add a part.

        Parameters
        ----------
        files : dict of str to callable
            Endings of the part's files; each callable writes a whole file of the path it is given.
        note : dict
            Anything JSON can hold.
        """
        number = len(self.notes)
        sizes = {}
        cure = f"; {number} finished parts are safe there, call again to go on"
        with writing(self.folder, cure):
            for ending, write in files.items():
                path = self.path(number, ending)
                write(path)
                sizes[ending] = path.stat().st_size
            text = json.dumps({"files": sizes, "note": note})
            write_whole(self.path(number, "json"), text.encode())
        self.notes.append(note)

    def path(self, number: int, ending: str) -> Path:
        """Where a file of a part lies."""
        return self.folder / f"{number:06d}.{ending}"

    def paths(self, ending: str) -> list[Path]:
        """Where the files of all parts lie that have this ending."""
        paths = [self.path(number, ending) for number in range(len(self.notes))]
        return [path for path in paths if path.is_file()]

    def remove(self) -> None:
        """Remove all parts and the folder, unless something else lies in it."""
        # The last notes first: what is left at any moment is a run that was interrupted.
        notes = [self.path(number, "json") for number in range(len(self.notes))][::-1]
        files = [path for path in self.folder.iterdir() if _OURS.fullmatch(path.name)]
        files = [path for path in files if path not in notes]
        for path in (*notes, *files, self.folder / "settings.json", self.folder / "lock"):
            path.unlink(missing_ok=True)
        self.notes = []
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
        self._lock.release()

    def _check_settings(self, settings):
        path = self.folder / "settings.json"
        wanted = {"format": FORMAT} | json.loads(json.dumps(settings))
        if not path.is_file():
            with writing(self.folder):
                write_whole(path, json.dumps(wanted, indent=1).encode())
            return
        found = self._json(path)
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                raise TraceError(
                    f"{self.folder}: holds an unfinished run with {key}={found.get(key)!r}, not "
                    f"{wanted.get(key)!r}; give the same arguments to continue it, or remove the "
                    "folder to start anew"
                )

    def _read_notes(self):
        names = sorted(path.name for path in self.folder.iterdir() if _NOTE.fullmatch(path.name))
        notes = []
        for number, name in enumerate(names):
            found = self._json(self.folder / name)
            try:
                sizes, note = found["files"], found["note"]
                sound = name == f"{number:06d}.json" and all(
                    self.path(number, ending).stat().st_size == size
                    for ending, size in sizes.items()
                )
            except (OSError, KeyError, TypeError, AttributeError):
                sound = False
            if not sound:
                raise TraceError(
                    f"{self.folder}: part {number} is damaged or missing; remove its files and "
                    "all later ones to record them again"
                )
            notes.append(note)
        return notes

    def _clean(self):
        finished = {f"{number:06d}" for number in range(len(self.notes))}
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name.partition(".")[0] not in finished:
                path.unlink()

    def _json(self, path):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TraceError(f"{path}: cannot be read ({error}); remove {self.folder}") from error
        if not isinstance(found, dict):
            raise TraceError(f"{path}: is not what lrc wrote; remove {self.folder}")
        return found
