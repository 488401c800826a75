"""Expert fingerprints of gpt-oss: a JSON file for each generation, as its hooks recorded it.

``router_data`` holds an object for each token that was run after the prompt, ``{"token_103":
{"layer_0": {"selected_experts": […], "selected_probs": […]}, …}}``, numbered by its place in
``full_text``; the last token sampled is never run, those of the prompt were not recorded. The
number of experts is not said.
"""

import json
from pathlib import Path

import numpy as np

from lrc.errors import TraceError
from lrc.importers.log import Log, Options, Routes

PATTERN = "*_examples.json"
KEY = "router_data"


def read_fingerprints(source: Path | list[Path], name: str, options: Options) -> Log:
    """Read one such file, a list of them, or all that lie in a folder."""
    if isinstance(source, Path):
        source = sorted(source.rglob(PATTERN)) if source.is_dir() else [source]
    return Log([_read(path) for path in source], "fingerprint")


def _read(path):
    try:
        document = json.loads(path.read_bytes())
        routes = _routes(document, path.name)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: no JSON, or cut short ({error})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise TraceError(
            f"{path}: is no expert fingerprint, or damaged ({type(error).__name__}: {error})"
        ) from error
    return routes


def _routes(document, name):
    tokens = [next(iter(token.items())) for token in document[KEY] if len(token) == 1]
    if not tokens or len(tokens) != len(document[KEY]):
        raise TraceError(f"{name}: {KEY} must hold an object for each token, of one entry each")
    places = np.array([int(key.removeprefix("token_")) for key, _ in tokens])
    if (np.diff(places) != 1).any():
        lost = places[:-1][np.diff(places) != 1][0] + 1
        raise TraceError(f"{name}: token {lost} is missing")
    layers = [f"layer_{layer}" for layer in range(len(tokens[0][1]))]
    parts = {}
    for key in ("selected_experts", "selected_probs"):
        rows = [[token[layer][key] for layer in layers] for _, token in tokens]
        if len({len(slots) for row in rows for slots in row}) != 1:
            raise TraceError(f"{name}: its tokens differ in their numbers of {key}")
        parts[key] = np.array(rows)
    if parts["selected_experts"].shape != parts["selected_probs"].shape:
        raise TraceError(f"{name}: its tokens have other numbers of experts than of probabilities")
    return Routes(
        parts["selected_experts"],
        name,
        weights=parts["selected_probs"],
        # Where the answer begins; its head is never recorded without a gap after the prompt.
        prompt_tokens=len(document["full_text"]) - len(document["generated_only"]),
        start=int(places[0]),
        dataset=document["dataset"],
    )
