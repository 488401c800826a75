"""Traces on a GPU: what a machine without one can check.

The kernels run in Triton's interpreter, in a process of its own (`gpu_interpreted.py`), since the
choice is made when Triton is imported.
"""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from strategies import traces

import lrc
from lrc import kernels
from lrc.trace import concat_traces

torch = pytest.importorskip("torch")


@given(trace=traces(max_sequences=2, max_tokens=4))
def test_a_trace_on_the_cpu_stays_the_same_object(trace):
    assert trace.device == "cpu"
    assert trace.to("cpu") is trace


@pytest.mark.parametrize(
    ("device", "cure"),
    [
        ("cuda:99", "'cpu'|the CPU needs no .to()"),
        ("tpu", "'cpu', 'cuda' or 'cuda:0'"),
        ("meta", "choose 'cpu' or 'cuda'"),
        ("interpreter", "TRITON_INTERPRET=1"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_with_a_cure(device, cure, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    trace = lrc.Trace([[[[0, 2]], [[1, 2]]]], num_experts=4)
    with pytest.raises(lrc.LrcError, match=cure):
        trace.to(device)


@given(trace=traces(max_sequences=4, max_tokens=4))
def test_all_that_needs_the_host_brings_a_trace_home(trace, tmp_path_factory):
    # No kernel is needed for these, so that any tensor stands for one on a GPU.
    there = on_torch(trace)
    assert there.device == "interpreter"
    assert re.search(r" on interpreter>$", repr(there))
    assert there.equals(trace)
    assert trace.equals(there)
    assert there.to("cpu").equals(trace)
    assert there.to("cpu").experts.dtype == np.int16
    assert pickle.loads(pickle.dumps(there)).device == "cpu"
    assert concat_traces([there, there]).equals(concat_traces([trace, trace]))
    assert there.shape == trace.shape
    assert np.array_equal(there.valid, trace.valid)
    part = there.select(slice(1, None), layers=[0])
    assert part.device == "interpreter"
    assert part.equals(trace.select(slice(1, None), layers=[0]))
    path = tmp_path_factory.mktemp("trace") / "trace.parquet"
    there.save(path)
    assert lrc.load_trace(path).equals(trace)


def test_a_measure_without_a_kernel_says_so():
    there = on_torch(lrc.Trace([[[[0, 2]], [[1, 2]]]], num_experts=4))
    for measure in (lrc.balance, lrc.shuffle):
        with pytest.raises(lrc.LrcError, match=re.escape("trace.to('cpu')")):
            measure(there)


def on_torch(trace):
    """The trace with its experts as a torch tensor."""
    parts = {name: getattr(trace, name) for name in trace.__slots__}
    experts = torch.from_numpy(np.array(parts.pop("experts")))
    return lrc.Trace._adopt(experts, parts.pop("num_experts"), **parts)


def test_the_kernels_in_the_interpreter_give_the_integers_of_the_cpu():
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "--no-header", here / "gpu_interpreted.py"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=here.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


def test_the_benchmark_runs_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    done = benchmark("--small")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "integers agree" in done.stdout
    for measure in ("srp, expert", "sch, model", "hit_rates, layer"):
        assert measure in done.stdout


def test_the_book_has_the_estimate_as_the_benchmark_counts_it():
    page = (Path(__file__).parent.parent / "book" / "gpu.md").read_text("utf-8")
    assert benchmark("--estimate").stdout in page


def benchmark(option):
    script = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    return subprocess.run([sys.executable, script, option], capture_output=True, encoding="utf-8")


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("compute_capability", [80, 90])
def test_every_kernel_compiles_for_a_gpu(compute_capability, monkeypatch):
    """To machine code, with the arguments of real launches: no GPU is needed for that."""
    triton = pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 is set, which turns the compiler off")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime import JITFunction

    compiled = set()

    def compile_only(kernel, *args, grid, warmup, **named):
        names = [parameter.name for parameter in kernel.params]
        values = dict(zip(names, args, strict=False)) | named
        constant = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
        types = {name: type_of(values[name]) for name in names if name not in constant}
        program = triton.compile(
            ASTSource(kernel, types | dict.fromkeys(constant, "constexpr"), constant),
            target=GPUTarget("cuda", compute_capability, 32),
            options={name: value for name, value in named.items() if name not in names},
        )
        assert program.asm["cubin"]
        compiled.add(kernel.__name__)

    monkeypatch.setattr(JITFunction, "run", compile_only)
    rng = np.random.default_rng(0)
    trace = lrc.Trace(rng.random((2, 5, 3, 128)).argsort(axis=-1)[..., :8], 128)
    there, lengths, sequences = on_torch(trace).experts, trace.lengths, np.arange(2)
    # Nothing is counted, so nothing is compared.
    kernels.count_windows(there, lengths, sequences, 2, np.arange(3), np.arange(128), (2, 4))
    kernels.count_windows_by_position(there, lengths, sequences, 2, np.arange(3), 128, 2)
    for policy in (kernels.LRU, kernels.LFU, kernels.BELADY, kernels.LOOKAHEAD, kernels.STATIC):
        for shared in (False, True):
            kernels.count_new_hits(policy, 4, there, lengths, sequences, 128, shared)
    windows = {"_count_windows", "_count_changes"}
    assert compiled == windows | {"lru", "static", "find_next_uses", "priority"}


def type_of(value):
    """Type of a kernel's argument, as Triton writes it."""
    if isinstance(value, torch.Tensor):
        return {torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64"}[value.dtype]
    return "i32" if abs(value) < 2**31 else "i64"
