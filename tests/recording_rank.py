"""One of several processes that record a corpus, as torchrun starts them; see test_ranks.py."""

import sys
from pathlib import Path

import torch
from tiny_models import random_tokens, tiny_model

import lrc

ROWS = [random_tokens(n, seed=n).tolist() for n in (9, 5, 12, 7, 7, 3, 11, 8, 10, 4, 6)]
ARGUMENTS = {"datasets": list("abcabcabcab"), "weights": True, "progress": False, "batch_size": 2}


def main(folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    shard = lrc.record(tiny_model("mixtral"), ROWS, out=folder / "trace.parquet", **ARGUMENTS)
    assert shard.meta["shard"]["rank"] == torch.distributed.get_rank()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
