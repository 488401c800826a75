"""Text files of ESFT: ``expert_weights_1.txt``, ``expert_weights_2.txt``, …, one for each layer.

A line is a text: expert ids, tab-separated, those of one token after those of another; an empty
field; then the weights in the same order. How many ids make a token is not said.
"""

import re
from pathlib import Path

import numpy as np

from lrc.errors import TraceError
from lrc.importers.log import Log, Options, Routes

FILE = re.compile(r"expert_weights_(\d+)\.txt")


def find_layers(folder: Path) -> dict[int, Path]:
    """Files of a folder by layer."""
    found = {
        int(match[1]): path for path in folder.iterdir() if (match := FILE.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def read_esft(source: Path, name: str, options: Options) -> Log:
    """Read a folder of such files, or one whose folders are such, each a dataset."""
    if not source.is_dir():
        raise TraceError(f"{name}: is one layer of ESFT's files: give the folder that holds all")
    if options.top_k is None:
        raise TraceError(
            f"{name}: does not say how many experts a token uses; give top_k (6 for "
            "DeepSeek-V2-Lite): another number would cut the lines into other tokens"
        )
    if files := find_layers(source):
        return Log(_read_folder(files, name, None, options.top_k), "esft")
    parts = {folder: find_layers(folder) for folder in sorted(source.iterdir()) if folder.is_dir()}
    routes = [
        one
        for folder, files in parts.items()
        if files
        for one in _read_folder(files, f"{name}/{folder.name}", folder.name, options.top_k)
    ]
    if not routes:
        raise TraceError(f"{name}: holds no files expert_weights_1.txt, …, nor folders with them")
    return Log(routes, "esft")


def _read_folder(files, name, dataset, top_k):
    numbers = list(files)
    if missing := sorted(set(range(1, numbers[-1] + 1)) - set(numbers)):
        raise TraceError(f"{name}: expert_weights_{missing[0]}.txt is missing")
    layers = [_read_layer(path, f"{name}, {path.name}", top_k) for path in files.values()]
    for number, layer in zip(numbers, layers, strict=True):
        if [len(ids) for ids, _ in layer] != [len(ids) for ids, _ in layers[0]]:
            raise TraceError(
                f"{name}: expert_weights_{number}.txt has other texts than "
                f"expert_weights_{numbers[0]}.txt, or is cut short"
            )
    return [
        Routes(
            np.stack([ids for ids, _ in text], axis=1),
            f"{name}, line {line}",
            weights=np.stack([weights for _, weights in text], axis=1),
            dataset=dataset,
        )
        for line, text in enumerate(zip(*layers, strict=True), 1)
    ]


def _read_layer(path, place, top_k):
    """Ids and weights of each line: arrays [tokens, top_k]."""
    texts = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            ids, gap, weights = line.rstrip("\n").partition("\t\t")
            where = f"{place}, line {number}"
            if not gap:
                raise TraceError(f"{where}: has no empty field before its weights: cut short?")
            try:
                ids = np.array(ids.split("\t"), dtype=np.int64)
                weights = np.array(weights.rstrip("\t").split("\t"), dtype=np.float64)
            except ValueError as error:
                raise TraceError(f"{where}: holds what is no number ({error})") from error
            if len(ids) != len(weights):
                raise TraceError(
                    f"{where}: has {len(ids)} ids, but {len(weights)} weights: cut short?"
                )
            if len(ids) % top_k:
                raise TraceError(
                    f"{where}: its {len(ids)} ids make no whole tokens of top_k={top_k}"
                )
            texts.append((ids.reshape(-1, top_k), weights.reshape(-1, top_k)))
    if not texts:
        raise TraceError(f"{place}: is empty")
    return texts
