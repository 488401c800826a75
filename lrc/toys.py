"""The toy family: ten small models that differ from a baseline in one thing, as in the paper.

The paper's controlled ("TOY") models have 8 layers, 64 experts, top-8 and 1.43 B parameters. Ours
keep experts, top-k and every contrast between variants, at a size that a CPU can train. Training
is in `lrc.toy_training`; this module holds the configurations and reads what the package ships.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lrc import trace_file, vocabulary
from lrc.errors import LrcError
from lrc.trace import Trace
from lrc.vocabulary import TokenCounts

DATA = Path(__file__).parent / "data" / "toys"

EXPERT_WIDTH = 24
LAYERS = 4
SHORT = 400
"""Optimizer steps of the experiments: a third of the variants', so that many can be trained."""


@dataclass(frozen=True)
class Variant:
    """One toy model: how it differs from the baseline.

    Attributes
    ----------
    name : str
        Name used in code and file names.
    label : str
        The paper's name of the variant.
    change : str
        The difference, in words.
    config : dict
        Fields of the transformers configuration that differ.
    aux_loss : float
        Weight of the load-balancing loss of each MoE layer (1 = balanced value of the loss).
    seeds : int
        Seeds trained: three where the paper's conclusion rests on a small difference.
    z_loss : float
        Weight of the router's z-loss of each MoE layer.
    bias_rate : float
        If not 0: each expert has a bias that is added to its logit for selection only, and that
        rises or falls by this much after every step in which the expert had less or more than its
        share of the work (DeepSeek-V3's balancing without a loss).
    domains : tuple of str
        Domains of the embedded corpus to train on; all, if empty. The steps stay the same.
    piece : int
        If not 0: a training sequence changes its domain after every so many tokens. The tokens
        are those of the baseline.
    """

    name: str
    label: str
    change: str
    config: dict = field(default_factory=dict)
    aux_loss: float = 0.01
    seeds: int = 1
    z_loss: float = 1e-3
    bias_rate: float = 0.0
    domains: tuple[str, ...] = ()
    piece: int = 0


def _shared(count: int) -> dict:
    return {
        "num_experts": 64 - count,
        "num_experts_per_tok": 8 - count,
        "shared_expert_intermediate_size": EXPERT_WIDTH * count,
    }


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("baseline", "Baseline", "64 experts, top-8", seeds=3),
        Variant(
            "fewer_experts",
            "FewerExp",
            "32 experts of double width, top-4",
            {
                "num_experts": 32,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 2 * EXPERT_WIDTH,
            },
        ),
        Variant("more_active", "ActMore", "top-16", {"num_experts_per_tok": 16}),
        Variant("fewer_active", "ActFewer", "top-2", {"num_experts_per_tok": 2}),
        Variant("one_shared", "1ShrExp", "1 shared expert, top-7 of 63", _shared(1), seeds=3),
        Variant("two_shared", "2ShrExp", "2 shared experts, top-6 of 62", _shared(2), seeds=3),
        Variant("dense_first", "DenseFst", "first layer dense", {"mlp_only_layers": [0]}),
        Variant("dense_half", "DenseHlf", "every other layer dense", {"mlp_only_layers": [0, 2]}),
        Variant("no_balance", "NoLB", "no load-balancing loss", aux_loss=0.0, seeds=3),
        Variant("over_balance", "OverLB", "ten times the balancing loss", aux_loss=0.1, seeds=3),
    )
}
"""The ten variants by name, in the paper's order."""


def _width(width: int) -> dict:
    return {"moe_intermediate_size": width}


def _experts(count: int, top_k: int, width: int) -> dict:
    return {"num_experts": count, "num_experts_per_tok": top_k} | _width(width)


EXPERIMENTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("aux_0.001", "aux 0.001", "a tenth of the balancing loss", aux_loss=0.001),
        Variant("aux_0.003", "aux 0.003", "0.3 times the balancing loss", aux_loss=0.003),
        Variant("aux_0.03", "aux 0.03", "three times the balancing loss", aux_loss=0.03),
        Variant("aux_0.3", "aux 0.3", "thirty times the balancing loss", aux_loss=0.3),
        Variant("bias_0.001", "bias 0.001", "slow bias, no loss", aux_loss=0, bias_rate=0.001),
        Variant("bias_0.01", "bias 0.01", "fast bias, no loss", aux_loss=0, bias_rate=0.01),
        Variant("z_0", "no z-loss", "no z-loss", z_loss=0),
        Variant("z_0.03", "z-loss 0.03", "thirty times the z-loss", z_loss=0.03),
        Variant("experts_16", "16 experts", "top-2 of 16", _experts(16, 2, 4 * EXPERT_WIDTH)),
        Variant(
            "experts_128", "128 experts", "top-16 of 128", _experts(128, 16, EXPERT_WIDTH // 2)
        ),
        Variant("half_width", "width 12", "half the width", _width(EXPERT_WIDTH // 2)),
        Variant("double_width", "width 48", "double the width", _width(2 * EXPERT_WIDTH)),
        Variant("one_domain", "Python alone", "trained on Python alone", domains=("python",)),
        Variant("mixed", "mixed topics", "a new topic every 64 tokens", piece=64),
    )
}
"""Experiments past the paper's ten variants, by name: each differs from the baseline in one thing.

Their traces are not shipped, only what `lrc.toy_statistics` keeps of runs of `SHORT` steps; its
function `shipped` says which were trained, and ``python -m lrc.toy_training NAME`` trains any.
"""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "auxiliary loss": (
        "no_balance",
        "aux_0.001",
        "aux_0.003",
        "baseline",
        "aux_0.03",
        "over_balance",
        "aux_0.3",
    ),
    "bias": ("no_balance", "bias_0.001", "bias_0.01", "baseline"),
    "z-loss": ("z_0", "baseline", "z_0.03"),
    "experts at fixed share": ("experts_16", "fewer_experts", "baseline", "experts_128"),
    "expert width": ("half_width", "baseline", "double_width"),
    "domains": ("one_domain", "baseline"),
    "packing": ("baseline", "mixed"),
}
"""What is asked, and the runs that answer it, in the order of what changes."""


def variant(name: str) -> Variant:
    """Return a variant or an experiment by name.

    Raises
    ------
    LrcError
        If there is none of that name; the message lists them.
    """
    known = VARIANTS | EXPERIMENTS
    if name not in known:
        raise LrcError(f"no toy model named {name!r}: choose from {', '.join(known)}")
    return known[name]


def config(name: str, vocab_size: int = 2048):
    """Return the transformers configuration of a variant.

    Parameters
    ----------
    name : str
        A key of `VARIANTS` or `EXPERIMENTS`.
    vocab_size : int
        Tokens of the tokenizer.

    Returns
    -------
    transformers.Qwen2MoeConfig
        Baseline: width 96, 4 layers, 64 experts of width 24, top-8, no shared expert. A dense
        layer is as wide as all experts together, as in the paper.
    """
    from transformers import Qwen2MoeConfig

    baseline = {
        "vocab_size": vocab_size,
        "hidden_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64 * EXPERT_WIDTH,
        "moe_intermediate_size": EXPERT_WIDTH,
        "shared_expert_intermediate_size": 0,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "initializer_range": 0.1,  # About 1 / sqrt(width); transformers' 0.02 learns slowly here.
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": None,
        "use_cache": False,
    }
    return Qwen2MoeConfig(**(baseline | variant(name).config))


def path(name: str = "baseline") -> Path:
    """Return the folder of a variant's shipped weights, for ``lrc.load_model("toy:NAME")``.

    Raises
    ------
    LrcError
        If the variant is unknown or its weights are not shipped.
    """
    folder = DATA / variant(name).name
    if not (folder / "model.safetensors").is_file():
        shipped = sorted(p.parent.name for p in DATA.glob("*/model.safetensors"))
        raise LrcError(
            f"the weights of toy {name!r} are not shipped, only those of {', '.join(shipped)}: "
            f"train it with `python -m lrc.toy_training {name}`"
        )
    return folder


def shipped() -> list[tuple[str, int]]:
    """Return (variant, seed) of every shipped trace, in the order of `VARIANTS`."""
    runs = []
    for name in VARIANTS:
        seeds = (int(p.stem.rsplit("-", 1)[1]) for p in DATA.glob(f"traces/{name}-*.parquet"))
        runs += [(name, seed) for seed in sorted(seeds)]
    return runs


def load_trace(name: str, seed: int = 0) -> Trace:
    """Return the shipped trace of a variant: 12 held-out sequences of each of eight domains.

    Parameters
    ----------
    name : str
        A key of `VARIANTS`.
    seed : int
        Seed of the training run.

    Raises
    ------
    LrcError
        If that variant or seed is not shipped.
    """
    return trace_file.load_trace(_shipped_file("traces", name, seed))


def with_token_ids(trace: Trace) -> Trace:
    """Return a shipped trace with its token ids, read from the packages that its texts come from.

    The texts are those of Python and of the packages installed with it, which cannot be shipped.

    Parameters
    ----------
    trace : Trace
        As `load_trace` returns it.

    Raises
    ------
    LrcError
        The trace is of other texts than those installed here.
    """
    from transformers import PreTrainedTokenizerFast

    from lrc import corpora

    tokenizer = PreTrainedTokenizerFast.from_pretrained(DATA / "baseline")
    names = trace.dataset_names or [""]
    texts = corpora.sequences(
        tokenizer,
        corpora.embedded("held-out"),
        per_domain=max(1, trace.num_sequences // len(names)),
        length=trace.shape[1],
    )
    if texts.fingerprint() != trace.meta.get("fingerprint"):
        raise LrcError(
            "the token ids of this trace cannot be made: Python and its packages hold other texts "
            "here than where the trace was recorded (constraints.txt names their versions)"
        )
    parts = {"lengths": trace.lengths, "datasets": trace.datasets, "weights": trace.weights}
    parts |= {"predicted_ids": trace.predicted_ids, "meta": trace.meta}
    return Trace(trace.experts, trace.num_experts, token_ids=texts.token_ids, **parts)


def load_counts(name: str, seed: int = 0) -> TokenCounts:
    """Return the shipped token counts of a variant: what vocabulary specialization needs.

    Traces are shipped without token ids. These counts are of the same run and of more text, 32
    held-out sequences of each of eight domains, the first 12 of which are the trace's.

    Parameters
    ----------
    name : str
        A key of `VARIANTS`.
    seed : int
        Seed of the training run.

    Raises
    ------
    LrcError
        If that variant or seed is not shipped.
    """
    return vocabulary.load_token_counts(_shipped_file("counts", name, seed))


def _shipped_file(folder: str, name: str, seed: int) -> Path:
    file = DATA / folder / f"{variant(name).name}-{seed}.parquet"
    if not file.is_file():
        seeds = [run_seed for run_name, run_seed in shipped() if run_name == name]
        raise LrcError(f"toy {name!r} has no shipped {folder} of seed {seed}, only of {seeds}")
    return file


def losses() -> pd.DataFrame:
    """Return the loss curves of every shipped run.

    Returns
    -------
    pandas.DataFrame
        Columns ``model, seed, step, tokens, split, dataset, loss``: nats per token; ``split`` is
        "train" (mean since the last record; no dataset) or "held-out" (by domain).
    """
    return pd.read_parquet(DATA / "losses.parquet")
