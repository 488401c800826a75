"""Every MoE architecture of the installed transformers: what is recorded is what ran.

The ground truth is in `every_architecture`, the models are in `tiny_models`.
"""

import csv

import numpy as np
import pytest
import torch
from every_architecture import (
    HEADINGS,
    TABLE,
    Row,
    executed_experts,
    folders_with_experts,
    inputs_for,
    is_exact,
    measure,
    recorded,
    used,
)
from tiny_models import ARCHITECTURES, NO_LANGUAGE_MODEL, class_of, tiny_model

import lrc

REFUSED = ("nllb_moe",)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_no_architecture_is_left_out():
    """A transformers that has another one fails here: then give it a line, or a reason."""
    assert folders_with_experts() == {*ARCHITECTURES, *NO_LANGUAGE_MODEL}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_recorded_experts_are_those_executed(name):
    row = measure(name)
    if name in REFUSED:
        assert row.result.startswith("refused: ")
    else:
        assert row.result == "exact"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_plain_top_k_would_be_wrong_where_a_bias_or_groups_select(name):
    """So that being exact says something: these are the majority."""
    row = measure(name)
    if row.selection not in ("", "scores"):
        assert float(row.plain_share.rstrip("%")) < 75


def test_table_is_up_to_date():
    """Else run ``python tests/every_architecture.py`` and look at what changed."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        heading, *lines = csv.reader(file)
    assert heading == list(HEADINGS.values())
    written = [Row(*line) for line in lines]
    assert [row.architecture for row in written] == list(ARCHITECTURES)
    for old in written:
        new = measure(old.architecture)
        # A share depends on the processor, where scores nearly tie.
        assert vars(old) | {"plain_share": ""} == vars(new) | {"plain_share": ""}
        if old.plain_share:
            assert float(old.plain_share[:-1]) == pytest.approx(float(new.plain_share[:-1]), abs=10)


@pytest.mark.parametrize(
    ("name", "moe_layers", "shared_experts"),
    [
        ("mixtral", [0, 1, 2], 0),
        ("qwen2_moe", [1, 2], 2),
        ("deepseek_v3", [1, 2], 1),
        ("jamba", [1], 0),
    ],
)
def test_layers_and_shared_experts(name, moe_layers, shared_experts):
    (trace,) = recorded(tiny_model(name))
    assert [int(layer.split(".")[2]) for layer in trace.meta["layers"]] == moe_layers
    assert trace.meta["shared_experts"] == shared_experts


# --- what -1 stands for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [("longcat_flash", "identity"), ("zaya", "skipped"), ("switch_transformers", "dropped")],
)
def test_tokens_without_an_expert(name, reason):
    """Some slots run no expert of their own, and these are exactly the -1."""
    model = tiny_model(name)
    for trace in recorded(model):
        assert trace.meta["no_expert"].startswith(reason)
        assert (trace.experts == -1).any()
        assert (trace.experts >= 0).any()
        assert is_exact(model, trace)


def test_modalities_have_experts_of_their_own():
    model = tiny_model("ernie4_5_vl_moe")
    inputs = inputs_for(model)
    kinds = torch.zeros_like(inputs["input_ids"])
    kinds[:, 3:7] = 1
    inputs["moe_mm_token_type_ids"] = kinds
    (trace,) = recorded(model, **inputs)
    assert [name.split(".")[-1] for name in trace.meta["layers"]] == ["text_moe", "vision_moe"] * 2
    assert is_exact(model, trace, **inputs)
    vision = trace.experts[:, :, 1::2]
    np.testing.assert_array_equal((vision >= 0).all(axis=(2, 3)), kinds == 1)
    np.testing.assert_array_equal((trace.experts[:, :, ::2] >= 0).all(axis=(2, 3)), kinds == 0)
    with lrc.Recorder(model) as recorder, torch.no_grad():
        model(**inputs)
        model(**inputs_for(model, seed=1))
    only_text = recorder.trace().experts[3:]
    assert (only_text[:, :, 1::2] == -1).all()
    assert (only_text[:, :, ::2] >= 0).all()


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "glm4v_moe"])
def test_an_image_among_the_text(name):
    """Its patches are tokens as any other to the experts of the text model."""
    model = tiny_model(name)
    vision = model.config.vision_config
    inputs = inputs_for(model, size=1)
    grid = torch.tensor([[1, 4, 4]])
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    model.config.image_token_id = 95
    model.model.config.image_token_id = 95
    inputs["input_ids"][0, 5 : 5 + 16 // vision.spatial_merge_size**2] = 95
    inputs |= {
        "pixel_values": torch.randn(16, width, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": grid,
        "mm_token_type_ids": (inputs["input_ids"] == 95).int(),
    }
    (trace,) = recorded(model, **inputs)
    assert trace.lengths.tolist() == [14]
    assert is_exact(model, trace, **inputs)
    (without,) = recorded(model, **inputs_for(model, size=1))
    assert not np.array_equal(used(trace), used(without)), "the image must matter"


# --- in other numbers and by other kernels -------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["deepseek_v3", "dbrx", "jetmoe", "llama4", "zaya", "longcat_flash"]
)
def test_in_bfloat16_and_with_padding(name):
    model = tiny_model(name).bfloat16()
    inputs = inputs_for(model)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, 9:] = 0
    inputs["attention_mask"] = mask
    (trace,) = recorded(model, **inputs)
    assert trace.lengths.tolist() == [14, 9, 14]
    truth = executed_experts(model, trace.meta["layers"], inputs)
    rows = mask.flatten().bool().numpy()
    np.testing.assert_array_equal(used(trace)[:, rows], truth[:, rows])
    assert not used(trace)[:, ~rows].any()


def test_every_architecture_is_built_with_a_class_of_its_own():
    assert len({class_of(name) for name in ARCHITECTURES}) == len(ARCHITECTURES)
