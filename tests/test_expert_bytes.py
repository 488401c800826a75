"""Bytes of an expert, from configurations and from published numbers."""

import json

import pytest
from transformers import Qwen3MoeConfig, SwitchTransformersConfig

import lrc
from lrc import expert_bytes, published

# Hidden size, width of an expert, and matrices, of the published configurations.
SHAPES = {
    "powermoe": (1536, 512, 3),
    "llamamoe": (4096, 688, 3),
    "olmoe": (2048, 1024, 3),
    "switch": (768, 3072, 2),
    "llamamoe2": (4096, 1792, 3),
    "minicpm": (2304, 5760, 3),
    "qwen": (2048, 1408, 3),
    "deepseek2": (2048, 1408, 3),
    "deepseek": (2048, 1408, 3),
    "xverse": (2560, 1728, 3),
    "qwen3": (2048, 768, 3),
    "yuan": (2048, 8192, 3),
    "phi": (4096, 6400, 3),
    "grin": (4096, 6400, 3),
    "mixtral": (4096, 14336, 3),
    "jamba": (4096, 14336, 3),
    "nllb": (2048, 8192, 2),
    "qwen2": (3584, 2560, 3),
}
TOO_LARGE = {"jetmoe": (2048, 5632, 3), "openmoe": (2048, 8192, 3)}


def test_every_published_model_has_experts_of_its_shape():
    models = published.table("models")
    assert set(models.loc[models["main"] == 1, "key"]) == {*SHAPES, *TOO_LARGE}
    for model, (hidden, width, matrices) in SHAPES.items():
        found = expert_bytes.of_published(model)
        assert found.parameters[0] == pytest.approx(hidden * width * matrices, rel=0.01), model
    for model, (hidden, width, matrices) in TOO_LARGE.items():
        found = expert_bytes.of_published(model).parameters[0]
        assert 1.2 < found / (hidden * width * matrices) < 1.4


def test_a_stack_has_half_of_the_layers():
    assert len(expert_bytes.of_published("nllb").parameters) == 12
    assert len(expert_bytes.of_published("nllb decoder").parameters) == 6


@pytest.mark.parametrize("place", ["folder", "file", "renamed"])
def test_a_configuration_tells_without_weights(tmp_path, place):
    config = Qwen3MoeConfig(
        hidden_size=2048, moe_intermediate_size=768, num_hidden_layers=5, num_experts=128,
        num_experts_per_tok=8, num_attention_heads=4, num_key_value_heads=4, mlp_only_layers=[0],
        architectures=["Qwen3MoeForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    source = tmp_path
    if place == "file":
        source = tmp_path / "config.json"
    elif place == "renamed":
        source = (tmp_path / "config.json").rename(tmp_path / "qwen3.json")
    found = expert_bytes.of_config(source)
    assert found == ((3 * 2048 * 768,) * 4, 128, 8, 16.0)
    assert found.num_bytes() == [2 * 3 * 2048 * 768] * 4
    assert found.num_bytes(4.5) == [round(4.5 / 8 * 3 * 2048 * 768)] * 4


def test_the_toys_say_what_their_traces_say():
    found = expert_bytes.of_config("toy:baseline")
    assert found.num_bytes() == [lrc.toys.load_trace("baseline").meta["expert_bytes"]] * 4


def test_two_stacks(tmp_path):
    SwitchTransformersConfig(
        d_model=64, d_ff=128, num_layers=4, num_decoder_layers=4, num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=1, num_experts=8, num_heads=2, d_kv=8, vocab_size=99,
        architectures=["SwitchTransformersForConditionalGeneration"],
    ).save_pretrained(tmp_path)  # fmt: skip
    found = expert_bytes.of_config(tmp_path)
    assert found.parameters == (2 * 64 * 128,) * 3
    assert found.num_experts == 8


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere/at/all", "no such folder"),
        ("toy:nobody", "no toy model named 'nobody'"),
        ("llama.json", "has no MoE layer"),
        ("broken.json", "cannot be loaded"),
    ],
)
def test_sources_that_tell_nothing(tmp_path, monkeypatch, source, says):
    monkeypatch.chdir(tmp_path)
    small = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    small |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    (tmp_path / "llama.json").write_text(json.dumps(small))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(lrc.LrcError, match=says) as caught:
        expert_bytes.of_config(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["gpt5", "olmoe decoder", "olmoesft", ""])
def test_models_that_are_not_published(model):
    with pytest.raises(lrc.LrcError, match="choose from powermoe"):
        expert_bytes.of_published(model)


@pytest.mark.parametrize("bits", [0, -4, 65, float("nan"), "4", True])
def test_bits_that_cannot_be(bits):
    with pytest.raises(lrc.LrcError, match="bits is"):
        expert_bytes.of_published("olmoe").num_bytes(bits)
