"""Files of models without a class in transformers, loaded into native classes: the same numbers."""

import json

import numpy as np
import pytest
import torch
import transformers
from paper_shapes import CONVERTED, VOCABULARY, configuration
from plain_models import logits_and_experts, random_weights
from safetensors.torch import save_file
from transformers import MixtralForCausalLM

import lrc

RECENT = int(transformers.__version__.split(".")[0]) >= 5
LENGTH = 12
# JetMoE's own numbers are those of the native class; see test_paper_models.
PLAIN = [
    name for name in CONVERTED if not name.startswith("jetmoe") and (RECENT or name != "minicpm")
]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def write(folder, config, weights, shards=2):
    """Write the files of a checkpoint as its publisher did."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    files = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in list(weights)[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def difference(folder, config, weights, **options):
    """Largest difference of the logits, relative to the largest; and whether experts are equal."""
    tokens = torch.randint(3, VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(1))
    expected, experts = logits_and_experts(config, weights, tokens.tolist())
    model, _ = lrc.load_model(folder, device="cpu", **options)
    with lrc.Recorder(model) as recorder, torch.no_grad():
        logits = model(tokens[None], attention_mask=torch.ones(1, LENGTH)).logits[0]
    trace = recorder.trace()
    used = [[set(token.tolist()) for token in layer] for layer in trace.experts[0].swapaxes(0, 1)]
    return ((logits - expected).abs().max() / expected.abs().max()).item(), used == experts


@pytest.fixture(scope="module", params=PLAIN)
def checkpoint(request, tmp_path_factory):
    config = configuration(request.param)
    weights = random_weights(config)
    return write(tmp_path_factory.mktemp(request.param), config, weights), config, weights


def test_converted_model_computes_the_same(checkpoint):
    error, same_experts = difference(*checkpoint)
    assert error < 1e-5
    assert same_experts


def test_llama_moe_v2_is_not_the_mixtral_it_claims_to_be(tmp_path):
    """The trap: transformers loads it without complaint, and wrongly."""
    config = configuration("llamamoe2")
    weights = random_weights(config)
    write(tmp_path, config, weights)
    tokens = torch.arange(3, 3 + LENGTH)[None]
    ours, _ = lrc.load_model(tmp_path, device="cpu")
    theirs = MixtralForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        difference = ours(tokens).logits - theirs(tokens).logits
    assert difference.abs().max() > 0.1


def test_xverse_routes_in_float32(tmp_path):
    config = configuration("xverse")
    write(tmp_path, config, random_weights(config))
    model, _ = lrc.load_model(tmp_path, device="cpu", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    seen = {}
    gates = {name: part for name, part in model.named_modules() if name.endswith(".mlp.gate")}
    for name in gates:
        block = model.get_submodule(name.removesuffix(".gate"))
        block.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    tokens = torch.randint(3, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    with lrc.Recorder(model) as recorder, torch.no_grad():
        model(tokens)
    recorded = np.sort(recorder.trace().experts.reshape(4 * LENGTH, len(gates), -1), axis=-1)
    changed = 0
    for layer, (name, gate) in enumerate(gates.items()):
        x, weight = seen[name].flatten(0, 1), gate.weight
        expected = (x.double() @ weight.double().T).topk(6).indices.sort().values
        narrow = torch.nn.functional.linear(x, weight.bfloat16()).topk(6).indices.sort().values
        assert (recorded[:, layer] == expected.numpy()).all()
        changed += (narrow != expected).any(dim=-1).sum()
    assert changed > 0, "bfloat16 would have chosen otherwise somewhere"


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("llamamoe2", "use_attn_moe", True),
        ("llamamoe2", "moe_type", "megablocks"),
        ("llamamoe2", "num_moe_contract_layers", 2),
        ("llamamoe2s", "add_rescale_bias", True),
        ("deepseek", "scoring_func", "sigmoid"),
        ("deepseek", "n_shared_experts", None),
        ("deepseek", "rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("grin", "num_experts_per_tok", 4),
        ("jetmoe", "glu", False),
    ],
)
def test_variants_that_nobody_compared_are_refused(tmp_path, model, field, value):
    write(tmp_path, configuration(model) | {field: value}, {"nothing": torch.zeros(1)}, shards=1)
    with pytest.raises(lrc.ModelError, match="is a variant that lrc cannot load") as error:
        lrc.load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not RECENT, reason="converted on transformers 5 only")
def test_missing_weights_are_not_made_up(tmp_path):
    for model, part in (("deepseek", ".experts.63.up_proj."), ("minicpm", ".experts.7.w3.")):
        config = configuration(model)
        weights = random_weights(config)
        write(
            tmp_path / model,
            config,
            {name: weight for name, weight in weights.items() if part not in name},
        )
        with pytest.raises(lrc.ModelError):
            lrc.load_model(tmp_path / model)


def test_weights_that_are_not_in_memory_cannot_be_converted(tmp_path):
    config = configuration("llamamoe2")
    write(tmp_path / "model", config, random_weights(config))
    devices = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    devices |= {"model.layers": "disk", "model.rotary_emb": "cpu"}
    with pytest.raises(lrc.ModelError, match="give a device_map that offloads nothing"):
        lrc.load_model(
            tmp_path / "model", device_map=devices, offload_folder=str(tmp_path / "offload")
        )
