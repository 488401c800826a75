"""Processes that share a corpus: which part is whose, and under which name it is written."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from lrc.errors import RecordError


def checked_shard(shard, model: nn.Module) -> tuple[int, int]:
    """Return the number of this process, and how many there are.

    Parameters
    ----------
    shard : tuple of int or None
        As given by the user; None takes what torch.distributed or the launcher's environment say.
    model : torch.nn.Module
        Refused if it is itself spread over the processes, which then must all run every batch.
    """
    if shard is not None:
        try:
            rank, world = (int(value) for value in shard)
        except (TypeError, ValueError):
            rank, world = 0, 0
        if not 0 <= rank < world:
            raise RecordError(
                f"shard is {shard!r}, but must be the number of this process and how many there "
                "are, such as (0, 2)"
            )
        return rank, world
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    else:
        rank, world = (_number(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world > 1 and (getattr(model, "tp_size", None) or 1) > 1:
        raise RecordError(
            f"{type(model).__name__} is spread over {world} processes (tensor parallelism), so "
            "each must run every batch: give shard=(0, 1), and out in one of them only"
        )
    return rank, world


def ranked(path: Path, rank: int, world: int) -> Path:
    """Name of one shard of a file; the file's own where there is only one."""
    if world == 1:
        return path
    return path.with_name(f"{path.stem}.rank{rank}of{world}{path.suffix}")


def _number(name, default):
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise RecordError(f"the environment says {name}={text!r}, which is no number: give shard")
    return int(text)
