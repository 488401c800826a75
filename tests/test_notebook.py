"""What every notebook does first, and the values that it keeps for the prose."""

import subprocess
import sys

import numpy as np
import pytest

from lrc.notebook import _rounded


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (0.123456, "0.1235"),
        (np.float64(0.99996), "1.0"),
        (7, "7"),
        (np.int64(7), "7"),
        (True, "True"),
    ],
)
def test_glued_numbers_are_rounded(value, kept):
    assert repr(_rounded(value)) == kept


def test_glue_writes_what_myst_nb_reads(monkeypatch):
    from myst_nb.ext.glue import extract_glue_data
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    import lrc

    outputs = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda data, raw, metadata: outputs.append(
            new_output("display_data", data=data, metadata=metadata)
        ),
    )
    lrc.glue(srp=np.float32(0.5), name="OLMoE")
    found = extract_glue_data(new_notebook(cells=[new_code_cell(outputs=outputs)]), [1], None)
    assert {name: value["data"]["text/plain"] for name, value in found.items()} == {
        "srp": "0.5",
        "name": "'OLMoE'",
    }


def test_glued_tables_name_every_number(monkeypatch):
    import pandas as pd

    from lrc import notebook

    kept = {}
    monkeypatch.setattr(notebook, "glue", lambda **values: kept.update(values))
    table = pd.DataFrame({"measure": ["input token", "domain"], "size ratio": [1.5, None], "n": 3})
    notebook.glue_table(table, "measure", prefix="toy_")
    assert kept == {"toy_input_token_size_ratio": 1.5, "toy_input_token_n": 3, "toy_domain_n": 3}


@pytest.mark.parametrize("first", ["import lrc", "import lrc, transformers, datasets, torch"])
def test_setup_silences_progress_bars_and_seeds(first):
    script = f"""
{first}
lrc.setup_notebook(seed=3)
import random, numpy, torch, transformers, datasets
from huggingface_hub.utils import are_progress_bars_disabled
assert are_progress_bars_disabled()
assert not transformers.logging.is_progress_bar_enabled()
assert datasets.are_progress_bars_disabled()
print(random.random(), numpy.random.rand())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    random_state = np.random.RandomState(3)
    assert float(run.stdout.split()[1]) == random_state.rand()
