"""Bytes of one expert: from a model's configuration, without its weights, or as published."""

from __future__ import annotations

import math
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

from lrc import published
from lrc.errors import LrcError, ModelError


class ExpertShape(NamedTuple):
    """What a model's experts are like.

    Attributes
    ----------
    parameters : tuple of int
        Of one routed expert of each MoE layer, in order; of a published model, an estimate.
    num_experts, top_k : int or None
        Of a layer; top_k is None where the configuration does not tell.
    bits : float
        Bits of a weight as it is stored.
    """

    parameters: tuple[int, ...]
    num_experts: int
    top_k: int | None
    bits: float

    def num_bytes(self, bits: float | None = None) -> list[int]:
        """Bytes of one expert of each layer, as stored or at so many bits a weight."""
        bits = self.bits if bits is None else bits
        fine = isinstance(bits, int | float) and not isinstance(bits, bool)
        if not fine or not math.isfinite(bits) or not 0 < bits <= 64:
            raise LrcError(f"bits is {bits!r}, but must be bits a weight, above 0 and at most 64")
        return [max(round(count * bits / 8), 1) for count in self.parameters]


def of_config(source: str | PathLike) -> ExpertShape:
    """Experts of the model that a configuration describes.

    Parameters
    ----------
    source : str or path
        A ``config.json``, a folder that holds one, the name of a repository on the Hugging Face
        hub, or ``toy:NAME``. No weights are read or fetched: the model is built without them.

    Returns
    -------
    ExpertShape

    Raises
    ------
    ModelError
        No such file or repository, or no Mixture-of-Experts model whose layers can be found.

    Examples
    --------
    >>> lrc.expert_bytes.of_config("toy:baseline").parameters
    (6912, 6912, 6912, 6912)
    """
    from lrc import models
    from lrc.conversions import find_conversion
    from lrc.moe_layer import find_top_k
    from lrc.moe_layers import find_moe_layers

    name = fspath(source)
    file = Path(name).expanduser()
    with models._quiet(), models._one_line(name):
        place = fspath(file) if file.is_file() else models._source(name)
        hub = models._hub(None, {})
        fields = models._fields(place, hub)
        conversion = find_conversion(fields)
        if conversion is None:
            config = models._config(place, fields, False, hub)
            _, skeleton = models._skeleton(config, name, place, False, hub)
        else:
            skeleton = models._without_weights(conversion.model_class, conversion.config)
        models._check_layers(skeleton, name)
        layers = find_moe_layers(skeleton)
    size = skeleton.dtype.itemsize
    stored = str(fields.get("dtype") or fields.get("torch_dtype") or "float16")
    experts = {layer.num_experts for layer in layers}
    if len(experts) > 1:
        raise ModelError(f"{name}: its layers differ in their number of experts")
    block = skeleton.get_submodule(layers[0].name)
    return ExpertShape(
        tuple(layer.expert_bytes // size for layer in layers),
        experts.pop(),
        find_top_k(skeleton, block),
        32.0 if "32" in stored else 16.0,
    )


def of_published(model: str) -> ExpertShape:
    """Experts of one of the paper's models, from its published numbers of parameters.

    Parameters
    ----------
    model : str
        Key in `lrc.published`; of an encoder-decoder model also with the part behind it, such as
        "nllb decoder".

    Returns
    -------
    ExpertShape
        What is in all experts but not in the active ones, evenly divided: as the totals are
        published in units of ten million, good to one per cent. For two models it is too large:
        by a quarter for JetMoE, whose attention is a mixture as well, and by a third for OpenMoE,
        whose published numbers do not fit its shape. Their ``config.json`` tells better.

    Raises
    ------
    LrcError
        An unknown model, or one whose active parameters are not published.

    Examples
    --------
    >>> shape = lrc.expert_bytes.of_published("olmoe")  # 3 x 2048 x 1024 = 6.29 million
    >>> round(shape.parameters[0] / 1e6, 1), len(shape.parameters), shape.num_experts
    (6.3, 16, 64)
    """
    table = published.table("models").set_index("key")
    key, _, part = str(model).partition(" ")
    known = table.index[table["params_active_b"].notna()].tolist()
    two_stacks = key in table.index and table.loc[key, "type"] == "seq2seq"
    if key not in known or part not in (("", "encoder", "decoder") if two_stacks else ("",)):
        raise LrcError(f"no published model {model!r}: choose from {', '.join(known)}")
    row = table.loc[key]
    idle = row["moe_layers"] * (row["experts"] - row["top_k"])
    parameters = round((row["params_total_b"] - row["params_active_b"]) * 1e9 / idle)
    layers = int(row["moe_layers"]) // (2 if part else 1)
    return ExpertShape((parameters,) * layers, int(row["experts"]), int(row["top_k"]), 16.0)
