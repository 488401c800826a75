"""What a user asks in the notebook that sizes a cache; its own cells, run without a kernel."""

import json
from pathlib import Path

import nbformat
import pytest

import lrc
from lrc.params import ParameterError

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "17_size_a_cache.ipynb"


@pytest.fixture(scope="module")
def cells():
    """Sources of the cells that import, declare parameters and check them."""
    code = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    return [cell.source for cell in code[:3]]


def check(cells, **given):
    """Run the cells as papermill does, with these parameters; return the question."""
    namespace = {"__name__": "__main__"}
    imports, parameters, checks = cells
    exec(imports, namespace)
    exec(parameters, namespace)
    namespace.update(given)
    exec(checks, namespace)
    return namespace["question"]


QWEN3 = {"model": "qwen3", "memory_gb": 8.0}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"memory_gb": 0.0001}, "memory_gb is 0.0001, but the 8 experts .* take 0.000221 GB"),
        ({"memory_gb": -1.0}, "memory_gb is -1.0, but must be gigabytes for experts, more than 0"),
        ({"memory_gb": 0.0}, "memory_gb is 0.0"),
        ({"memory_gb": float("nan")}, "memory_gb is nan"),
        ({"memory_gb": float("inf")}, "memory_gb is inf"),
        ({"memory_gb": 9.0}, "take 0.00708 GB: no cache is needed"),
        ({"memory_gb": "much"}, "memory_gb must be float, not 'much'"),
        (QWEN3 | {"memory_gb": 99.0}, "all experts of the model take 58 GB: no cache is needed"),
        (QWEN3 | {"memory_gb": 0.01}, "memory_gb is 0.01, but the 8 experts"),
        ({"bandwidth_gb": 0.0}, "bandwidth_gb is 0.0, but must be gigabytes a second, more than 0"),
        ({"bandwidth_gb": -2.0}, "bandwidth_gb is -2.0"),
        ({"bandwidth_gb": float("nan")}, "bandwidth_gb is nan"),
        ({"latency_ms": -1.0}, "latency_ms is -1.0, but must be milliseconds, 0 or more"),
        ({"compute_ms": float("nan")}, "compute_ms is nan"),
        ({"overlap": 1.5}, "overlap is 1.5, but must be a share from 0 to 1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"uncertainty": 1.0}, "uncertainty is 1.0, but must be a share from 0 to 0.99"),
        ({"model": "gpt5"}, "model: no published curves of 'gpt5'"),
        ({"model": "nllb"}, "model: .* say which stack"),
        ({"model": "qwen3", "trace": "toy:baseline"}, "give one of the two, not both"),
        ({"trace": "toy:nobody"}, "trace: no toy model named 'nobody'"),
        ({"trace": "public:nobody"}, "trace: there is no"),
        ({"trace": "nowhere.parquet"}, "trace: there is no file"),
        ({"expert_bytes": -5}, "expert_bytes: is -5"),
        ({"expert_bytes": "nowhere/config.json"}, "expert_bytes: "),
        (
            {"trace": "toy:fewer_experts", "expert_bytes": "toy:baseline"},
            "toy:baseline has 4 layers of 64 experts, but the trace or model has 4 of 32",
        ),
        ({"expert_bytes": "toy:baseline", "bits": -4.0}, "expert_bytes: bits is -4.0"),
        (QWEN3 | {"batch_size": 4}, "serves token by token; give a trace"),
        ({"batch_size": 97}, "batch_size is 97, but must be from 1 to 96 here"),
        ({"draft_tokens": 0}, "draft_tokens is 0"),
        ({"draft_tokens": 600}, "draft_tokens is 600, but must be from 1 to 512 here"),
        ({"bootstrap": -1}, "bootstrap must be at least 0"),
        ({"out": "no/such/folder/x.json"}, "out: there is no folder"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_answered_ends_in_one_sentence(cells, given, says):
    with pytest.raises(ParameterError, match=says) as caught:
        check(cells, **given)
    assert "\n" not in str(caught.value)


def test_as_it_stands(cells):
    asked = check(cells)
    assert asked.name == "toy:baseline"
    assert asked.expert_bytes == [27648] * 4
    assert asked.budget_bytes == 3_000_000
    assert asked.device.spread == (0.8, 1.2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"expert_bytes": 30_000}, 30_000),
        ({"expert_bytes": "30000"}, 30_000),
        ({"expert_bytes": "toy:baseline"}, 27_648),
        ({"expert_bytes": "toy:baseline", "bits": 8.0, "memory_gb": 0.001}, 6_912),
        (QWEN3, 9_437_500),
        (QWEN3 | {"bits": 4.0}, 2_359_375),
        (QWEN3 | {"expert_bytes": 2_654_208}, 2_654_208),
    ],
)
def test_where_the_bytes_of_an_expert_come_from(cells, given, expected):
    assert check(cells, **given).expert_bytes[0] == expected


def test_a_trace_without_bytes_asks_for_them(cells, tmp_path):
    toy = lrc.toys.load_trace("baseline").select([0])
    bare = lrc.Trace(toy.experts, toy.num_experts, lengths=toy.lengths)
    bare.save(tmp_path / "bare.parquet")
    path = str(tmp_path / "bare.parquet")
    with pytest.raises(ParameterError, match="does not say how many bytes"):
        check(cells, trace=path)
    assert check(cells, trace=path, expert_bytes=27648).answer(bootstrap=0).slots == 108


def test_a_log_of_an_engine_is_a_trace(cells, shared):
    log = shared / "traces" / "phone" / "gptoss.route.csv"
    asked = check(cells, trace=str(log), memory_gb=3.0)
    assert asked.expert_bytes == [13_219_200] * 36
    assert asked.source.meta["prompt_tokens"] == [85]


def test_a_file_that_is_no_trace(cells, tmp_path):
    (tmp_path / "x.txt").write_text("hello\n")
    with pytest.raises(ParameterError, match="trace: "):
        check(cells, trace=str(tmp_path / "x.txt"))


def test_the_answer_is_written_beside_the_run(cells, tmp_path):
    asked = check(cells, model="mixtral", memory_gb=40.0, out=str(tmp_path / "answer.json"))
    asked.answer().save(tmp_path / "answer.json")
    assert json.loads((tmp_path / "answer.json").read_text())["source"] == asked.name
