"""Side-by-side timings; `make bench` runs them all and writes a page of the book.

A module of this folder that has ``rows() -> list[dict]`` is a benchmark. A row holds ``name``,
``ours_s`` and, as far as there is one, ``baseline`` (what it is), ``baseline_s``, ``ratio``,
``ratio_low``, ``ratio_high``, ``accesses_per_s``, ``peak_mb``, ``bound_s`` and ``note``. Each runs
in a process of its own; nothing timed is a test.
"""
