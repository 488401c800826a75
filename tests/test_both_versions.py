"""What recording promises, on architectures that transformers 4 and 5 write differently."""

import numpy as np
import pytest
import torch
from ground_truth import executed_experts, used
from tiny_models import random_tokens, tiny_model

import lrc

NAMES = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "phimoe",
    "granitemoe",
    "jamba",
]

pytestmark = pytest.mark.usefixtures("one_thread")


def record(model, **inputs):
    with lrc.Recorder(model) as recorder, torch.no_grad():
        model(**inputs)
    return recorder.trace()


def sets(experts):
    return np.sort(experts, axis=-1)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_bfloat16(name):
    changes = {"use_mamba_kernels": False} if name == "jamba" else {}
    model = tiny_model(name, dtype=torch.bfloat16, **changes)
    tokens = random_tokens(3, 9)
    mask = torch.ones_like(tokens)
    mask[1, 6:], mask[2, 2:] = 0, 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    trace = record(model, **inputs)
    assert trace.lengths.tolist() == [9, 6, 2]
    truth = executed_experts(model, trace.meta["layers"], inputs, trace.num_experts)
    valid = mask.flatten().bool().numpy()
    np.testing.assert_array_equal(used(trace)[:, valid], truth[:, valid])


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "granitemoe"])
def test_generation_is_recorded_like_the_finished_text(name):
    model = tiny_model(name)
    tokens = random_tokens(2, 5)
    with lrc.Recorder(model) as recorder:
        text = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
        )
    whole = record(model, input_ids=text[:, :-1])
    trace = recorder.trace()
    assert trace.lengths.tolist() == [8, 8]
    np.testing.assert_array_equal(sets(trace.experts), sets(whole.experts))
    np.testing.assert_array_equal(trace.token_ids, whole.token_ids)
