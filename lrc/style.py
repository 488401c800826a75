"""The look of the book's figures: one style, and a colour and a marker for whatever is compared.

A model keeps its colour in every figure. Hues are told apart by people who see no red or green
(after Okabe and Ito); within a hue, lightness and marker differ. The published models share a hue
within the paper's four groups of local routing consistency; a toy variant shares it with the one
that turns the same knob the other way.
"""

from dataclasses import dataclass, replace
from numbers import Real

import matplotlib as mpl

INK = "#222222"
QUIET = "#8a8a8a"
FAINT = "#d9d9d9"
UNKNOWN = "#c2185b"

RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, hence the same on every machine
    "font.size": 9.5,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "figure.dpi": 200,  # two pixels for each of a page's, sharp on dense screens
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "lrc",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Style:
    """How one of the compared things is drawn, and what it is called."""

    label: str
    color: str = UNKNOWN
    marker: str = "o"
    dash: str | tuple = "-"


@dataclass(frozen=True)
class Axis:
    """How a column of a table is drawn along an axis."""

    label: str
    log2: bool = False
    limits: tuple[float, float] | None = None
    marks: tuple[float, ...] = ()
    item: str = ""  # one of its numbers, in a legend or above a panel


AXES = {
    "srp": Axis("SRP"),
    "hit_rate": Axis("cache hit rate", limits=(0, 1.02)),
    "sch": Axis("SCH", limits=(0, 1.02)),
    "segment_length": Axis("segment length (tokens)", log2=True, item="{:g} tokens"),
    "cache_ratio": Axis("cache slots / active experts", log2=True, marks=(1, 2, 4), item="{:g}×"),
    "cache_size": Axis("cache size (experts)", item="{:g} experts"),
    "size_ratio": Axis("size ratio"),
    "activation_rate": Axis("activation rate"),
    "steps_and_one": Axis("training steps + 1", log2=True),
    "loss": Axis("loss (nats per token)"),
    "start": Axis("first token of the segment"),
    "distance": Axis("distance (tokens)", log2=True),
    "overlap": Axis("overlap of experts"),
    "excess": Axis("excess over chance"),
    "layer": Axis("MoE layer", item="layer {:g}"),
    "expert": Axis("expert", item="expert {:g}"),
    "dataset": Axis("domain"),
    "domain": Axis("domain specialization"),
    "vocabulary_in": Axis("input-vocabulary specialization"),
    "vocabulary_predicted": Axis("predicted-vocabulary specialization"),
    "vocabulary_next": Axis("next-token specialization"),
    "activation_sd": Axis("standard deviation of activation rates"),
    "share": Axis("share above popularity"),
    "load_cv": Axis("load: coefficient of variation"),
}


def axis(column: str) -> Axis:
    """Return how a column is drawn; an unknown one is labelled with its own name."""
    words = column.replace("_", " ")
    return AXES.get(column) or Axis(words, item=words + " {:g}")


_BLUES = ("#08306b", "#08519c", "#0072b2", "#2b8cbe", "#4eb3d3", "#5a7fd0", "#7fa8e0")
_GREENS = ("#00441b", "#00785a", "#009e73", "#66b98f")
_ORANGES = ("#7f2704", "#b34700", "#d55e00", "#e08214", "#e6a817")
_PURPLES = ("#4a1486", "#7b3294", "#b05aa0", "#cc79a7")
_MARKERS = "osD^vPX"

# key, label, then every other name under which a table or a trace may know the model.
_PUBLISHED = (
    (
        _BLUES,
        ("llamamoe2", "LLaMA-MoE-v2", "LL2", "LLaMA-MoE-v2-3.8B"),
        ("yuan", "Yuan2.0-M32", "Y2"),
        ("powermoe", "PowerMoE", "PW", "PowerMoE-3B"),
        ("qwen3", "Qwen3-30B-A3B", "QW3", "Qwen3"),
        ("phi", "Phi-3.5-MoE", "PH"),
        ("olmoe", "OLMoE", "OL", "OLMoE-1B-7B-0125"),
        ("grin", "GRIN-MoE", "GR", "GRIN"),
    ),
    (
        _GREENS,
        ("mixtral", "Mixtral-8x7B", "MX", "Mixtral-8x7B-v0.1", "Mixtral"),
        ("minicpm", "MiniCPM-MoE", "MC", "MiniCPM-MoE-8x2B"),
        ("jetmoe", "JetMoE", "JT", "JetMoE-8B"),
        ("llamamoe", "LLaMA-MoE-v1", "LL1", "LLaMA-MoE-v1-3.5B"),
    ),
    (
        _ORANGES,
        ("xverse", "XVERSE-MoE", "XV", "XVERSE-MoE-A4.2B"),
        ("jamba", "Jamba-Mini", "JB", "Jamba-Mini-1.6"),
        ("deepseek2", "DeepSeek-V2-Lite", "DS2"),
        ("deepseek", "DeepSeekMoE", "DS1"),
        ("qwen2", "Qwen2-57B-A14B", "QW2", "Qwen2"),
    ),
    (
        _PURPLES,
        ("nllb", "NLLB-MoE", "NL", "NLLB-MoE-54B"),
        ("qwen", "Qwen1.5-MoE", "QW1", "Qwen1.5-MoE-A2.7B"),
        ("openmoe", "OpenMoE-8B", "OP", "OpenMoE"),
        ("switch", "Switch-Base-128", "ST", "SwitchTransformers-Base-128"),
    ),
)

_OTHERS = (
    # real traces of models that the paper did not study
    (Style("gpt-oss-20b", "#6b6b00", "p"), "gpt-oss-20b"),
    (Style("gpt-oss-120b", "#a3a300", "h"), "gpt-oss-120b"),
    (Style("Gemma-4-26B-A4B", "#5d4037", "8"), "gemma-4-26b-a4b", "gemma-4"),
    # the toy family, under its own names and the paper's
    (Style("Baseline", INK, "o"), "baseline", "BL"),
    (Style("FewerExp", "#8c6d1f", "D"), "fewer_experts", "32expert", "FE"),
    (Style("ActMore", "#00785a", "^"), "more_active", "top16", "AM"),
    (Style("ActFewer", "#5fc9a0", "v"), "fewer_active", "top2", "AF"),
    (Style("1ShrExp", "#e69f00", "s"), "one_shared", "share1", "SH1"),
    (Style("2ShrExp", "#b34700", "P"), "two_shared", "share2", "SH2"),
    (Style("DenseFst", "#7b3294", "<"), "dense_first", "skip1", "DF"),
    (Style("DenseHlf", "#cc79a7", ">"), "dense_half", "sparse2", "DH"),
    (Style("NoLB", "#0072b2", "X"), "no_balance", "nolb", "NB"),
    (Style("OverLB", "#56b4e9", "d"), "over_balance", "overlb", "OB"),
    # our experiments past the paper's toys
    (Style("aux 0.001", "#5a7fd0", "<"), "aux_0.001"),
    (Style("aux 0.3", "#7fa8e0", "v"), "aux_0.3"),
    (Style("bias 0.01", "#d55e00", "s"), "bias_0.01"),
    (Style("16 experts", "#6b6b00", "D"), "experts_16"),
    (Style("128 experts", "#a3a300", "h"), "experts_128"),
    (Style("width 48", "#b05aa0", "P"), "double_width"),
    (Style("z-loss 0.03", "#5d4037", "p"), "z_0.03"),
    (Style("Python alone", "#cc79a7", "^"), "one_domain"),
    (Style("mixed topics", "#009e73", "*"), "mixed"),
    # what an expert may specialize in
    (Style("domain", "#0072b2", "o"), "domain"),
    (Style("input token", "#d55e00", "s"), "vocabulary_in"),
    (Style("predicted token", "#009e73", "^"), "vocabulary_predicted"),
    (Style("next token", "#cc79a7", "D"), "vocabulary_next"),
    # where consistency comes from, besides domains
    (Style("popularity", QUIET, "x"), "popularity"),
    (Style("text", "#e69f00", "s"), "text"),
    (Style("order", "#009e73", "^"), "order"),
    (Style("repeats", "#cc79a7", "v"), "repeats"),
    # ways to fill a cache
    (Style("LRU", "#0072b2", "o"), "lru"),
    (Style("LFU", "#e69f00", "s"), "lfu"),
    (Style("Belady", INK, "D", "--"), "belady", "beladi", "opt"),
    (Style("SCH", "#009e73", "^"), "sch", "lookahead", "future_window_cache"),
    (Style("SCH, static", "#cc79a7", "v"), "static", "segment_static_optimal"),
    (Style("chance", QUIET, "x", ":"), "chance"),
    (Style("FIFO", "#56b4e9", "v"), "fifo"),
    (Style("LFU, in cache", "#b34700", "P"), "lfu_cached"),
    (Style("LFU, decaying", "#d55e00", "^"), "lfu_decay"),
    (Style("LFRU", "#7b3294", "<"), "lfru"),
    (Style("router scores", "#4a1486", "*"), "score"),
    (Style("random", "#5d4037", "x"), "random"),
    (Style("SIEVE", "#00785a", "d"), "sieve"),
    (Style("fixed set", "#cc79a7", "X"), "fixed"),
    (Style("fixed half, LRU", "#5a7fd0", "h"), "pinned_lru"),
    # seeds lie close to each other: upright ticks stay apart
    (Style("each seed", "#0072b2", "|"),),
)


def _plain(name: object) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


def _styles() -> dict[str, Style]:
    styles = {}
    for colors, *models in _PUBLISHED:
        for names, color, marker in zip(models, colors, _MARKERS, strict=False):
            styles |= dict.fromkeys(map(_plain, names), Style(names[1], color, marker))
    for entry, *others in _OTHERS:
        styles |= dict.fromkeys(map(_plain, (entry.label, *others)), entry)
    return styles


_STYLES = _styles()


def style(name: object) -> Style:
    """Return the colour, marker and label of a model, a toy variant or a cache policy.

    Keys, abbreviations and full names are understood ("olmoe", "OL", "OLMoE-1B-7B-0125"), with
    "encoder" or "decoder" behind them, too: an encoder is drawn with a dashed line. Anything else
    keeps its own name and has the colour that no known model has.
    """
    text = str(name)
    for part in ("encoder", "decoder"):
        if text.lower().rstrip(")").endswith(part):
            whole = _STYLES.get(_plain(text)[: -len(part)])
            dash = (0, (4, 1.5)) if part == "encoder" else "-"
            return (
                replace(whole, label=f"{whole.label} {part}", dash=dash) if whole else Style(text)
            )
    return _STYLES.get(_plain(text)) or Style(text)


def styles(names: list, column: str | None = None) -> dict[object, Style]:
    """Return a style for each of the things in a column that one figure compares.

    Numbers (segment lengths, layers, seeds) run from light to dark; several unknown names get
    colours of their own, in order.
    """
    if names and all(isinstance(name, Real) for name in names):
        ramp = mpl.colormaps["viridis_r"]
        item = axis(column).item if column else ""
        order = {name: place for place, name in enumerate(sorted(names))}
        return {
            name: Style(
                (item or "{:g}").format(name),
                mpl.colors.to_hex(ramp(0.28 + 0.72 * order[name] / max(len(names) - 1, 1))),
                _MARKERS[order[name] % len(_MARKERS)],
            )
            for name in names
        }
    found = {name: style(name) for name in names}
    unknown = [name for name in names if found[name].color == UNKNOWN]
    spare = [UNKNOWN, *_BLUES[2:3], *_ORANGES[3:4], *_GREENS[2:3], *_PURPLES[:1], *_ORANGES[:1]]
    spare += [*_BLUES[4:5], INK, *_GREENS[3:], *_PURPLES[2:3]]  # eight domains, and something else
    for place, name in enumerate(unknown):
        found[name] = replace(
            found[name],
            color=spare[place % len(spare)],
            marker=_MARKERS[place % len(_MARKERS)],
        )
    return found
