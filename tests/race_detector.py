"""Finds what the interpreter cannot show: threads that do not wait for each other.

Triton's interpreter works off a program step by step, so that a missing barrier changes nothing
there, and everything on a GPU. Here all loads, stores and atomic additions are watched: between two
barriers no word may be written by one step and touched by another (by which thread, we do not
know), and no program may touch what another one writes, but for atomic additions.
"""

from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from triton.runtime import interpreter


class Race(AssertionError):
    """Two threads, one of which writes, may meet in a word of memory."""


class Watch:
    """Words touched since the last barrier, and in this launch by other programs."""

    def __init__(self, memory):
        self._memory = memory
        self.launch()

    def launch(self, *_):
        self._others = {"load": set(), "store": set(), "add": set()}
        self._mine = {"load": set(), "store": set(), "add": set()}
        self.barrier()

    def program(self, *_):
        self.barrier()
        for kind, words in self._mine.items():
            self._others[kind] |= words
            words.clear()

    def barrier(self, *_):
        self._now = {"load": set(), "store": set(), "add": set()}

    def load(self, addresses, mask, *rest):
        self._touch("load", addresses, mask)
        return self._memory.load(addresses, mask, *rest)

    def store(self, addresses, values, mask):
        self._touch("store", addresses, mask)
        return self._memory.store(addresses, values, mask)

    def atomic_rmw(self, operation, addresses, values, mask, order):
        self._touch("add", addresses, mask)
        return self._memory.atomic_rmw(operation, addresses, values, mask, order)

    def _touch(self, kind, addresses, mask):
        words = np.broadcast_to(addresses, np.shape(mask))[np.asarray(mask, bool)].ravel().tolist()
        touched = set(words)
        if kind == "store" and len(touched) < len(words):
            raise Race("one step stores a word twice")
        for before, where in ((self._now, "since the last barrier"), (self._others, "elsewhere")):
            for other in ("load", "store", "add"):
                if (kind, other) in {("load", "load"), ("add", "add")}:
                    continue
                if touched & before[other]:
                    raise Race(f"a {kind} meets a {other} {where}")
        self._now[kind] |= touched
        self._mine[kind] |= touched


@contextmanager
def no_races(barriers=True):
    """Raise `Race` where a kernel in the interpreter could have one; or without its barriers."""
    watch = Watch(interpreter._interpreter)
    builder = interpreter.interpreter_builder

    def first(watched, original):
        def both(*args):
            watched(*args)
            return original(*args)

        return both

    with (
        patch.object(interpreter, "_interpreter", watch),
        patch.object(builder, "create_barrier", watch.barrier if barriers else lambda: None),
        patch.object(builder, "set_grid_dim", first(watch.launch, builder.set_grid_dim)),
        patch.object(builder, "set_grid_idx", first(watch.program, builder.set_grid_idx)),
    ):
        yield
