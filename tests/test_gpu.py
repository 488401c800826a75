"""Traces on a GPU: what a machine without one can check.

The kernels run in Triton's interpreter, in a process of its own (`gpu_interpreted.py`), since the
choice is made when Triton is imported.
"""

import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from strategies import traces

import lrc
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
