"""What the trace doctor says: a finding, and the words for its evidence."""

from dataclasses import dataclass

from lrc.trace import Trace


@dataclass(frozen=True)
class Finding:
    """One line of `lrc.examine`.

    Attributes
    ----------
    code : str
        As in the table of `lrc.examine`.
    severity : {"warning", "note"}
    where : str
        Sequences, layers, slots or datasets.
    evidence : str
    """

    code: str
    severity: str
    where: str
    evidence: str


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.1f} %"


def some(values, most: int = 8, joint: str = ", ") -> str:
    """The first few of a list, and how many there are."""
    values = [str(value) for value in values]
    if len(values) <= most:
        return joint.join(values)
    return joint.join([*values[:most], f"… ({len(values):,} in all)"])


def these(noun: str, values) -> str:
    """The first few of a list, and what they are."""
    return f"{noun}{'' if len(values) == 1 else 's'} {some(values)}"


def layers_named(trace: Trace, layers) -> str:
    """The first few of some layers by name."""
    return these("layer", [trace.layer_names[layer] for layer in layers])
