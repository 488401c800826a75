"""Every quantitative claim of the paper, and what became of it here.

The statements, in our own words, and where this book looks at them are in ``data/claims.csv``; what
the published figures say of a claim is computed (`lrc.claim_checks`).
"""

from pathlib import Path

import pandas as pd

from lrc.claim_checks import CHECKS

__all__ = ["VERDICTS", "claims", "linked"]

_CLAIMS = Path(__file__).parent / "data" / "claims.csv"

VERDICTS = ("yes", "partly", "no", "not tested", "–")
"""What can become of a claim; a dash: it is not the kind of claim that the column is about."""


def claims() -> pd.DataFrame:
    """Every claim with its verdicts and the numbers behind that on published figures.

    Returns
    -------
    DataFrame
        claim (number), statement (in our own words), published (does it follow from the published
        figures?), numbers (that say so, computed from `lrc.published`), toys, real (does it hold in
        our toys, in public traces of real models?), beyond_chance (does it hold after chance
        correction?) and where (names of figures and pages of the book, the most telling first).
        Verdicts are those of `VERDICTS`.
    """
    table = pd.read_csv(_CLAIMS, keep_default_na=False)
    found = [CHECKS[number]() for number in table["claim"]]
    table.insert(2, "published", [verdict for verdict, _ in found])
    table.insert(3, "numbers", [numbers for _, numbers in found])
    table["where"] = table["where"].str.split()
    return table


def linked(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as prose: narrow enough for a page, with links of the book.

    Parameters
    ----------
    table : DataFrame
        What `claims` returns, or rows of it.

    Returns
    -------
    DataFrame
        no. (number), claim (statement, and where to look), published (verdict and numbers), toys,
        real and chance, in MyST Markdown.
    """
    where = [", ".join(map(_link, targets)) for targets in table["where"]]
    claim = [
        f"{statement} ({links})" if links else statement
        for statement, links in zip(table["statement"], where, strict=True)
    ]
    published = "**" + table["published"] + "**: " + table["numbers"]
    columns = {"no.": table["claim"], "claim": claim, "published": published}
    verdicts = {"toys": table["toys"], "real": table["real"], "chance": table["beyond_chance"]}
    return pd.DataFrame(columns | verdicts)


def _link(target):
    return f"{{numref}}`{target}`" if target.startswith("fig-") else f"[page]({target})"
