"""The paper's twenty models and seven variants: built in their real shapes, loaded, traced."""

import json

import numpy as np
import paper_models_page
import pytest
import torch
import transformers
from ground_truth import executed_experts, used
from paper_shapes import CONVERTED, NATIVE, VOCABULARY, configuration
from transformers import CONFIG_MAPPING

import lrc
from lrc.models import paper_models

RECENT = int(transformers.__version__.split(".")[0]) >= 5
ROUTE = "transformers_5" if RECENT else "transformers_4"
TABLE = paper_models().set_index("model")
VARIANTS = {
    "llamamoe": {"llamamoes"},
    "llamamoe2": {"llamamoe2s"},
    "olmoe": {"olmoesft", "olmoedpo", "olmoeins"},
    "jetmoe": {"jetmoesft", "jetmoechat"},
}
# Their configurations are those of the models that they were trained from.
SAME = {"olmoesft": "olmoe", "olmoedpo": "olmoe", "jetmoesft": "jetmoe", "llamamoes": "llamamoe"}

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def test_registry_holds_the_published_models():
    table = paper_models()
    published = lrc.published.table("models")
    assert table["model"].tolist() == published["key"].tolist()
    assert table["main"].sum() == 20
    assert set(table.loc[~table["main"], "model"]) == set.union(*VARIANTS.values())
    assert table["hub_id"].str.fullmatch(r"[\w-]+/[\w.-]+").all()
    assert table["hub_id"].is_unique
    assert set(table["transformers_5"]) <= {"native", "converted", "refused"}
    assert set(table["transformers_4"]) <= {"native", "converted", "own code"}
    plain = (table["transformers_5"] == "native") & (table["transformers_4"] == "native")
    assert (plain == (table["reason"] == "")).all()
    no_class = (table["transformers_5"] == "refused") & (table["transformers_4"] == "own code")
    assert (no_class == table["native_class"].isna()).all()


def test_every_model_is_tested():
    """Here, in test_conversions, or (own code, transformers 4) in test_own_code."""
    assert set(NATIVE) == set(TABLE.index[TABLE["transformers_4"] == "native"])
    converted = TABLE["transformers_5"] == "converted"
    assert set(CONVERTED) == set(TABLE.index[converted])


def test_variants_of_the_same_shape():
    for variant, base in SAME.items():
        if base in NATIVE or base in CONVERTED:
            assert configuration(variant) == configuration(base)
        shape = ["layers", "moe_layers", "experts", "top_k", "shared_experts", "native_class"]
        assert TABLE.loc[variant, shape].equals(TABLE.loc[base, shape])


def save(model, folder):
    """Build the tiny model from its configuration and write it as save_pretrained does."""
    fields = configuration(model)
    config = CONFIG_MAPPING[fields["model_type"]](**fields)
    name = TABLE.loc[model, "native_class"]
    torch.manual_seed(0)
    built = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, tensor in built.named_parameters():
            if tensor.ndim > 1 and "A_log" not in parameter_name:
                tensor.normal_(0, 0.2, generator=generator)  # Routing decisions are clear.
    built.eval().save_pretrained(folder)
    for module in built.modules():
        if hasattr(module, "use_fast_kernels"):
            module.use_fast_kernels = False  # transformers 4 has no kernels for a CPU.
    return built


def inputs_for(model):
    tokens = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    if not model.config.is_encoder_decoder:
        return {"input_ids": tokens}
    return {"input_ids": tokens, "decoder_input_ids": tokens.flip(-1)[:, :5]}


def check(folder, name):
    """Load a folder, trace it, and compare with the published shape and with what was executed."""
    model, _ = lrc.load_model(folder, device="cpu")
    row = TABLE.loc[name]
    assert type(model).__name__.removeprefix("MiniCPMMoe") in row.native_class
    inputs = inputs_for(model)
    with lrc.Recorder(model) as recorder, torch.no_grad():
        logits = model(**inputs).logits
    trace = recorder.trace()
    stacks = list(trace.values()) if isinstance(trace, dict) else [trace]
    assert sum(stack.num_layers for stack in stacks) == row.moe_layers
    for stack in stacks:
        assert (stack.num_experts, stack.experts.shape[-1]) == (row.experts, row.top_k)
        assert stack.meta["shared_experts"] == row.shared_experts
        truth = executed_experts(model, stack.meta["layers"], inputs, row.experts)
        assert truth.any(axis=(1, 2)).all()
        np.testing.assert_array_equal(used(stack), truth)
    return model, logits


NATIVE_HERE = [name for name in NATIVE if TABLE.loc[name, ROUTE] == "native" and name not in SAME]


@pytest.mark.parametrize("name", NATIVE_HERE)
def test_native_model_of_the_real_shape(name, tmp_path):
    built = save(name, tmp_path)
    model, logits = check(tmp_path, name)
    assert type(model) is type(built)
    with torch.no_grad():
        expected = built(**inputs_for(built)).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["jetmoe", "jetmoechat"])
def test_older_files_of_jetmoe(name, tmp_path):
    """Weights have the native names; the configuration has older ones."""
    fields = configuration(name)
    names = {"ffn_hidden_size": "intermediate_size", "n_layer": "num_hidden_layers"}
    names |= {"moe_num_experts": "num_local_experts", "moe_top_k": "num_experts_per_tok"}
    names |= {"n_embd": "hidden_size", "n_head": "num_key_value_heads"}
    fields = {names.get(key, key): value for key, value in fields.items()}
    fields.pop("num_attention_heads", None)
    torch.manual_seed(0)
    built = transformers.JetMoeForCausalLM(transformers.JetMoeConfig(**fields)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    built.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(configuration(name)))
    model, logits = check(tmp_path, name)
    assert len(model.model.layers) == TABLE.loc[name, "layers"] == 24
    with torch.no_grad():
        expected = built(**inputs_for(built)).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_page_of_the_book_is_up_to_date():
    text = paper_models_page.PAGE.read_text(encoding="utf-8")
    assert text == paper_models_page.page(), "run: python tests/paper_models_page.py"
