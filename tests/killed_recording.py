"""Kill a recording with SIGKILL, again and again, and look at what is left.

Run as a program by `test_recording.py`, for it forks: a child that records, and is killed, costs no
imports that way. Prints what it saw as JSON.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from tiny_models import random_tokens, tiny_model

import lrc
from lrc import trace_file

# Everything that changes a folder or makes it last, as Python's audit hooks see it.
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "tempfile.mkstemp"}
# Ids of a row group: a batch or two.
ROW_GROUP_IDS = 90


def batches():
    """Sequences of several lengths, two in a batch."""
    return [random_tokens(n, seed=n).tolist() for n in (9, 5, 12, 7, 7, 3, 11)]


def record(model, out):
    """The recording that is killed."""
    with patch.object(trace_file, "ROW_GROUP_IDS", ROW_GROUP_IDS):
        lrc.record(model, batches(), out=out, batch_size=2, weights=True, progress=False)


def in_child(work, kill_at=None, kill_after=None):
    """Run `work` in a child, killed before its n-th event or after a time.

    Returns whether it was killed, and the number of events if not.
    """
    events_read, events_written = os.pipe()
    child = os.fork()
    if not child:
        seen = 0

        def count(event, args):
            nonlocal seen
            if event in EVENTS and (event != "open" or (args[1] or "r") != "r"):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            work()
            os.write(events_written, str(seen).encode())
        finally:
            os._exit(0)
    os.close(events_written)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(events_read) as pipe:
        events = pipe.read()
    return os.WIFSIGNALED(status), int(events or 0)


def finished_parts(out):
    """Hash of each finished part that can be read whole, by name."""
    folder = Path(f"{out}.parts")
    notes = sorted(folder.glob("??????.json")) if folder.is_dir() else []
    found = {}
    for note in notes:
        part = folder / f"{note.stem}.trace.parquet"
        lrc.load_trace(part)
        found[part.name] = hashlib.sha256(part.read_bytes()).hexdigest()
    return found


def killed_until_done(model, out, kills):
    """Start and kill a recording as `kills` says (then let it finish): times it was killed."""
    killed, before = 0, {}
    for kill in [*kills, {}]:
        was_killed, _ = in_child(lambda: record(model, out), **kill)
        killed += was_killed
        after = finished_parts(out)
        if out.is_file():
            lrc.load_trace(out)
        else:
            assert before.items() <= after.items(), "a finished row group was lost"
            before = after
    return killed


def main(folder, random_kills):
    torch.set_num_threads(1)
    model = tiny_model("mixtral")
    lrc.record(model, batches(), weights=True, progress=False)  # what is slow the first time
    started = time.monotonic()
    undisturbed = folder / "undisturbed.parquet"
    _, events = in_child(lambda: record(model, undisturbed))
    seconds = time.monotonic() - started
    expected = undisturbed.read_bytes()
    with trace_file.TraceFile(undisturbed) as file:
        groups = file.num_row_groups
    seen = {"events": events, "row_groups": groups, "kills": 0, "finished": 0}

    def compare(out):
        assert out.read_bytes() == expected, "the file differs from that of an undisturbed run"
        left = sorted(path.name for path in folder.iterdir())
        assert left == sorted([out.name, undisturbed.name]), left
        out.unlink()
        seen["finished"] += 1

    # Once at every event of the file system, each time from the beginning ...
    for event in range(1, events + 1):
        out = folder / "each.parquet"
        seen["kills"] += killed_until_done(model, out, [{"kill_at": event}])
        compare(out)
    # ... and at random moments of one run after the other, several times each.
    rng = random.Random(0)
    while random_kills > 0:
        kills = [
            {"kill_after": rng.uniform(0, seconds)}
            if rng.random() < 0.5
            else {"kill_at": rng.randint(1, events)}
            for _ in range(5)
        ]
        out = folder / "random.parquet"
        killed = killed_until_done(model, out, kills)
        seen["kills"] += killed
        random_kills -= killed
        compare(out)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
