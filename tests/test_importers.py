"""Foreign logs: what was routed comes back exactly, and what a log leaves open is asked for."""

import base64
import doctest
import io
import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrc
from lrc import TraceError, load_routes
from lrc.importers import residency

EXPERTS = 16


def routing(lengths=(7, 4), layers=3, top_k=2, num_experts=EXPERTS, seed=0, first=0):
    """Routing of several texts: arrays [tokens, layers, top_k] of ids from `first`."""
    rng = np.random.default_rng(seed)
    shape = (sum(lengths), layers, num_experts - first)
    ids = (first + rng.random(shape).argsort(axis=-1)[..., :top_k]).astype(np.int32)
    return np.split(ids, np.cumsum(lengths)[:-1])


def padded(texts, width=None, fill=0, left=0):
    """Batch [sequences, tokens, layers, top_k] with filler behind, and `left` before the texts."""
    width = width or max(map(len, texts)) + left
    batch = np.full((len(texts), width, *texts[0].shape[1:]), fill, texts[0].dtype)
    for row, text in zip(batch, texts, strict=True):
        row[left : left + len(text)] = text
    return batch


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def text64(data):
    return base64.b64encode(data).decode()


def same(trace, texts):
    """Whether a trace holds just these texts."""
    return trace.lengths.tolist() == [len(text) for text in texts] and all(
        np.array_equal(trace.experts[i, : len(text)], text) for i, text in enumerate(texts)
    )


def dense(text, at=(0,), fill=0):
    """The same text from an engine that counts dense layers at these places."""
    layers = iter(np.moveaxis(text, 1, 0))
    count = text.shape[1] + len(at)
    blank = np.full((len(text), text.shape[2]), fill, text.dtype)
    return np.stack([blank if i in at else next(layers) for i in range(count)], axis=1)


# --- Arrays -----------------------------------------------------------------------------------


class TestArrays:
    def test_one_text(self, tmp_path):
        (text,) = routing([9])
        np.save(tmp_path / "a.npy", text)
        trace = load_routes(tmp_path / "a.npy", num_experts=EXPERTS)
        assert same(trace, [text])
        assert trace.meta == {"source": "array", "layers": ["0", "1", "2"]}
        assert same(load_routes(text, num_experts=EXPERTS), [text])
        assert same(load_routes(text.tolist(), num_experts=EXPERTS), [text])

    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", ">i4"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_any_integers_in_any_order(self, tmp_path, dtype, order):
        (text,) = routing([9])
        np.save(tmp_path / "a.npy", np.asarray(text, dtype, order=order))
        assert same(load_routes(tmp_path / "a.npy", num_experts=EXPERTS), [text])

    def test_texts_one_after_the_other(self, tmp_path):
        texts = routing()
        np.save(tmp_path / "a.npy", np.concatenate(texts))
        trace = load_routes(
            tmp_path / "a.npy", num_experts=EXPERTS, lengths=[7, 4], datasets=["a", "b"]
        )
        assert same(trace, texts)
        assert trace.datasets.tolist() == ["a", "b"]
        with pytest.raises(TraceError, match="lengths sum up to 10, but it holds 11 tokens"):
            load_routes(tmp_path / "a.npy", num_experts=EXPERTS, lengths=[7, 3])

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_public_traces_in_npz(self, tmp_path, save):
        texts = routing()
        weights = np.random.default_rng(1).random((11, 3, 2)).astype(np.float16)
        save(
            tmp_path / "a.npz",
            expert_ids=np.concatenate(texts).astype(np.uint8),
            weights=weights,
            offsets=[0, 7, 11],
            dataset=["law", "code"],
            num_experts=EXPERTS,
        )
        trace = load_routes(tmp_path / "a.npz")
        order = np.argsort(-weights, axis=-1, kind="stable")
        ids = np.take_along_axis(np.concatenate(texts), order, axis=-1)
        assert same(trace, np.split(ids, [7]))
        assert trace.datasets.tolist() == ["law", "code"]
        assert np.array_equal(trace.weights[0], -np.sort(-weights[:7], axis=-1))

    @pytest.mark.parametrize("fill", [0, -1])
    @pytest.mark.parametrize("left", [0, 3])
    def test_a_padded_batch(self, tmp_path, fill, left):
        texts = routing()
        np.save(tmp_path / "a.npy", padded(texts, width=12, fill=fill, left=left))
        assert same(load_routes(tmp_path / "a.npy", num_experts=EXPERTS), texts)

    def test_a_number_of_its_own_for_padding(self):
        texts = routing()
        batch = padded(texts, fill=255).astype(np.uint8)
        assert same(load_routes(batch, num_experts=EXPERTS, missing=255), texts)
        with pytest.raises(TraceError, match=r"sequence 1.*is 255, but ids run from 0 to 15"):
            load_routes(batch, num_experts=EXPERTS)

    def test_replay_buffer_of_verl(self, tmp_path):
        torch = pytest.importorskip("torch")
        texts = routing()
        # Prompts of 4 and 2 tokens, padded on the left to 4; the last token was never run.
        batch = np.zeros((2, 9, 3, 2), np.int32)
        mask = np.zeros((2, 9), int)
        for row, text, start in ((0, texts[0], 0), (1, texts[1], 2)):
            batch[row, start : start + len(text)] = text
            mask[row, start : start + len(text) + 1] = 1
        tensors = {
            "routed_experts": torch.from_numpy(batch),
            "attention_mask": torch.from_numpy(mask),
            "input_ids": torch.arange(18).reshape(2, 9),
            "prompts": torch.zeros(2, 4, dtype=int),
        }
        torch.save(tensors, tmp_path / "a.pt")
        for source in (tmp_path / "a.pt", tensors):
            trace = load_routes(source, num_experts=EXPERTS)
            assert same(trace, texts)
            assert trace.meta["prompt_tokens"] == [4, 2]
            assert trace.token_ids[1, :4].tolist() == [11, 12, 13, 14]
        completion = load_routes(tensors, num_experts=EXPERTS, part="completion")
        assert same(completion, [texts[0][4:], texts[1][2:]])

    def test_replay_buffer_of_nemo(self, tmp_path):
        texts = routing()
        np.savez(tmp_path / "a.npz", routed_experts=padded(texts, fill=-1), input_lengths=[7, 4])
        assert same(load_routes(tmp_path / "a.npz", num_experts=EXPERTS), texts)

    def test_a_tensor_for_each_layer_of_megatron(self, tmp_path):
        torch = pytest.importorskip("torch")
        texts = routing()
        layers = [torch.from_numpy(x.copy()) for x in np.moveaxis(np.concatenate(texts), 1, 0)]
        torch.save(layers, tmp_path / "a.pt")
        for source in (tmp_path / "a.pt", layers):
            assert same(load_routes(source, num_experts=EXPERTS, lengths=[7, 4]), texts)
        with pytest.raises(TraceError, match="its layers have different shapes"):
            load_routes([layers[0], layers[1][:-1]], num_experts=EXPERTS)

    def test_lengths_beat_proof(self):
        texts = routing(top_k=1)
        texts[0][-1] = 0  # really expert 0
        batch = padded(texts, width=9)
        with pytest.raises(TraceError, match=r"sequence 0, token 6.*zero_rows='expert'"):
            load_routes(batch, num_experts=EXPERTS)
        trace = load_routes(batch, num_experts=EXPERTS, lengths=[7, 4], zero_rows="expert")
        assert same(trace, texts)
        without = load_routes(batch, num_experts=EXPERTS, zero_rows="none")
        assert same(without, [texts[0][:-1], texts[1]])

    @settings(max_examples=40)
    @given(
        st.lists(st.integers(1, 9), min_size=1, max_size=4),
        st.integers(1, 4),
        st.integers(2, 5),
        st.sampled_from([0, -1]),
        st.integers(0, 3),
        st.integers(0, 2**32 - 1),
    )
    def test_padding_is_proved_wherever_it_lies(self, lengths, layers, top_k, fill, left, seed):
        texts = routing(lengths, layers, top_k, seed=seed)
        batch = padded(texts, width=left + max(lengths) + 2, fill=fill, left=left)
        assert same(load_routes(batch, num_experts=EXPERTS), texts)

    @pytest.mark.parametrize(
        ("source", "options", "message"),
        [
            (routing()[0], {}, r"give num_experts \(the largest id is 15"),
            (routing()[0][0], {}, r"has shape \[3, 2\], but \[tokens, layers, top_k\]"),
            (routing()[0] * 1.5, {}, "holds float64, but expert ids are whole numbers"),
            (routing()[0], {"num_layers": 4}, "has 3 layers, but num_layers says 4"),
            (routing([3])[0].swapaxes(0, 1), {"num_layers": 3}, None),
            (routing([4])[0].swapaxes(0, 1), {"num_layers": 3}, "first axis has that length"),
            (routing()[0], {"top_k": 3}, "has 2 slots a token, but top_k says 3"),
            ({"a": 1, "b": "x"}, {}, r"no arrays may hold the expert ids \(found: a, b\)"),
            ({"a": routing()[0], "b": routing()[0]}, {}, "2 arrays may hold the expert ids"),
            (routing()[0], {"datasets": ["a", "b"]}, "datasets has 2 labels for 1 sequences"),
            (routing()[0], {"part": "prompt"}, "does not say where its prompt ends"),
            (routing()[0], {"part": "half"}, "part is 'half', but must be one of 'all', 'prompt'"),
            (routing()[0], {"prompt_start": 3}, "prompt_start means nothing for format 'array'"),
            (routing()[0], {"format": "csv"}, r"format is 'csv'; it must be one of 'vllm' \("),
            (routing()[0], {"top_k": 0}, "top_k is 0, but must be a whole number"),
            (routing()[0], {"moe_layers": [3]}, "names layer 3, but layers run from 0 to 2"),
            (routing()[0], {"moe_layers": [1, 1]}, "each once"),
            (routing()[0], {"moe_layers": "all"}, "must be 'recorded' or list layers"),
            (np.zeros((4, 3, 2), int), {}, "no layer holds any routing"),
            (padded(routing()), {"lengths": [8, 4]}, "2 numbers from 0 to 7"),
        ],
    )
    def test_what_is_open_or_wrong_is_said(self, source, options, message):
        options = {"num_experts": None if message and "num_experts" in message else 16} | options
        if message is None:
            load_routes(source, **options)
            return
        with pytest.raises(TraceError, match=message) as caught:
            load_routes(source, **options)
        assert "\n" not in str(caught.value)

    def test_places_are_named(self):
        batch = padded(routing())
        batch[1, 2, 1] = 5
        with pytest.raises(TraceError, match=r"sequence 1\[.*token 2, layer 1, slot 1\] is 5"):
            load_routes(batch, num_experts=EXPERTS)
        batch[1, 2, 1] = 5, 40_000
        with pytest.raises(TraceError, match=r"sequence 1\[.*token 2, layer 1, slot 1\] is 32767"):
            load_routes(batch, num_experts=EXPERTS)


class TestFillers:
    def test_dense_layers_must_be_named(self):
        texts = routing()
        for fill in (0, -1):
            batch = padded([dense(text, at=(0, 2), fill=fill) for text in texts])
            with pytest.raises(
                TraceError, match=r"layers 0, 2 of 5 hold only zeros or -1"
            ) as error:
                load_routes(batch, num_experts=EXPERTS)
            assert "moe_layers=[1, 3, 4]" in str(error.value)
            for choice in ([1, 3, 4], "recorded"):
                trace = load_routes(batch, num_experts=EXPERTS, moe_layers=choice)
                assert same(trace, texts)
                assert trace.meta["layers"] == ["1", "3", "4"]

    def test_leading_dense_layers_come_as_a_range(self):
        (text,) = routing([5])
        with pytest.raises(TraceError, match=r"layer 0 of 4 holds .*moe_layers=range\(1, 4\) "):
            load_routes(dense(text), num_experts=EXPERTS)
        assert same(load_routes(dense(text), num_experts=EXPERTS, moe_layers=range(1, 4)), [text])

    def test_a_silent_moe_layer_may_be_kept(self):
        (text,) = routing([5])
        trace = load_routes(dense(text), num_experts=EXPERTS, moe_layers=range(4), zero_rows="none")
        assert (trace.experts[0, :, 0] == -1).all()
        assert np.array_equal(trace.experts[0, :, 1:], text)

    def test_rows_of_zeros_inside_a_text(self):
        (text,) = routing([9])
        text[3] = text[5, 1] = 0
        with pytest.raises(
            TraceError, match=r"token 3, layer 0: all 2 slots are 0 \(4 such rows.*zero_rows='none'"
        ):
            load_routes(text, num_experts=EXPERTS)
        trace = load_routes(text, num_experts=EXPERTS, zero_rows="none")
        text[3] = text[5, 1] = -1
        assert same(trace, [text])
        with pytest.raises(TraceError, match="used several times by one token"):
            load_routes(np.maximum(text, 0), num_experts=EXPERTS, zero_rows="expert")

    def test_with_one_slot_zero_in_some_layers_is_expert_0(self):
        (text,) = routing([9], top_k=1, first=1)
        text[2, 1] = text[0, 0] = text[8, 2] = 0
        assert same(load_routes(text, num_experts=EXPERTS), [text])
        text[2] = 0
        for choice, expected in (("expert", 0), ("none", -1)):
            trace = load_routes(text, num_experts=EXPERTS, zero_rows=choice)
            assert trace.experts[0, 2].ravel().tolist() == [expected] * 3
        with pytest.raises(TraceError, match="token 2, layer 0: 0 in every layer"):
            load_routes(text, num_experts=EXPERTS)

    def test_a_text_without_routing_keeps_its_place(self):
        texts = routing()
        batch = padded([texts[0], np.zeros_like(texts[0]), texts[1]])
        trace = load_routes(batch, num_experts=EXPERTS, datasets=["a", "b", "c"])
        assert trace.lengths.tolist() == [7, 0, 4]


# --- vLLM and SGLang --------------------------------------------------------------------------


def vllm_response(text, prompt=3, **extra):
    """A response of recent vLLM: the last token sampled has no row."""
    usage = {"prompt_tokens": prompt, "completion_tokens": len(text) + 1 - prompt}
    choice = {"index": 0, "text": "…", "routed_experts": text64(npy(text))}
    return {"model": "org/moe", "choices": [choice], "usage": usage} | extra


def sglang_response(text, prompt=3, **info):
    counts = {"prompt_tokens": prompt, "completion_tokens": len(text) + 1 - prompt}
    payload = text64(text.astype("<i4").tobytes())
    return {"text": "…", "meta_info": counts | {"routed_experts": payload} | info}


class TestResponses:
    def test_vllm_in_all_its_wrappings(self, tmp_path):
        texts = routing()
        documents = [vllm_response(text) for text in texts]
        batch = [{"custom_id": "x", "response": {"body": document}} for document in documents]
        for name, content in {
            "array.json": json.dumps(documents, indent=1),
            "lines.jsonl": "\n".join(map(json.dumps, documents)) + "\n\n",
            "batch.jsonl": "\n".join(map(json.dumps, batch)),
        }.items():
            (tmp_path / name).write_text(content)
            trace = load_routes(tmp_path / name, num_experts=EXPERTS)
            assert same(trace, texts)
            assert trace.meta["model"] == "org/moe"
            assert trace.meta["source"] == "vllm"
            assert trace.meta["prompt_tokens"] == [3, 3]
        assert same(load_routes(documents[0], num_experts=EXPERTS), texts[:1])
        (tmp_path / "one.json").write_text(json.dumps(documents[1], indent=2))
        assert same(load_routes(tmp_path / "one.json", num_experts=EXPERTS), texts[1:])

    def test_tokens_and_parts(self):
        (text,) = routing([6])
        response = vllm_response(text, prompt_token_ids=[10, 11, 12])
        response["choices"][0]["token_ids"] = [20, 21, 22, 23]
        trace = load_routes(response, num_experts=EXPERTS)
        assert trace.token_ids.tolist() == [[10, 11, 12, 20, 21, 22]]
        assert same(load_routes(response, num_experts=EXPERTS, part="prompt"), [text[:3]])
        part = load_routes(response, num_experts=EXPERTS, part="completion")
        assert same(part, [text[3:]])
        assert part.token_ids.tolist() == [[20, 21, 22]]

    def test_a_prefix_left_out(self):
        (text,) = routing([6])
        trimmed = vllm_response(text)
        trimmed["choices"][0]["routed_experts"] = text64(npy(text[2:]))
        with pytest.raises(TraceError, match=r"4 rows, but 3 prompt and 4 .* prompt_start=2"):
            load_routes(trimmed, num_experts=EXPERTS)
        told = trimmed | {"routed_experts_prompt_start": 2}
        for source, options in ((trimmed, {"prompt_start": 2}), (told, {})):
            trace = load_routes(source, num_experts=EXPERTS, **options)
            assert same(trace, [text[2:]])
            assert trace.meta["prompt_tokens"] == [1]
        with pytest.raises(TraceError, match="is 2, but prompt_start says 1"):
            load_routes(told, num_experts=EXPERTS, prompt_start=1)

    @pytest.mark.parametrize("encode", [np.ndarray.tolist, lambda a: text64(npy(a))])
    def test_the_split_layout_of_vllm_0_21(self, encode):
        (text,) = routing([8])
        text = text.astype(np.int16)
        head = text[:5].copy()
        head[:2] = -1  # found in the prefix cache
        response = {
            "prompt_routed_experts": encode(head),
            "choices": [{"routed_experts": encode(text[5:])} for _ in range(2)],
            "usage": {"prompt_tokens": 5, "completion_tokens": 6},
        }
        trace = load_routes(response, num_experts=EXPERTS)
        assert same(trace, [text[2:]] * 2)
        assert trace.meta["prompt_tokens"] == [3, 3]
        response["usage"]["prompt_tokens"] = 4
        with pytest.raises(TraceError, match="5 rows for 4 prompt tokens"):
            load_routes(response, num_experts=EXPERTS)

    def test_the_first_version_counts_dense_layers(self):
        texts = routing()
        documents = [vllm_response(dense(text)) for text in texts]
        with pytest.raises(TraceError, match="dense layers that the engine counted"):
            load_routes(documents, num_experts=EXPERTS)
        assert same(load_routes(documents, num_experts=EXPERTS, moe_layers=range(1, 4)), texts)

    def test_outputs_of_the_offline_engine(self, tmp_path):
        (text,) = routing([6])
        completion = SimpleNamespace(token_ids=[20, 21, 22, 23], routed_experts=text)
        request = SimpleNamespace(prompt_token_ids=[10, 11, 12], outputs=[completion])
        for source in (request, [request]):
            trace = load_routes(source, num_experts=EXPERTS)
            assert same(trace, [text])
            assert trace.token_ids.tolist() == [[10, 11, 12, 20, 21, 22]]
        assert same(load_routes(completion, num_experts=EXPERTS), [text])
        np.save(tmp_path / "a.npy", completion.routed_experts)
        trace = load_routes(tmp_path / "a.npy", num_experts=EXPERTS, prompt_tokens=3)
        assert trace.meta["prompt_tokens"] == [3]

    def test_sglang_needs_its_shape(self, tmp_path):
        texts = routing()
        documents = [sglang_response(text) for text in texts]
        (tmp_path / "a.json").write_text(json.dumps(documents))
        with pytest.raises(TraceError, match=r"\(42 numbers, 6 a token: num_layers times top_k\)"):
            load_routes(tmp_path / "a.json", num_experts=EXPERTS)
        for shape in ({"num_layers": 3, "top_k": 2}, {"num_layers": 3}, {"top_k": 2}):
            trace = load_routes(tmp_path / "a.json", num_experts=EXPERTS, **shape)
            assert same(trace, texts)
            assert trace.meta["source"] == "sglang"
        with pytest.raises(TraceError, match="42 numbers, which make no whole tokens of 4 layers"):
            load_routes(documents, num_experts=EXPERTS, num_layers=4, top_k=2)
        with pytest.raises(TraceError, match="14 rows, but 3 prompt and 5 completion"):
            load_routes(documents, num_experts=EXPERTS, num_layers=3, top_k=1)

    def test_sglang_beside_an_openai_choice(self):
        (text,) = routing([6])
        payload = sglang_response(text)["meta_info"]["routed_experts"]
        response = {
            "choices": [{"sgl_ext": {"routed_experts": payload}}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        }
        assert same(load_routes(response, num_experts=EXPERTS, top_k=2), [text])
        with pytest.raises(TraceError, match="without its shape"):
            load_routes(response | {"usage": None}, num_experts=EXPERTS, top_k=2)

    @settings(max_examples=30)
    @given(
        st.lists(st.integers(3, 9), min_size=1, max_size=3),
        st.integers(1, 4),
        st.integers(2, 4),
        st.integers(0, 2**32 - 1),
    )
    def test_round_trip(self, lengths, layers, top_k, seed):
        texts = routing(lengths, layers, top_k, seed=seed)
        source = [vllm_response(text) for text in texts]
        assert same(load_routes(source, num_experts=EXPERTS), texts)
        source = [sglang_response(text) for text in texts]
        assert same(load_routes(source, num_experts=EXPERTS, num_layers=layers), texts)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda r: r["choices"][0].pop("routed_experts"), "--enable-return-routed-experts"),
            (lambda r: r["choices"][0].update(routed_experts="k9!"), "no base64, or cut short"),
            (
                lambda r: r["choices"][0].update(
                    routed_experts=r["choices"][0]["routed_experts"][:-8]
                ),
                r"cut short or damaged: its header declares shape \[7, 3, 2\]",
            ),
            (lambda r: r.update(choices=3), "has no list of choices"),
            (lambda r: r["usage"].update(completion_tokens=9), "7 rows, but 3 prompt and 9"),
        ],
    )
    def test_damage_is_named(self, change, message):
        response = vllm_response(routing()[0])
        change(response)
        with pytest.raises(TraceError, match=message) as caught:
            load_routes(response, format="vllm", num_experts=EXPERTS)
        assert "response 0" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_files_that_are_cut_short(self, tmp_path):
        lines = "\n".join(json.dumps(vllm_response(text)) for text in routing())
        (tmp_path / "a.jsonl").write_text(lines[:-20])
        with pytest.raises(TraceError, match=r"a.jsonl, line 2: no JSON, or cut short"):
            load_routes(tmp_path / "a.jsonl", num_experts=EXPERTS)
        (tmp_path / "a.json").write_text(lines[:50])
        with pytest.raises(TraceError, match=r"a.json: no JSON, or cut short"):
            load_routes(tmp_path / "a.json", num_experts=EXPERTS)
        (tmp_path / "deep.json").write_text("[" * 100_000)
        with pytest.raises(TraceError, match=r"deep.json: no JSON"):
            load_routes(tmp_path / "deep.json", num_experts=EXPERTS)


# --- SGLang's recorder ------------------------------------------------------------------------


class Scheduler:
    """Runs requests as SGLang does, and writes what its recorder would write."""

    def __init__(self, layers=3, top_k=2, seed=0):
        self.rng = np.random.default_rng(seed)
        self.layers, self.top_k = layers, top_k
        self.texts, self.tokens, self.records = {}, {}, []

    def run(self, requests, lengths=None):
        """A pass over [(name, tokens)]; `lengths` as recorded (None = texts are continued)."""
        parts = [
            (name, routing([n], self.layers, self.top_k, seed=int(self.rng.integers(1 << 30)))[0])
            for name, n in requests
        ]
        positions, tokens = [], []
        for name, ids in parts:
            done = sum(map(len, self.texts.get(name, [])))
            positions += range(done, done + len(ids))
            new = self.rng.integers(0, 1000, len(ids)).tolist()
            tokens += new
            self.texts.setdefault(name, []).append(ids)
            self.tokens.setdefault(name, []).extend(new)
        slots = np.full((self.layers, len(tokens), 8), -1, np.int32)
        slots[..., : self.top_k] = np.concatenate([ids for _, ids in parts]).swapaxes(0, 1)
        self.records.append(
            {
                "forward_pass_id": len(self.records),
                "rank": 0,
                "gatherer_key": "primary",
                "input_ids": tokens,
                "positions": positions,
                "extend_seq_lens": lengths,
                "forward_mode": 1 if lengths else 2,
                "topk_ids_of_layer": slots,
            }
        )

    def prefill(self, **requests):
        self.run(list(requests.items()), list(requests.values()))

    def decode(self, *names):
        self.run([(name, 1) for name in names])

    def text(self, name):
        return np.concatenate(self.texts[name])

    def dump(self, table=None):
        table = np.tile(np.arange(EXPERTS), (self.layers, 1)) if table is None else table
        return {"records": self.records, "last_physical_to_logical_map": table}


def busy_hour():
    """Requests that come and go."""
    server = Scheduler()
    server.prefill(a=4, b=6)
    server.decode("a", "b")
    server.prefill(c=3)
    server.decode("a", "b", "c")
    server.decode("a", "c")  # b is done
    server.prefill(d=5)
    server.decode("a", "c", "d")  # 4 + 3, 3 + 2, 5: c and d are both at position 5
    server.decode("a", "c", "d")
    return server


class TestRecorder:
    def test_what_positions_prove_is_joined(self, tmp_path):
        torch = pytest.importorskip("torch")
        server = busy_hour()
        dump = server.dump()
        for record in dump["records"]:
            record["topk_ids_of_layer"] = torch.from_numpy(record["topk_ids_of_layer"])
        dump["last_physical_to_logical_map"] = torch.from_numpy(
            dump["last_physical_to_logical_map"]
        )
        torch.save(dump, tmp_path / "expert_distribution_recorder.pt")
        trace = load_routes(tmp_path / "expert_distribution_recorder.pt")
        a, b, c, d = map(server.text, "abcd")
        tail = [c[5:6], d[5:6], c[6:7], d[6:7]]
        assert same(trace, [a, b, c[:5], d[:5], *tail])
        assert trace.token_ids[0, : len(a)].tolist() == server.tokens["a"]
        assert "prompt_tokens" not in trace.meta  # the tails do not know theirs
        assert trace.meta["incomplete_sequences"] == 4
        assert (trace.num_experts, trace.top_k) == (EXPERTS, 2)

    def test_the_order_of_the_batch_may_be_believed(self):
        server = busy_hour()
        trace = load_routes(server.dump(), stitch="order")
        assert same(trace, list(map(server.text, "abcd")))
        assert trace.meta["prompt_tokens"] == [4, 6, 3, 5]
        apart = load_routes(server.dump(), stitch="none")
        assert apart.num_sequences == 4 + 2 + 3 + 2 + 3 + 3

    def test_a_text_that_ended_is_not_continued(self):
        server = Scheduler()
        server.prefill(a=3, b=7)
        server.decode("a", "b")
        server.decode("b")  # a ended at position 4
        server.prefill(c=4)
        server.decode("b", "c")
        assert same(load_routes(server.dump()), list(map(server.text, "abc")))

    def test_nothing_is_joined_where_texts_began_before_the_recording(self):
        server = Scheduler()
        server.prefill(old=6)
        server.records.clear()
        server.prefill(new=5)
        server.decode("old", "new")
        server.decode("old", "new")
        trace = load_routes(server.dump())
        old, new = server.text("old"), server.text("new")
        # In the first pass, the token at position 5 might be another old text's.
        assert same(trace, [new[:5], old[6:], new[5:]])

    def test_prompts_in_parts_stay_apart(self):
        server = Scheduler()
        server.prefill(a=4)
        server.prefill(a=3)
        server.decode("a")
        a = server.text("a")
        assert same(load_routes(server.dump()), [a[:4], a[4:]])

    def test_physical_experts_are_mapped_to_logical_ones(self):
        server = Scheduler()
        server.prefill(a=6)
        dump = server.dump()
        # Two replicas of some experts, in another order in each layer.
        rng = np.random.default_rng(5)
        table = np.stack(
            [rng.permutation(np.r_[np.arange(EXPERTS), [0, 3]]) for _ in range(server.layers)]
        )
        ids = dump["records"][0]["topk_ids_of_layer"]
        for layer, row in enumerate(table):
            places = {e: np.flatnonzero(row == e) for e in range(EXPERTS)}
            for token, slot in np.argwhere(ids[layer] >= 0):
                ids[layer, token, slot] = rng.choice(places[ids[layer, token, slot]])
        trace = load_routes(server.dump(table))
        assert same(trace, [server.text("a")])
        assert trace.num_experts == EXPERTS

    def test_ranks_that_saw_the_same_count_once(self):
        server = busy_hour()
        dump = server.dump()
        dump["records"] += [record | {"rank": 1} for record in server.records]
        assert same(load_routes(dump, stitch="order"), list(map(server.text, "abcd")))
        other = Scheduler(seed=9)
        other.prefill(x=5)
        dump["records"] += [record | {"rank": 2} for record in other.records]
        texts = [*map(server.text, "abcd"), other.text("x")]
        assert same(load_routes(dump, stitch="order"), texts)

    def test_dense_layers_are_silent(self):
        server = busy_hour()
        for record in server.records:
            record["topk_ids_of_layer"][0] = -1
        with pytest.raises(TraceError, match=r"layer 0 of 3 holds only zeros or -1"):
            load_routes(server.dump())
        trace = load_routes(server.dump(), moe_layers=[1, 2], stitch="order")
        assert same(trace, [server.text(name)[:, 1:] for name in "abcd"])

    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1))
    def test_any_run_comes_back(self, seed):
        rng = np.random.default_rng(seed)
        server, running = Scheduler(seed=seed), []
        for step in range(12):
            if not running or rng.random() < 0.3:
                new = {f"{step}-{i}": int(rng.integers(1, 6)) for i in range(rng.integers(1, 3))}
                server.prefill(**new)
                running += new
            else:
                server.decode(*running)
                running = [name for name in running if rng.random() < 0.8]
        every = list(map(server.text, server.texts))
        # What is joined is part of one text, whatever the data leave open.
        trace = load_routes(server.dump())
        assert trace.num_tokens == sum(map(len, every))
        known = {
            tuple(t): (i, n)
            for i, one in enumerate(every)
            for n, t in enumerate(map(tuple, one.reshape(len(one), -1).tolist()))
        }
        for i, length in enumerate(trace.lengths):
            rows = trace.experts[i, :length].reshape(length, -1).tolist()
            places = [known[tuple(row)] for row in rows]
            assert places == [(places[0][0], places[0][1] + n) for n in range(length)]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"forward_mode": 5}, "record 0: has forward mode 5: with speculative decoding"),
            ({"topk_ids_of_layer": np.zeros((3, 2, 8), int)}, r"shape \[3, 2, 8\], but must be"),
            ({"extend_seq_lens": [4, 5]}, "extend_seq_lens sums up to 9, not 10"),
            ({"positions": [0] * 10}, "positions of a request do not follow on"),
            ({"topk_ids_of_layer": np.full((3, 10, 8), 99)}, "holds id 99, but there are 16"),
        ],
    )
    def test_faults_are_named(self, change, message):
        server = busy_hour()
        server.records[0] |= change
        with pytest.raises(TraceError, match=message):
            load_routes(server.dump())

    def test_other_modes_are_refused(self):
        with pytest.raises(TraceError, match="--expert-distribution-recorder-mode per_token"):
            load_routes({"records": [{"global_physical_count": 1}]})


# --- The phone engine -------------------------------------------------------------------------


def route_csv(experts, weights, prompt, sizes, header=None, resident=None):
    """A route_trace v1 of one turn, its last layer run for the prompt's last token only."""
    tokens, layers, top_k = experts.shape
    header = header or {"n_layer": layers, "n_expert": EXPERTS, "n_expert_used": top_k}
    lines = ["# route_trace v1"]
    shape = " ".join(f"{key}={value}" for key, value in header.items())
    lines.append(f"# model=/some where/My Model.gguf arch=moe {shape}")
    lines += [f"# layer={n} expert_bytes={size} dense_bytes=7" for n, size in enumerate(sizes)]
    lines.append("turn,phase,step,layer,slot,expert,weight,residency,expert_bytes")
    batches = [range(prompt), *([t] for t in range(prompt, tokens))]
    for batch in batches:
        for layer in range(layers):
            for token in batch:
                if token < prompt - 1 and layer == layers - 1:
                    continue
                for slot in range(top_k):
                    there = int(resident[token, layer, slot])
                    lines.append(
                        f"0,{int(token >= prompt)},{token},{layer},{slot},"
                        f"{experts[token, layer, slot]},{weights[token, layer, slot]:.6g},"
                        f"{there},{0 if there else sizes[layer]}"
                    )
    return "\n".join(lines) + "\n"


@pytest.fixture
def phone_log(tmp_path):
    (text,) = routing([8])
    rng = np.random.default_rng(2)
    weights = -np.sort(-rng.random(text.shape).round(3), axis=-1)
    resident = rng.random(text.shape) < 0.5
    path = tmp_path / "a.route.csv"
    path.write_text(route_csv(text, weights, 5, [100, 100, 300], resident=resident))
    return SimpleNamespace(path=path, text=text, weights=weights, resident=resident)


class TestRouteTrace:
    def test_all_of_it_comes_back(self, phone_log):
        trace = load_routes(phone_log.path)
        expected = phone_log.text.copy()
        expected[:4, 2] = -1  # the last layer of the prompt's first tokens was not run
        assert same(trace, [expected])
        ran = expected >= 0
        assert np.array_equal(trace.weights[0][ran], phone_log.weights[ran].astype(np.float16))
        assert trace.num_experts == EXPERTS
        assert trace.meta["model"] == "My Model.gguf"
        assert trace.meta["expert_bytes"] == [100, 100, 300]
        assert trace.meta["prompt_tokens"] == [5]
        resident, read = residency(trace)
        assert np.array_equal(resident[0], phone_log.resident & ran)
        assert np.array_equal(read[0], ~phone_log.resident & ran)
        completion = load_routes(phone_log.path, part="completion")
        assert same(completion, [expected[5:]])
        assert np.array_equal(residency(completion)[0][0], phone_log.resident[5:])
        with pytest.raises(TraceError, match="does not say what was in a cache"):
            residency(trace.select(layers=[0]))

    def test_slots_are_sorted_by_weight(self, phone_log):
        text, weights = phone_log.text[:, :, ::-1], phone_log.weights[:, :, ::-1]
        resident = phone_log.resident[:, :, ::-1]
        phone_log.path.write_text(route_csv(text, weights, 5, [1, 1, 1], resident=resident))
        trace = load_routes(phone_log.path)
        assert np.array_equal(trace.experts[0, 5:], phone_log.text[5:])
        assert np.array_equal(residency(trace)[0][0, 5:], phone_log.resident[5:])
        assert trace.meta["expert_bytes"] == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t[:-4], "its last line is cut short"),
            (lambda t: t.rsplit("\n", 2)[0] + "\n", r"step 7: layer 2 lacks 1 of 2 slots"),
            (lambda t: t[: t.index("\nturn")], "has no rows: cut short"),
            (lambda t: t.replace("n_expert=16", "n_expert=4"), "expert is .*from 0 to 3"),
            (lambda t: t.replace("n_expert_used=2", ""), "do not give n_expert_used"),
            (lambda t: t.replace(",residency,", ",r,"), "has no column 'residency'"),
            (lambda t: t.replace("# layer=2", "# layer=3").replace("n_layer=3", "n_layer=4")
             .replace(",2,0,", ",3,0,").replace(",2,1,", ",3,1,")
             .replace("# layer=3", "# layer=2"), "layer 2 has experts of 300 bytes, but no rows"),
            (lambda t: t + t.splitlines()[-1] + "\n", "step 7: a slot of layer 2 twice"),
            (lambda t: "".join(x for x in t.splitlines(True) if ",6," not in x[3:6]),
             "step 6 is missing"),
            (lambda t: t.replace("0,1,7,2,1", "0,1,7,2,x"), "no number|cannot be read"),
            (lambda t: t.replace("layer=1 expert_bytes=100", "layer=x expert_bytes=1"), "comment"),
        ],
    )  # fmt: skip
    def test_damage_is_named(self, phone_log, change, message):
        text = phone_log.path.read_text()
        phone_log.path.write_text(change(text))
        with pytest.raises(TraceError, match=message) as caught:
            load_routes(phone_log.path)
        assert "\n" not in str(caught.value)

    def test_layers_without_experts_are_dense(self, phone_log):
        text = phone_log.path.read_text().replace("n_layer=3", "n_layer=4")
        phone_log.path.write_text(text)
        trace = load_routes(phone_log.path)
        assert trace.meta["layers"] == ["0", "1", "2"]
        assert trace.meta["expert_bytes"] == [100, 100, 300]

    @pytest.mark.parametrize(
        ("name", "shape", "prompt", "last", "hit_rate"),
        [
            ("qwen", (1, 156, 48, 6), 28, 1, 74.88),
            ("gemma", (1, 157, 30, 6), 29, 29, 76.78),
            ("gptoss", (1, 149, 36, 2), 85, 1, 32.41),
        ],
    )
    def test_the_real_ones(self, shared, name, shape, prompt, last, hit_rate):
        trace = load_routes(shared / "traces" / "phone" / f"{name}.route.csv")
        assert (trace.shape, trace.num_experts) == (shape, 128)
        assert trace.meta["prompt_tokens"] == [prompt]
        used = trace.experts[0] >= 0
        assert used[prompt - 1 :].all()
        assert used[:prompt, :-1].all()
        assert used[:prompt, -1].all(axis=-1).sum() == last
        # The hit rate that the device measured, of its own look-ups.
        resident, read = residency(trace)
        assert 100 * resident.sum() / (resident | read).sum() == pytest.approx(hit_rate, abs=0.005)


# --- ESFT -------------------------------------------------------------------------------------


def write_esft(folder, texts, weights):
    folder.mkdir(parents=True, exist_ok=True)
    for layer in range(texts[0].shape[1]):
        lines = [
            "\t".join([*map(str, t[:, layer].ravel()), "", *map(str, w[:, layer].ravel())])
            for t, w in zip(texts, weights, strict=True)
        ]
        (folder / f"expert_weights_{layer + 1}.txt").write_text("\n".join(lines) + "\n")


class TestEsft:
    @pytest.fixture
    def texts(self, tmp_path):
        texts = routing(layers=11)
        weights = [np.random.default_rng(3).random(t.shape).round(4) for t in texts]
        write_esft(tmp_path / "law", texts, weights)
        order = [np.argsort(-w.astype(np.float16), axis=-1, kind="stable") for w in weights]
        return [np.take_along_axis(t, o, -1) for t, o in zip(texts, order, strict=True)]

    def test_a_folder(self, tmp_path, texts):
        trace = load_routes(tmp_path / "law", top_k=2, num_experts=EXPERTS)
        assert same(trace, texts)
        assert (np.diff(trace.weights.astype(float), axis=-1) <= 0).all()

    def test_folders_are_datasets(self, tmp_path, texts):
        write_esft(tmp_path / "code", texts[:1], [np.full(texts[0].shape, 0.5)])
        trace = load_routes(tmp_path, top_k=2, num_experts=EXPERTS)
        assert same(trace, [texts[0], *texts])
        assert trace.datasets.tolist() == ["code", "law", "law"]

    def test_what_is_open_or_damaged_is_said(self, tmp_path, texts):
        options = {"top_k": 2, "num_experts": EXPERTS}
        with pytest.raises(TraceError, match="give top_k"):
            load_routes(tmp_path / "law", num_experts=EXPERTS)
        with pytest.raises(TraceError, match="line 1: its 14 ids make no whole tokens of top_k=3"):
            load_routes(tmp_path / "law", num_experts=EXPERTS, top_k=3)
        path = tmp_path / "law" / "expert_weights_3.txt"
        with pytest.raises(TraceError, match="give the folder"):
            load_routes(path, **options)
        whole = path.read_text()
        for text, message in {
            whole[:-30]: "line 2: has (8 ids, but|no empty field)",
            whole.splitlines()[0]: "expert_weights_3.txt has other texts",
            whole.replace("\t\t", "\tx\t\t"): "no number",
            "": "is empty",
        }.items():
            path.write_text(text)
            with pytest.raises(TraceError, match=message):
                load_routes(tmp_path / "law", **options)
        path.unlink()
        with pytest.raises(TraceError, match=r"expert_weights_3.txt is missing"):
            load_routes(tmp_path / "law", **options)

    def test_the_real_one_equals_its_npz(self, shared):
        folder = shared / "traces" / "deepseek-v2-lite"
        everything = load_routes(folder / "deepseek-v2-lite.npz")
        table = lrc.srp(everything)
        assert table["srp"].round(4).tolist() == [0.5434, 0.4162, 0.3538, 0.2996]
        law = everything.select(datasets="law")
        text = load_routes(folder / "raw", top_k=6, num_experts=64)
        width = text.shape[1]
        assert np.array_equal(text.experts, law.experts[:, :width])
        assert np.array_equal(text.weights, law.weights[:, :width])
        assert text.lengths.tolist() == law.lengths.tolist()
        assert text.dataset_names == ["law"]


# --- Files ------------------------------------------------------------------------------------


class TestFiles:
    def test_the_examples_of_the_docstring(self):
        test = doctest.DocTestFinder(recurse=False).find(
            load_routes, "load_routes", globs={"lrc": lrc}
        )
        assert doctest.DocTestRunner().run(test[0]) == (0, 1)

    def test_no_format(self, tmp_path):
        for content, message in {
            b"": "is empty",
            b"hello": "no format that is known; it must be one of 'vllm'",
            b"PAR1....": "lrc.load_trace reads traces",
            b'{"a": 1}': "no format that is known",
        }.items():
            (tmp_path / "x").write_bytes(content)
            with pytest.raises(TraceError, match=message):
                load_routes(tmp_path / "x")
        with pytest.raises(TraceError, match="no such file or folder"):
            load_routes(tmp_path / "y")
        (tmp_path / "folder").mkdir()
        with pytest.raises(TraceError, match="no format that is known"):
            load_routes(tmp_path / "folder")

    def test_a_header_that_declares_too_much_takes_no_memory(self, tmp_path):
        data = npy(routing()[0])
        huge = data.replace(b"(7, 3, 2)", b"(7000000, 3000, 2000)")
        length = struct.unpack("<H", huge[8:10])[0] + len(huge) - len(data)
        huge = huge[:8] + struct.pack("<H", length) + huge[10:]
        assert b"(7000000, 3000, 2000)" in huge
        (tmp_path / "a.npy").write_bytes(huge)
        with pytest.raises(TraceError, match="cut short or damaged: its header declares shape"):
            load_routes(tmp_path / "a.npy", num_experts=EXPERTS)
        response = {"choices": [{"routed_experts": text64(huge)}]}
        with pytest.raises(TraceError, match="cut short or damaged: its header declares shape"):
            load_routes(response, num_experts=EXPERTS)

    def test_cut_and_damaged_archives(self, tmp_path):
        path = tmp_path / "a.npz"
        np.savez_compressed(path, expert_ids=routing([200])[0])
        whole = path.read_bytes()
        for content in (whole[:-30], whole[:150] + bytes(40) + whole[190:]):
            path.write_bytes(content)
            with pytest.raises(TraceError) as caught:
                load_routes(path, num_experts=EXPERTS)
            assert "\n" not in str(caught.value)

    def test_no_pickle_is_loaded(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([{}, {}]))
        with pytest.raises(TraceError, match="Python objects, which are never loaded"):
            load_routes(tmp_path / "a.npy", num_experts=EXPERTS)
        torch = pytest.importorskip("torch")
        torch.save({"routed_experts": SimpleNamespace()}, tmp_path / "a.pt")
        with pytest.raises(TraceError, match="more than tensors in it"):
            load_routes(tmp_path / "a.pt", num_experts=EXPERTS)

    def test_a_tensor_that_repeats_itself_takes_no_memory(self, tmp_path):
        torch = pytest.importorskip("torch")
        torch.save(torch.zeros(1, dtype=torch.int32).expand(10**6, 10**3, 8), tmp_path / "a.pt")
        with pytest.raises(TraceError, match="declares more than it stores"):
            load_routes(tmp_path / "a.pt", num_experts=EXPERTS)


# --- Whatever a file holds --------------------------------------------------------------------


def small_logs(folder):
    """One file of each format, and the options it takes."""
    torch = pytest.importorskip("torch")
    texts = routing()
    np.save(folder / "a.npy", texts[0])
    np.savez_compressed(folder / "a.npz", expert_ids=texts[0], num_experts=EXPERTS)
    (folder / "vllm.jsonl").write_text("\n".join(json.dumps(vllm_response(t)) for t in texts))
    (folder / "sglang.json").write_text(json.dumps([sglang_response(t) for t in texts]))
    dump = busy_hour().dump()
    for record in dump["records"]:
        record["topk_ids_of_layer"] = torch.from_numpy(record["topk_ids_of_layer"])
    torch.save({"records": dump["records"]}, folder / "recorder.pt")
    ones = np.ones(texts[0].shape)
    csv = route_csv(texts[0], ones, 5, [100, 100, 300], resident=ones > 0)
    (folder / "a.csv").write_text(csv)
    return sorted(folder.iterdir())


@settings(max_examples=300)
@given(st.data())
def test_damaged_files_end_in_one_line_or_in_a_trace(tmp_path_factory, data):
    """Bytes cut off, changed or thrown in: nothing but a `TraceError` of one line comes out."""
    folder = tmp_path_factory.mktemp("logs")
    path = data.draw(st.sampled_from(small_logs(folder)), label="file")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3), label="faults")):
        place = data.draw(st.integers(0, len(content) - 1), label="place")
        kind = data.draw(st.sampled_from(["cut", "change", "insert"]), label="fault")
        if kind == "cut":
            del content[max(place, 1) :]
        elif kind == "change":
            content[place] = data.draw(st.integers(0, 255), label="byte")
        else:
            content[place:place] = data.draw(st.binary(max_size=4), label="bytes")
    path.write_bytes(content)
    message = ""
    try:
        load_routes(path, num_experts=EXPERTS, num_layers=3)
    except TraceError as error:
        message = str(error)
    assert "\n" not in message


def parsed_logs():
    """What a parsed log of each format is, and the format."""
    text = routing()[0]
    vllm = vllm_response(text, prompt_token_ids=[1, 2, 3])
    vllm["choices"][0]["token_ids"] = [4] * 5
    split = {
        "prompt_routed_experts": text[:3].tolist(),
        "choices": [{"routed_experts": text[3:].tolist()}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    }
    sglang = sglang_response(text, output_ids=[4] * 5)
    openai = {
        "choices": [{"sgl_ext": {"routed_experts": sglang["meta_info"]["routed_experts"]}}],
        "usage": split["usage"],
    }
    arrays = {
        "routed_experts": text[None],
        "attention_mask": np.ones((1, 7), int),
        "input_ids": np.zeros((1, 7), int),
        "dataset": ["a"],
        "num_experts": EXPERTS,
        "prompts": np.zeros((1, 3), int),
    }
    return [
        (vllm, "vllm"),
        (split, "vllm"),
        (sglang, "sglang"),
        (openai, "sglang"),
        (busy_hour().dump(), "sglang-recorder"),
        (arrays, "array"),
    ]


def nodes(value, path=()):
    """Places in nested lists and dicts."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from nodes(value[key], (*path, key))


STRANGE = [None, 5, -1, "", "x", [], {}, [1], [[1]], [None], {"a": 1}, 3.5, True, 10**30]


@settings(max_examples=300)
@given(st.data())
def test_strange_values_end_in_one_line_or_in_a_trace(data):
    """Any value of a parsed log replaced by one of another kind."""
    log, format = data.draw(st.sampled_from(parsed_logs()), label="log")
    *path, last = data.draw(st.sampled_from(list(nodes(log))[1:]), label="place")
    holder = log
    for key in path:
        holder = holder[key]
    holder[last] = data.draw(st.sampled_from(STRANGE), label="value")
    message = ""
    try:
        load_routes(log, format=format, num_experts=EXPERTS, num_layers=3)
    except TraceError as error:
        message = str(error)
    assert "\n" not in message
