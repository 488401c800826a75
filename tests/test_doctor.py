"""The trace doctor: each finding in a trace that has it, none in one that just has not."""

import doctest
import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from strategies import traces

import lrc
from lrc import Trace, examine, load_routes
from lrc.doctor import records, texts
from lrc.doctor.census import Census
from lrc.kernels.cpu_census import LONGEST_LAG, overlaps

EXPERTS = 16


def natural(lengths=(512,) * 8, layers=4, top_k=2, seed=0, num_experts=EXPERTS, stay=0.5):
    """Routing as of real text: a token keeps the experts of the one before, or draws new ones."""
    rng = np.random.default_rng(seed)
    width = max(lengths)
    shape = (len(lengths), width, layers, num_experts)
    experts = rng.random(shape).argsort(axis=-1)[..., :top_k]
    for t in range(1, width):
        same = rng.random(shape[:1] + shape[2:3]) < stay
        experts[:, t][same] = experts[:, t - 1][same]
    return experts


def trace_of(experts, lengths=None, num_experts=EXPERTS, **parts):
    return Trace(experts, num_experts, lengths=lengths, **parts)


def line(trace, code, **options):
    """The only finding, which must be of that code."""
    findings = examine(trace, **options)
    assert findings.codes == [code], findings
    assert "\n" not in findings.table.loc[0, "evidence"]
    return next(iter(findings))


def healthy(trace, **options):
    findings = examine(trace, **options)
    assert not len(findings), findings
    return True


def test_nothing_is_said_plainly():
    trace = trace_of(natural(), datasets=["a", "b"] * 4)
    findings = examine(trace)
    assert repr(findings) == f"no findings in {trace!r}"
    assert findings.table.columns.tolist() == ["code", "severity", "where", "evidence"]
    assert findings.table.empty


def test_a_trace_without_tokens():
    found = line(trace_of(np.empty((3, 0, 2, 2), int)), "no_tokens")
    assert found.where == "3 sequences"


class TestIdentical:
    def test_sequences_given_twice(self):
        experts = natural()
        experts[[3, 6]] = experts[1]
        experts[7] = experts[0]
        found = line(trace_of(experts), "identical")
        assert found.where == "sequences 0 = 7, 1 = 3 = 6"
        assert "3 of 8 sequences repeat another" in found.evidence
        # The order of slots is no difference.
        line(trace_of(np.concatenate([natural(), natural()[:1, ..., ::-1]])), "identical")

    def test_one_expert_makes_a_difference(self):
        experts = natural()
        experts[3] = experts[1]
        experts[3, 40, 0] = (experts[1, 40, 0] + 1) % EXPERTS
        assert examine(trace_of(experts)).codes == ["shared_prefix"]
        experts[3, 40, 0] = experts[1, 40, 0]
        lengths = [512] * 8
        lengths[3] = 511
        assert examine(trace_of(experts, lengths)).codes == ["shared_prefix"]

    def test_short_ones_may_be_alike(self):
        experts = natural()
        experts[3] = experts[1]
        lengths = np.array([512, 15, 512, 15, 512, 512, 512, 512])
        assert healthy(trace_of(experts, lengths), segment_lengths=8)
        lengths[[1, 3]] = 16
        line(trace_of(experts, lengths), "identical", segment_lengths=8)

    def test_swapped_layers_and_tokens_differ(self):
        experts = natural()
        experts[1] = experts[0][:, ::-1]
        experts[2] = experts[0][::-1]
        assert healthy(trace_of(experts))


class TestSharedPrefix:
    def test_a_system_prompt(self):
        experts = natural()
        experts[[2, 5, 6], :40] = experts[1, :40]
        found = line(trace_of(experts), "shared_prefix")
        assert found.where == "sequences 1 = 2 = 5 = 6"
        assert "4 of 8 sequences begin like another for 40 to 40 tokens; 2.9 %" in found.evidence
        assert found.severity == "warning"

    def test_31_tokens_are_none(self):
        experts = natural()
        experts[2, :31] = experts[1, :31]
        experts[2, 31] = (experts[1, 31] + 1) % EXPERTS
        assert healthy(trace_of(experts))
        experts[2, :32] = experts[1, :32]
        experts[2, 32] = (experts[1, 32] + 1) % EXPERTS
        assert line(trace_of(experts), "shared_prefix").severity == "note"  # 0.8 % of all tokens


class TestLoop:
    @pytest.mark.parametrize("period", [1, 3, 31, 64])
    def test_generated_text_that_repeats(self, period):
        rng = np.random.default_rng(1)
        tokens = rng.integers(0, 1000, (8, 512))
        run = max(64, 2 * period)
        for t in range(100, 100 + run):
            tokens[5, t] = tokens[5, t - period]
        tokens[5, 100 + run] = 1001
        found = line(trace_of(natural(), token_ids=tokens), "loop")
        assert found.where == "sequence 5"
        assert f"{run} of 512 tokens with period {period}" in found.evidence
        tokens[5, 100] = 1002  # one fewer
        assert healthy(trace_of(natural(), token_ids=tokens))

    def test_unknown_tokens_do_not_repeat(self):
        tokens = np.full((8, 512), -1)
        tokens[:, :200] = np.random.default_rng(1).integers(0, 1000, (8, 200))
        assert healthy(trace_of(natural(), token_ids=tokens))

    def test_routing_tells_where_tokens_are_not_known(self):
        experts = natural()
        for t in range(100, 200):
            experts[2, t] = experts[2, t - 7][..., ::-1]
        found = line(trace_of(experts), "loop")
        assert "routing repeat" in found.evidence
        assert "100 of 512 tokens with period 7" in found.evidence

    def test_few_layers_may_stay_as_they_are(self):
        experts = natural(layers=3)
        experts[2, 100:200] = experts[2, 100]
        assert healthy(trace_of(experts))
        experts = natural(layers=4)
        experts[2, 100:200] = experts[2, 100]
        line(trace_of(experts), "loop")

    def test_a_run_does_not_cross_texts(self):
        tokens = np.random.default_rng(1).integers(0, 1000, (8, 512))
        tokens[2, -40:] = tokens[3, :40] = 7
        assert healthy(trace_of(natural(), token_ids=tokens))


class TestInterleaved:
    @pytest.mark.parametrize("texts", [2, 3, 5, 16, 31])
    def test_texts_that_take_turns(self, texts):
        experts = natural((128,) * texts * 2)
        mixed = experts.reshape(2, texts, 128, 4, 2).swapaxes(1, 2).reshape(2, -1, 4, 2)
        found = line(trace_of(mixed), "interleaved")
        assert f"the token {texts} places before" in found.evidence
        assert found.where == "2 of 2 sequences"
        assert healthy(trace_of(experts), segment_lengths=64)

    def test_routing_at_random_is_none(self):
        for seed in range(5):
            assert healthy(trace_of(natural(stay=0, seed=seed)))

    def test_a_rhythm_in_the_text_is_none(self):
        # Every other token is alike in one of four layers, but neighbours are alike too.
        experts = natural(stay=0.6)
        experts[:, 2::2, 0] = experts[:, :-2:2, 0]
        assert healthy(trace_of(experts))

    def test_a_single_slot_is_enough(self):
        experts = natural((256,) * 8, layers=1, top_k=1)
        mixed = experts.reshape(2, 4, 256, 1, 1).swapaxes(1, 2).reshape(2, -1, 1, 1)
        line(trace_of(mixed), "interleaved")


class TestNotRecorded:
    def test_runs_of_zeros(self):
        experts = natural(top_k=1)
        experts[:, :, :, 0] = np.maximum(experts[..., 0], 1)
        experts[:, ::9, 0] = 0
        experts[4, -8:] = 0
        found = line(trace_of(experts), "zero_rows")
        assert found.where == "sequence 4"
        assert "8 tokens in runs of up to 8" in found.evidence
        experts[4, -1, 2] = 1
        assert healthy(trace_of(experts))

    def test_layers_without_any_expert(self):
        experts = natural()
        experts[:, :, 1] = -1
        trace = trace_of(experts, meta={"layers": ["a", "b", "c", "d"]})
        found = line(trace, "empty_layers")
        assert found.where == "layer b"
        experts[0, 0, 1] = [0, 1]
        assert examine(trace_of(experts)).codes == ["empty_rows"]

    def test_tokens_without_any_expert(self):
        experts = natural()
        experts[3, 100:110] = -1
        found = line(trace_of(experts), "empty_tokens")
        assert found.where == "sequence 3"
        assert "10 tokens (0.2 %) hold no expert in any layer" in found.evidence
        # Past the end of a sequence there is nothing to miss.
        lengths = [512] * 8
        lengths[3] = 100
        assert healthy(trace_of(experts, lengths), segment_lengths=64)

    def test_rows_without_an_expert(self):
        experts = natural()
        experts[3, 100, 2] = -1
        found = line(trace_of(experts), "empty_rows")
        assert (found.severity, found.where) == ("note", "layer 2")
        experts[3, 100, 2, 0] = 5
        assert healthy(trace_of(experts))

    def test_slots_that_are_never_used(self):
        experts = natural()
        experts = np.concatenate([experts, np.full_like(experts, -1)], axis=-1)
        found = line(trace_of(experts), "top_k")
        assert found.where == "slots 2, 3"
        assert "of 4 slots 2 are never used: a top-k of 2" in found.evidence
        experts[0, 0, 0, 2:] = np.setdiff1d(np.arange(EXPERTS), experts[0, 0, 0])[:2]
        assert healthy(trace_of(experts))

    def test_a_top_k_below_the_models(self):
        experts = natural(top_k=6, num_experts=64)
        for meta, options in (
            ({"model": "/models/Qwen3-30B-A3B-Q4_K_M.gguf"}, {}),
            ({"model_top_k": 8}, {}),
            ({}, {"top_k": 8}),
        ):
            found = line(trace_of(experts, num_experts=64, meta=meta), "top_k", **options)
            assert "a token uses 6 experts at most, but 8 in the model" in found.evidence
        assert healthy(trace_of(experts, num_experts=64, meta={"model": "DeepSeek-V2-Lite"}))
        assert healthy(trace_of(experts, num_experts=64, meta={"model": "my own"}), top_k=6)

    def test_experts_that_are_never_used(self):
        # A fair share of 20 uses for each of 16 experts takes 320 uses.
        experts = natural((200,), stay=0)
        for layer in (1, 3):
            rows = experts[0, :, layer]
            for expert in (7, 9) if layer == 1 else (7,):
                rows[rows == expert] = -1
        found = examine(trace_of(experts), segment_lengths=4)
        assert found.codes[0] == "unused_experts"
        assert next(iter(found)).where == "layers 1, 3"
        assert "unused_experts" not in examine(trace_of(experts, [150]), segment_lengths=4).codes
        assert "3 of 64 experts are never used (layer 1: 7, 9)" in next(iter(found)).evidence


class TestTooLittle:
    def test_small_domains(self):
        experts = natural()
        labels = ["a"] * 6 + ["b", "c"]
        lengths = [512] * 8
        found = line(trace_of(experts, lengths, datasets=labels), "small_domains")
        assert (found.severity, found.where) == ("note", "datasets b (512), c (512)")
        lengths = [512] * 6 + [500, 500]
        labels = ["a"] * 6 + ["b"] * 2
        assert healthy(trace_of(experts, lengths, datasets=labels))
        lengths[-1] = 499
        line(trace_of(experts, lengths, datasets=labels), "small_domains")

    def test_short_sequences(self):
        experts = natural()
        lengths = [512] * 6 + [255, 15]
        found = line(trace_of(experts, lengths), "short_sequences")
        assert found.where == "2 of 8 sequences"
        assert found.evidence == (
            "give no segment of that length: 1 below 16 tokens (0.4 % of all tokens), 1 below 64 "
            "tokens (0.4 % of all tokens), 2 below 256 tokens (8.1 % of all tokens)"
        )
        assert healthy(trace_of(experts, lengths), segment_lengths=[4, 15])
        assert healthy(trace_of(experts, [256] * 8))


# --- The kernels ------------------------------------------------------------------------------


@given(traces())
def test_the_census_counts_what_is_there(trace):
    census = Census.of(trace)
    tokens = [
        trace.experts[i, t].tolist()
        for i, length in enumerate(trace.lengths)
        for t in range(length)
    ]
    for layer in range(trace.num_layers):
        for expert in range(trace.num_experts):
            assert census.uses[layer, expert] == sum(expert in token[layer] for token in tokens)
        assert census.empty[layer] == sum(set(token[layer]) == {-1} for token in tokens)
    for slot in range(trace.top_k):
        used = sum(row[slot] >= 0 for token in tokens for row in token)
        assert census.slots[slot] == used
    sets = [tuple(frozenset(row) - {-1} for row in token) for token in tokens]
    nothing, zero = (frozenset(),) * trace.num_layers, (frozenset({0}),) * trace.num_layers
    assert census.blank[trace.valid].tolist() == [one == nothing for one in sets]
    assert census.zero[trace.valid].tolist() == [one == zero for one in sets]
    # Signatures are alike where the sets of experts are.
    signatures = census.signatures[trace.valid].tolist()
    assert len(set(zip(signatures, sets, strict=True))) == len(set(sets)) == len(set(signatures))


@given(traces(max_tokens=40, max_sequences=3))
def test_overlaps_are_counted_as_defined(trace):
    layers = np.arange(0, trace.num_layers, 2)
    shape = (trace.num_sequences, LONGEST_LAG + 1)
    shared, pairs = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    overlaps(trace.experts, trace.lengths, layers, trace.num_experts, shared, pairs)
    for i, length in enumerate(trace.lengths):
        sets = [
            [set(trace.experts[i, t, layer].tolist()) - {-1} for t in range(length)]
            for layer in layers
        ]
        for lag in range(1, LONGEST_LAG + 1):
            both = [(one[t], one[t - lag]) for one in sets for t in range(lag, length)]
            assert shared[i, lag] == sum(len(now & before) for now, before in both)
            assert pairs[i, lag] == sum(len(now) for now, _ in both)


# --- On the whole -----------------------------------------------------------------------------


def test_several_findings_in_one():
    experts = natural()
    experts[3] = experts[1]
    experts[:, :, 1] = -1
    findings = examine(trace_of(experts))
    assert findings.codes == ["identical", "empty_layers"]
    text = repr(findings).splitlines()
    assert text[0].startswith("2 findings in <lrc.Trace: 8 sequences")
    assert text[1].startswith("- warning: identical (sequences 1 = 3): all 512 tokens")
    assert len(text) == 3


@given(traces())
def test_any_trace_can_be_examined(trace):
    before = trace.experts.copy()
    findings = examine(trace)
    assert np.array_equal(trace.experts, before)
    assert set(findings.table["severity"]) <= {"warning", "note"}
    assert len(findings.codes) == len(set(findings.codes)) == len(findings)


def test_bad_arguments_are_explained():
    with pytest.raises(lrc.LrcError, match=r"expected a lrc.Trace, not ndarray"):
        examine(natural())
    with pytest.raises(lrc.LrcError, match="segment_lengths is 0"):
        examine(trace_of(natural()), segment_lengths=0)


def test_the_examples_of_the_docstring():
    test = doctest.DocTestFinder(recurse=False).find(examine, "examine", globs={"lrc": lrc})
    assert doctest.DocTestRunner().run(test[0]) == (0, 1)


def test_the_docstring_lists_every_code():
    source = inspect.getsource(records) + inspect.getsource(texts)
    made = re.findall(r'Finding\(\s*"(\w+)"', source)
    listed = re.findall(r"^    (\w+)  +\w", examine.__doc__.split("found if")[1], re.MULTILINE)
    assert sorted(made) == sorted(listed)
    assert len(made) == 13


@pytest.mark.parametrize(("name", "seed"), lrc.toys.shipped())
def test_shipped_traces(name, seed):
    expected = ["unused_experts"] if name == "no_balance" else []
    assert examine(lrc.toys.load_trace(name, seed=seed)).codes == expected


@pytest.mark.parametrize(
    ("path", "codes"),
    [
        ("traces/deepseek-v2-lite/deepseek-v2-lite.npz", ["short_sequences"]),
        ("traces/gpt-oss-20b/gpt-oss-20b.npz", ["small_domains", "short_sequences"]),
        ("traces/phone/qwen.route.csv", ["top_k", "empty_rows", "short_sequences"]),
        ("traces/phone/gemma.route.csv", ["short_sequences"]),
        ("traces/phone/gptoss.route.csv", ["empty_rows", "short_sequences"]),
        ("golden/top2_of_8/trace.npz", []),
        ("golden/top8_of_64/trace.npz", []),
        ("golden/top1_of_32/trace.npz", ["unused_experts"]),
    ],
)
def test_real_and_golden_traces(shared, path, codes):
    zero_rows = "expert" if "top1" in path else "error"
    assert examine(load_routes(shared / path, zero_rows=zero_rows)).codes == codes
