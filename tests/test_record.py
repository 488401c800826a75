"""Recording: against what really ran, for padded, cached, compiled and broken models."""

import numpy as np
import pytest
import torch
from every_architecture import executed_experts, used
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import hook_count, random_tokens, record_pass, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

import lrc

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def mixtral():
    return tiny_model("mixtral")


# --- what ran ------------------------------------------------------------------------------------


def test_ground_truth_in_bfloat16_with_padding():
    model = tiny_model("qwen2_moe", dtype=torch.bfloat16, experts_implementation="eager")
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:] = 0
    inputs = {"input_ids": random_tokens(2, 12), "attention_mask": mask}
    trace = record_pass(model, **inputs)
    truth = executed_experts(model, trace.meta["layers"], inputs)
    assert trace.lengths.tolist() == [12, 8]
    np.testing.assert_array_equal(used(trace)[:, :20], truth[:, :20])
    assert not used(trace)[:, 20:].any()
    assert truth[:, 20:].any(), "padding is routed, so leaving it out matters"
    assert trace.meta["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_every_experts_implementation_records_the_same(name):
    tokens = random_tokens(2, 16)
    model = tiny_model(name)
    traces = []
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(implementation)
        traces.append(record_pass(model, input_ids=tokens, weights=True))
    for trace in traces[1:]:
        np.testing.assert_array_equal(trace.experts, traces[0].experts)
        np.testing.assert_allclose(trace.weights, traces[0].weights, atol=2e-3)


# --- slots, weights, modes -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek_v3", "phimoe", "olmoe"])
def test_slots_are_in_falling_weight(name):
    model = tiny_model(name)
    unsorted = []
    for module in model.modules():
        if type(module).__name__.endswith("Experts"):
            module.register_forward_pre_hook(
                lambda m, args: unsorted.append((args[2].diff(dim=-1) > 0).any().item())
            )
    trace = record_pass(model, input_ids=random_tokens(2, 16), weights=True)
    assert trace.weights.dtype == np.float16
    assert (np.diff(trace.weights, axis=-1) <= 0).all()
    assert (trace.weights > 0).all()
    if name != "olmoe":
        assert any(unsorted), "the model must return unsorted slots for this to test anything"
    without = record_pass(model, input_ids=random_tokens(2, 16))
    np.testing.assert_array_equal(without.experts, trace.experts)
    assert without.weights is None


def router_logits(model, tokens):
    """Logits of each MoE layer's router by transformers' own collection [tokens, experts]."""
    with torch.no_grad():
        return [x.numpy() for x in model(input_ids=tokens, output_router_logits=True).router_logits]


def test_weights_are_those_of_the_router(mixtral):
    tokens = random_tokens(2, 9)
    trace = record_pass(mixtral, input_ids=tokens, weights=True)
    for layer, logits in enumerate(router_logits(mixtral, tokens)):
        top = np.sort(np.exp(logits), axis=-1)[:, -2:][:, ::-1]
        expected = top / top.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(trace.weights[:, :, layer].reshape(-1, 2), expected, atol=1e-3)


def test_paper_mode_takes_top_k_of_bfloat16_logits():
    model, tokens = tiny_model("deepseek_v3"), random_tokens(2, 16)
    trace = record_pass(model, mode="paper", input_ids=tokens)
    for layer, logits in enumerate(router_logits(model, tokens)):
        rounded = torch.from_numpy(logits).bfloat16().float().numpy()
        for row, ids in zip(rounded, trace.experts[:, :, layer].reshape(-1, 3), strict=True):
            order = sorted(range(8), key=lambda e: (row[e], e), reverse=True)
            assert ids.tolist() == order[:3]
    executed = record_pass(model, input_ids=tokens)
    assert (used(trace) != used(executed)).any(), "bias and groups change the selection"
    assert trace.meta["mode"] == "paper"


def test_paper_mode_breaks_ties_to_the_higher_id(mixtral):
    model = tiny_model("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()
    trace = record_pass(model, mode="paper", input_ids=random_tokens(1, 4))
    assert (trace.experts == [7, 6]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "logits"}, "must be 'executed' or 'paper'"),
        ({"mode": "paper", "weights": True}, "has no weights"),
    ],
)
def test_bad_arguments(mixtral, arguments, message):
    with pytest.raises(lrc.RecordError, match=message):
        lrc.Recorder(mixtral, **arguments)


# --- padding and batches -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "jamba"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(name, side):
    model = tiny_model(name)
    lengths = [11, 4, 7]
    rows = [random_tokens(length, seed=length) for length in lengths]
    tokens = torch.zeros(3, 11, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        place = slice(11 - len(row), None) if side == "left" else slice(len(row))
        tokens[i, place], mask[i, place] = row, 1
    trace = record_pass(model, input_ids=tokens, attention_mask=mask, weights=True)
    assert trace.lengths.tolist() == lengths
    for i, row in enumerate(rows):
        alone = record_pass(model, input_ids=row[None], weights=True)
        n = len(row)
        np.testing.assert_array_equal(trace.experts[i, :n], alone.experts[0])
        np.testing.assert_allclose(trace.weights[i, :n], alone.weights[0], atol=2e-3)
        assert trace.token_ids[i, :n].tolist() == row.tolist()
        np.testing.assert_array_equal(trace.predicted_ids[i, :n], alone.predicted_ids[0])


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), batch_size=st.integers(1, 4))
def test_results_do_not_depend_on_the_batch(lengths, batch_size):
    model = test_results_do_not_depend_on_the_batch.model
    rows = [random_tokens(length, seed=i).tolist() for i, length in enumerate(lengths)]
    trace = lrc.record(model, rows, batch_size=batch_size, progress=False)
    assert trace.lengths.tolist() == lengths
    for i, row in enumerate(rows):
        alone = record_pass(model, input_ids=torch.tensor([row]))
        np.testing.assert_array_equal(trace.experts[i, : len(row)], alone.experts[0])


test_results_do_not_depend_on_the_batch.model = tiny_model("qwen3_moe")


def test_masked_row_is_an_empty_sequence(mixtral):
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    trace = record_pass(mixtral, input_ids=random_tokens(2, 3), attention_mask=mask)
    assert trace.lengths.tolist() == [3, 0]


def test_masks_that_hide_padding_are_refused(mixtral):
    tokens = random_tokens(2, 4)
    with pytest.raises(lrc.RecordError, match="2-D mask"):
        record_pass(mixtral, input_ids=tokens, attention_mask=torch.zeros(2, 1, 4, 4))
    with pytest.raises(lrc.RecordError, match=r"shape \[2, 3\]"):
        record_pass(mixtral, input_ids=tokens, attention_mask=torch.ones(2, 3))


def test_packed_rows_are_refused(mixtral):
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(lrc.RecordError, match="packed into one row"):
        record_pass(mixtral, input_ids=random_tokens(1, 5), position_ids=positions)


def test_embeddings_instead_of_tokens(mixtral):
    tokens = random_tokens(2, 5)
    embeddings = mixtral.get_input_embeddings()(tokens)
    trace = record_pass(mixtral, inputs_embeds=embeddings)
    assert trace.token_ids is None
    np.testing.assert_array_equal(trace.experts, record_pass(mixtral, input_ids=tokens).experts)


# --- what is recorded beside the experts ---------------------------------------------------------


def test_tokens_and_predictions(mixtral):
    tokens = random_tokens(2, 6)
    with torch.no_grad():
        expected = mixtral(tokens).logits.argmax(dim=-1).numpy()
    with lrc.Recorder(mixtral) as recorder:
        mixtral(tokens)
        mixtral(tokens[:1, :4])
    trace = recorder.trace(datasets=["a", "a", "b"])
    assert trace.lengths.tolist() == [6, 6, 4]
    np.testing.assert_array_equal(trace.token_ids[:2], tokens)
    np.testing.assert_array_equal(trace.predicted_ids[:2], expected)
    assert trace.datasets.tolist() == ["a", "a", "b"]
    with lrc.Recorder(mixtral, predictions=False) as recorder:
        mixtral(tokens)
    assert recorder.trace().predicted_ids is None


def test_base_model_without_a_head(mixtral):
    tokens = random_tokens(1, 5)
    trace = record_pass(mixtral.model, input_ids=tokens)
    assert trace.predicted_ids is None
    assert trace.meta["layers"] == ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]


def test_meta_describes_the_model(mixtral):
    meta = record_pass(mixtral, input_ids=random_tokens(1, 3)).meta
    for name in meta["layers"]:
        block = mixtral.get_submodule(name)
        assert type(block).__name__ == "MixtralSparseMoeBlock"
        one = sum(p[0].numel() * 4 for p in block.experts.parameters())
        assert meta["expert_bytes"] == one == 3 * 32 * 16 * 4
    assert meta["stack"] == "decoder"
    assert meta["architecture"] == "MixtralForCausalLM"
    assert meta["dtype"] == "float32"
    assert meta["versions"]["torch"] == torch.__version__
    assert set(meta["versions"]) == {"lrc", "torch", "transformers"}


def test_recording_changes_nothing(mixtral):
    tokens = random_tokens(2, 8)
    with torch.no_grad():
        expected = mixtral(tokens).logits
        for mode in ("executed", "paper"):
            with lrc.Recorder(mixtral, mode):
                assert torch.equal(mixtral(tokens).logits, expected)


def test_two_recorders_at_once(mixtral):
    tokens = random_tokens(1, 5)
    with lrc.Recorder(mixtral) as one, lrc.Recorder(mixtral) as two:
        mixtral(tokens)
    np.testing.assert_array_equal(one.trace().experts, two.trace().experts)
    with lrc.Recorder(mixtral) as one, pytest.raises(lrc.RecordError, match="in use"), one:
        pass
    assert hook_count(mixtral) == 0


# --- generation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "jamba", "gpt_oss"])
def test_generation_equals_the_finished_text(name):
    model = tiny_model(name)
    tokens = random_tokens(2, 6)
    mask = torch.ones_like(tokens)
    tokens[1, :3], mask[1, :3] = 0, 0  # generation pads on the left
    with lrc.Recorder(model, weights=True) as recorder:
        text = model.generate(
            tokens, attention_mask=mask, max_new_tokens=7, do_sample=False, eos_token_id=None
        )
    trace = recorder.trace()
    assert trace.lengths.tolist() == [12, 9], "the last sampled token is never routed"
    for i, start in enumerate((0, 3)):
        whole = record_pass(model, input_ids=text[i : i + 1, start:-1], weights=True)
        n = trace.lengths[i]
        np.testing.assert_array_equal(trace.experts[i, :n], whole.experts[0])
        np.testing.assert_allclose(trace.weights[i, :n], whole.weights[0], atol=2e-3)
        np.testing.assert_array_equal(trace.token_ids[i, :n], whole.token_ids[0])
        # In the prompt generation computes logits for the last token only.
        known = trace.predicted_ids[i, :n] >= 0
        assert known.sum() == 7
        np.testing.assert_array_equal(
            trace.predicted_ids[i, :n][known], whole.predicted_ids[0][known]
        )


def test_each_generation_is_a_batch_of_its_own(mixtral):
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with lrc.Recorder(mixtral) as recorder:
        mixtral.generate(random_tokens(2, 4), **options)
        mixtral.generate(random_tokens(1, 5), **options)
    assert recorder.trace().lengths.tolist() == [6, 6, 7]


def test_caches_may_take_turns(mixtral):
    tokens = random_tokens(2, 8)
    with lrc.Recorder(mixtral) as recorder, torch.no_grad():
        caches = [mixtral(tokens[i : i + 1, :5]).past_key_values for i in range(2)]
        for i, cache in enumerate(caches):
            mixtral(tokens[i : i + 1, 5:], past_key_values=cache)
    trace = recorder.trace()
    whole = record_pass(mixtral, input_ids=tokens)
    np.testing.assert_array_equal(trace.experts, whole.experts)


def test_a_cache_from_before_recording_starts_new_sequences(mixtral):
    tokens = random_tokens(2, 8)
    with torch.no_grad():
        cache = mixtral(tokens[:, :5]).past_key_values
    mask = torch.ones_like(tokens)
    trace = record_pass(
        mixtral, input_ids=tokens[:, 5:], past_key_values=cache, attention_mask=mask
    )
    whole = record_pass(mixtral, input_ids=tokens)
    np.testing.assert_array_equal(trace.experts, whole.experts[:, 5:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"use_cache": False}, "without a KV cache"),
    ],
)
def test_generation_that_routes_in_vain_is_refused(mixtral, options, message):
    with lrc.Recorder(mixtral), pytest.raises(lrc.RecordError, match=message):
        mixtral.generate(random_tokens(1, 4), max_new_tokens=2, **options)
    assert "generate" not in vars(mixtral)


def test_tokens_taken_back_from_the_cache_are_refused(mixtral):
    tokens = random_tokens(1, 8)
    with lrc.Recorder(mixtral), torch.no_grad():
        cache = mixtral(tokens[:, :6]).past_key_values
        cache.crop(-2)
        with pytest.raises(lrc.RecordError, match="assisted decoding"):
            mixtral(tokens[:, 6:], past_key_values=cache)


# --- coverage: a record is complete or an error --------------------------------------------------


def test_layer_that_does_not_fire(mixtral, monkeypatch):
    block = mixtral.model.layers[1].mlp
    monkeypatch.setattr(block, "forward", lambda hidden_states: hidden_states)
    with pytest.raises(
        lrc.RecordError, match=r"model\.layers\.1\.mlp\.experts \(MixtralExperts\) did not fire"
    ):
        record_pass(mixtral, input_ids=random_tokens(1, 4))
    assert hook_count(mixtral) == 0


def test_layer_that_fires_twice(mixtral, monkeypatch):
    block = mixtral.model.layers[2].mlp
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda x: (forward(x), forward(x))[0])
    with pytest.raises(lrc.RecordError, match=r"model\.layers\.2\.mlp\.experts .* fired twice"):
        record_pass(mixtral, input_ids=random_tokens(1, 4))


@pytest.mark.parametrize("keep", [slice(None, None, 2), [0, 0, 1, 1, 2, 2, 3, 3]])
def test_layer_that_sees_other_rows(mixtral, monkeypatch, keep):
    block = mixtral.model.layers[0].mlp
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda x: (forward(x[:, keep]), x)[1])
    with pytest.raises(lrc.RecordError, match=r"layers\.0\.mlp\.experts .* rows for 4 tokens"):
        record_pass(mixtral, input_ids=random_tokens(1, 4))


def test_layer_that_falls_silent_later():
    # The layer is optional by its name, but once it has fired it must go on.
    model = tiny_model("mixtral")
    model.model.mtp = model.model.layers[2].mlp
    tokens = random_tokens(1, 4)
    block = model.model.layers[2].mlp
    model.model.layers[2].mlp = torch.nn.Identity()
    trace = record_pass(model, input_ids=tokens)
    assert trace.num_layers == 2
    assert trace.meta["silent_layers"] == ["model.mtp"]
    with lrc.Recorder(model) as recorder:
        model(tokens)
        model.model.layers[2].mlp = block
        with pytest.raises(lrc.RecordError, match="not in earlier ones"):
            model(tokens)
    assert recorder.trace().num_sequences == 1


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_recorded_once(name, reentrant):
    model = tiny_model(name).train()
    tokens = random_tokens(2, 5)
    expected = record_pass(model, input_ids=tokens)
    fired = []
    layer = model.get_submodule(expected.meta["layers"][0])
    handle = layer.experts.register_forward_pre_hook(lambda *_: fired.append(1))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    with lrc.Recorder(model) as recorder:
        for _ in range(2):
            model(tokens, labels=tokens).loss.backward()
    handle.remove()
    assert len(fired) == 4, "two passes, and two to get the gradients"
    trace = recorder.trace()
    assert trace.num_sequences == 4
    np.testing.assert_array_equal(trace.experts, np.tile(expected.experts, (2, 1, 1, 1)))


def test_part_of_the_model_is_refused(mixtral):
    with (
        lrc.Recorder(mixtral),
        pytest.raises(lrc.RecordError, match="outside a forward pass of the recorded model"),
    ):
        mixtral.model(random_tokens(1, 4))


def test_nothing_recorded(mixtral):
    with lrc.Recorder(mixtral) as recorder:
        pass
    with pytest.raises(lrc.RecordError, match="no forward pass was recorded"):
        recorder.trace()


def test_compiled_before_recording_is_refused():
    model = tiny_model("mixtral", num_hidden_layers=2)
    tokens = random_tokens(1, 4)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(input_ids=tokens)
        with pytest.raises(lrc.RecordError, match="compiled before recording"):
            record_pass(compiled, input_ids=tokens)
    torch.compiler.reset()


def test_compiled_while_recording():
    model = tiny_model("mixtral", num_hidden_layers=2)
    tokens = random_tokens(2, 4)
    expected = record_pass(model, input_ids=tokens)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    trace = record_pass(compiled, input_ids=tokens)
    np.testing.assert_array_equal(trace.experts, expected.experts)
    torch.compiler.reset()


def test_compiled_in_place():
    model = tiny_model("mixtral", num_hidden_layers=2)
    tokens = random_tokens(2, 4)
    expected = record_pass(model, input_ids=tokens)
    torch.compiler.reset()
    model.compile(backend="eager")
    trace = record_pass(model, input_ids=tokens)
    np.testing.assert_array_equal(trace.experts, expected.experts)
    torch.compiler.reset()


def test_kernels_in_place_of_blocks_are_refused(monkeypatch):
    """As `use_kernels=True` does with MegaBlocks, which is not installed here."""
    model = tiny_model("gpt_oss")
    block = model.model.layers[1].mlp
    monkeypatch.setattr(type(block), "kernel_layer_name", "MegaBlocksMoeMLP", raising=False)
    lrc.Recorder(model)
    monkeypatch.setattr(type(model), "use_kernels", True)
    block.forward = lambda hidden_states: (hidden_states, None)
    with pytest.raises(
        lrc.RecordError, match=r"layers\.1\.mlp\.experts .*MegaBlocksMoeMLP .*use_kernels=False"
    ):
        lrc.Recorder(model)


def test_quantized_gpt_oss_is_read_from_its_logits():
    """The kernel needs a GPU: this stands in for its block, which calls no router or experts."""
    model, tokens = tiny_model("gpt_oss"), random_tokens(2, 6)
    expected = record_pass(model, input_ids=tokens, weights=True)

    class Mxfp4GptOssMLP(torch.nn.Module):
        def __init__(self, block):
            super().__init__()
            self.router, self.experts = block.router, block.experts

        def forward(self, hidden_states):
            rows = hidden_states.flatten(0, -2)
            logits = torch.nn.functional.linear(rows, self.router.weight, self.router.bias)
            top = logits.topk(self.router.top_k)
            output = self.experts.forward(rows, top.indices, top.values.softmax(dim=-1))
            return output.reshape(hidden_states.shape), logits

    for layer in model.model.layers:
        layer.mlp = Mxfp4GptOssMLP(layer.mlp)
    trace = record_pass(model, input_ids=tokens, weights=True)
    np.testing.assert_array_equal(trace.experts, expected.experts)
    np.testing.assert_allclose(trace.weights, expected.weights, atol=1e-3)
    assert trace.meta["rule"].startswith("adapter: top-k of the logits")


def test_nan_weights_name_the_layer():
    model = tiny_model("mixtral")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight.fill_(torch.nan)
    with pytest.raises(lrc.RecordError, match=r"layers\.1\.mlp\.experts .* NaN"):
        record_pass(model, input_ids=random_tokens(1, 4))


def test_hooks_leave_with_an_exception(mixtral):
    recorder = lrc.Recorder(mixtral, "paper")

    def interrupted():
        with recorder:
            assert hook_count(mixtral) == 8
            mixtral(random_tokens(1, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert hook_count(mixtral) == 0
    assert "generate" not in vars(mixtral)
    assert recorder.trace().num_sequences == 1


def test_a_failed_pass_leaves_no_trace(mixtral):
    with lrc.Recorder(mixtral) as recorder:
        with pytest.raises(IndexError):
            mixtral(torch.full((1, 4), 10_000))
        mixtral(random_tokens(1, 3))
    assert recorder.trace().lengths.tolist() == [3]


def test_dense_model_is_refused():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    with pytest.raises(lrc.RecordError, match=r"LlamaForCausalLM has no MoE layer .*top_k_index"):
        lrc.Recorder(model)
