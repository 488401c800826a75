"""What every notebook of the book does first, and how its numbers reach the prose."""

import os
import random
import re
import sys
import warnings
from typing import Any


def setup_notebook(seed: int = 0) -> None:
    """Make a notebook quiet and repeatable; call it once, in the first cell.

    Progress bars of Hugging Face libraries, which a web page shows as dead widgets, are switched
    off, and so are their log messages below errors; tables show 4 decimals; `random`, NumPy's
    global generator and, if it is loaded, torch start from `seed`. Charts need no set-up:
    `lrc.charts` draws in its own style.

    Parameters
    ----------
    seed
        Start of the random number generators.
    """
    import numpy as np
    import pandas as pd

    # Read when the libraries are imported; those that are loaded already are told below.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    if "transformers" in sys.modules:
        sys.modules["transformers"].logging.disable_progress_bar()
        sys.modules["transformers"].logging.set_verbosity_error()
    # They advise of settings that a reader cannot act upon, on stderr, in the middle of a page.
    for library in ("transformers", "datasets", "huggingface_hub", "torch", "tqdm"):
        warnings.filterwarnings("ignore", module=library)

    # As in charts: more digits would be no news to a reader, and differ between machines.
    pd.options.display.precision = 4

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that draw from the global generator
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def glue(**values: Any) -> None:
    """Keep values of a notebook under a name, for the prose of this and other pages.

    Numbers are rounded to 4 decimals, as in charts. The book's prose names them with the role
    ``{glue:text}`NAME``` on the same page, ``{glue:text}`PAGE::NAME:.2f``` on another. In the
    notebook itself they leave no visible output; nbval compares them all the same.

    Parameters
    ----------
    **values
        Names, and the numbers or texts to keep.
    """
    from IPython.display import display

    for name, value in values.items():
        text = repr(value if isinstance(value, str) else _rounded(value))
        # The output that scrapbook and myst-nb agreed upon; written here so that running a
        # notebook needs neither of them.
        prefix = "application/papermill.record/"
        metadata = {"scrapbook": {"name": name, "mime_prefix": prefix}}
        display({f"{prefix}text/plain": text}, raw=True, metadata=metadata)


def glue_table(table, *keys: str, prefix: str = "") -> None:
    """Keep every number of a table under a name, as `glue` does.

    Parameters
    ----------
    table : DataFrame
    *keys
        Columns that tell rows apart. A number's name is its row's keys and its column, joined by
        underscores, which also stand for whatever is no letter or digit.
    prefix
        What names begin with. Empty cells are left out.

    Examples
    --------
    >>> table = pd.DataFrame({"model": ["a", "b"], "size ratio": [1.5, 2.0]})
    >>> lrc.glue_table(table, "model", prefix="toy_")  # toy_a_size_ratio, toy_b_size_ratio
    """
    for row in table.to_dict("records"):
        place = [str(row.pop(key)) for key in keys]
        for column, value in row.items():
            if value == value:
                glue(**{re.sub(r"\W+", "_", prefix + "_".join([*place, column])): value})


def prose_table(table):
    """Show a table whose cells hold sentences or links: whole, and set as text.

    Parameters
    ----------
    table : DataFrame
        Cells are written as they are, in Markdown. The cell of the notebook says how to read it,
        with ``{"mystnb": {"markdown_format": "myst"}}`` in its metadata.

    Returns
    -------
    IPython.display.Markdown
    """
    from IPython.display import Markdown

    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += table.astype(object).where(table.notna(), "").astype(str).to_numpy().tolist()
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return Markdown("\n".join(lines))


def _rounded(value: Any) -> Any:
    if isinstance(value, bool | int):
        return value
    number = float(value)
    return int(number) if hasattr(value, "dtype") and value.dtype.kind in "iu" else round(number, 4)
