"""Carry the transcribed tables of the paper into ``lrc/data/published``.

Developers run it once a table changes: ``python tests/carry_published.py FOLDER_OF_CSV_FILES``.
Every CSV file of the folder becomes one Parquet file that says in its schema where its numbers come
from (``source``), which state of the paper they belong to (``vintages``) and what to mind
(``about``). ``tests/test_published.py`` checks that the two agree cell by cell.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).resolve().parent.parent / "lrc" / "data" / "published"

# name: (source, vintages of tables that have no `vintage` column, what to mind)
TABLES: dict[str, tuple[str, list[str], str]] = {
    "models": (
        "model/config.jsonl, model/README.md and model/<key>/config.json @7b3ca46; "
        "paper v4 Table 5 (params_active_b, paper_shared_experts)",
        ["HEAD"],
        "One row per model: 20 main ones and 7 post-trained. layers counts encoder plus decoder. "
        "Column derivation says how moe_layers and shared_experts were read from the config.",
    ),
    "datasets": (
        "data/config.jsonl and data/README.md @7b3ca46",
        ["HEAD"],
        "The 11 domains: 2,048 inputs of 512 tokens each.",
    ),
    "srp_model": (
        "src/35_srp_spec.ipynb @802dbf5 cells 3 and 8 (v1.0); src/33_srp_plot.ipynb @67eaaf6 "
        "(pre-1.0)",
        [],
        "SRP per model and segment length. v1.0 stands for the published paper too (SRP did not "
        "change); its intervals exist for m = 16 only. pre-1.0 is an older corpus of 7 domains.",
    ),
    "srp_model_dataset": (
        "src/34_srp_domain.ipynb @802dbf5 cells 4 and 5",
        [],
        "SRP at m = 16 per model and domain; rel_diff is relative to the model's pooled SRP.",
    ),
    "sch_model": (
        "plot/msch.pdf @7b3ca46 (HEAD) and @802dbf5 (v1.0), read from the vector curves",
        [],
        "SCH against rho = cache slots / active experts, one cache shared by all layers. The two "
        "vintages follow DIFFERENT definitions (look-ahead cache, best static set). Reading error: "
        "mean 0.0002 to 0.0005, worst 0.002.",
    ),
    "sch_rho2_ci": (
        "paper v4 Table 8 (HEAD), v2 Table 8 (v1.0), src/43_sch_plot.ipynb @67eaaf6 (pre-1.0)",
        [],
        "95 % intervals of SCH at rho = 2; the definition differs between vintages.",
    ),
    "chr_model": (
        "src/54_chr_plot.ipynb @802dbf5 cell 14 (v1.0, exact); plot/mchr.pdf @7b3ca46 (HEAD, read "
        "from the vector curves)",
        [],
        "Hit rates of cache policies against rho. The replay rules differ between vintages. "
        "Reading error at HEAD: mean 0.0006, worst 0.005.",
    ),
    "chr_rho2_ci": (
        "src/54_chr_plot.ipynb @802dbf5 cells 4 and 5",
        [],
        "Hit rates at rho = 2 with 95 % intervals, older replay rules.",
    ),
    "correlations": (
        "notebooks and tables named row by row in column source",
        [],
        "Published correlations; column level says over what they run.",
    ),
    "specialization": (
        "src/35_srp_spec.ipynb @802dbf5 cells 9 and 10",
        ["v1.0"],
        "Mean specialization per model and its correlation with expert SRP at m = 16. Vocabulary "
        "was not published for Switch and NLLB.",
    ),
    "experts": (
        "src/35_srp_spec.ipynb @802dbf5 cells 12, 13 and 15; plot/esrp.pdf @7b3ca46",
        ["v1.0"],
        "Every expert of the 20 models. Layers counted from 1, experts from 0. act_freq was read "
        "from the figure (relative error about 1e-4). Empty: not defined or not published.",
    ),
    "layer": (
        "plot/lsrp.pdf and plot/lsch.pdf @7b3ca46; plot/lsch.pdf @802dbf5",
        ["v1.0", "HEAD"],
        "SRP and SCH per layer (counted from 1); sch_head_* and sch_v10_* follow different "
        "definitions. A layer has its own cache here, so values are lower than those of a cache "
        "shared by all layers. Reading error 0.001, dotted lines (rho = 2) up to 0.01.",
    ),
    "load_balance": (
        "paper Table 2; plot/msrpsd.pdf @802dbf5; src/33_srp_plot.ipynb @67eaaf6; plot/msrpls.pdf "
        "and plot/toy_msrpls.pdf @7b3ca46",
        ["pre-1.0", "v1.0", "HEAD"],
        "SRP at m = 16 against the standard deviation of expert activation frequency; the columns "
        "name their vintage. log_ppl in nats per token, each model with its own tokenizer. "
        "act_freq_sd_table of llamamoe2 is the m = 64 value.",
    ),
    "posttrain": (
        "src/B0_post.ipynb @802dbf5 cells 3 and 4",
        ["v1.0"],
        "SRP of base and post-trained models. The paper's table labels the rows in another order.",
    ),
    "position": (
        "src/C3_srp_pos_plot.ipynb @802dbf5 cell 8",
        ["v1.0"],
        "SRP by start position of the segment (from 0), thinned to at most 29 positions.",
    ),
    "position_std": (
        "src/C3_srp_pos_plot.ipynb @802dbf5 cells 4 and 5",
        ["v1.0"],
        "Standard deviation of SRP over all start positions.",
    ),
    "domain_corr": (
        "src/34_srp_domain.ipynb @802dbf5 cells 9 and 11",
        ["v1.0"],
        "Correlation over experts between two domains, of activation frequency and of SRP at "
        "m = 16. Switch and NLLB mix encoder and decoder.",
    ),
    "case_best_layer": (
        "src/A3_cases_plot.ipynb @802dbf5 cell 2",
        ["v1.0"],
        "Layer (from 0) with the highest SRP at m = 16 on one input.",
    ),
    "case_grin_layer21_github": (
        "src/A3_cases_plot.ipynb @802dbf5 cell 7",
        ["v1.0"],
        "First 64 tokens of one input: 1 where the expert is active. Layer counted from 0.",
    ),
    "case_jamba_layer25_github": (
        "src/A3_cases_plot.ipynb @802dbf5 cell 8",
        ["v1.0"],
        "The same input in Jamba, shifted by its begin token. Layer counted from 0.",
    ),
    "toy_models": (
        "toy_model/config.jsonl, hf configurations and train/run.sh @7b3ca46",
        ["HEAD"],
        "The paper's ten TOY models and what each changes.",
    ),
    "toy_srp": (
        "plot/toy_msrpls.pdf and plot/toy_msrpp.pdf @7b3ca46; paper Table 2 (act_freq_sd)",
        ["HEAD"],
        "srp16 within 0.0001; srp*_position_mean approximates SRP (within 0.001).",
    ),
    "toy_sch": (
        "plot/toy_msch.pdf @7b3ca46",
        ["HEAD"],
        "Look-ahead SCH within 0.002.",
    ),
    "toy_chr": (
        "src/D3_tp_plot.ipynb @7b3ca46 cell 7; paper Table 4",
        ["HEAD"],
        "LRU exact; LFU and Belady of the Baseline derived from Table 4 (within 0.0002).",
    ),
    "toy_specialization": (
        "plot/toy_msrpsc.pdf @7b3ca46",
        ["HEAD"],
        "Correlations within 0.0001; means decoded from marker sizes (within 0.003).",
    ),
    "toy_domain": (
        "plot/toy_msrpdd.pdf @7b3ca46",
        ["HEAD"],
        "SRP at m = 16 by domain, bars within 0.0005.",
    ),
    "toy_position": (
        "plot/toy_msrpp.pdf @7b3ca46",
        ["HEAD"],
        "SRP by start position within 0.001; ActMore, ActFewer and OverLB are missing.",
    ),
    "toy_throughput": (
        "src/D3_tp_plot.ipynb @7b3ca46 cell 4",
        ["HEAD"],
        "Tokens per second; cache_ratio inf = whole model on the accelerator; mode old_doc = "
        "teacher-forced, new_gen = generated.",
    ),
}


def read_csv(path: Path) -> pd.DataFrame:
    """Read one transcribed table; only an empty cell is missing."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def carry(folder: Path) -> None:
    """Write every table of ``TABLES`` that lies in `folder`."""
    for name, (source, vintages, about) in TABLES.items():
        frame = read_csv(folder / f"{name}.csv")
        if "vintage" in frame:
            vintages = list(frame["vintage"].unique())
        note = {"about": about, "source": f"github.com/ljcleo/moe-lrc: {source}"}
        note["paper"] = "Not All Models Suit Expert Offloading, arXiv 2505.16056 (ICLR 2026)"
        schema = pa.Schema.from_pandas(frame, preserve_index=False).remove_metadata()
        table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False, nthreads=1)
        table = table.replace_schema_metadata({"lrc": json.dumps({**note, "vintages": vintages})})
        temporary = DATA / f".{name}.parquet.tmp"
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=22,
            use_dictionary=False,
            write_statistics=False,
        )
        os.replace(temporary, DATA / f"{name}.parquet")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    DATA.mkdir(parents=True, exist_ok=True)
    carry(Path(sys.argv[1]))
