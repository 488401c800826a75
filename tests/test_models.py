"""Loading models: toys, folders and hub names, and one clear line for whatever is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from paper_shapes import configuration
from tiny_models import random_tokens, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import lrc
from lrc import toys

RECENT = int(transformers.__version__.split(".")[0]) >= 5

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a tiny model with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-moe"
    tiny_model("qwen2_moe").save_pretrained(folder)
    words = {word: i for i, word in enumerate(["<pad>", "local", "routing", "<unk>"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def message(name, **options):
    with pytest.raises(lrc.ModelError) as error:
        lrc.load_model(name, **options)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith((str(name), repr(str(name)), "toy"))
    return text


def test_local_folder(saved, capfd):
    model, tokenizer = lrc.load_model(saved)
    assert not model.training
    assert model.dtype == torch.float32
    assert all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    batch = tokenizer(["local routing", "routing"], return_tensors="pt", padding=True)
    trace = lrc.record(model, [dict(batch)], progress=False)
    assert trace.lengths.tolist() == [2, 1]
    assert trace.meta["model"] == "tiny-moe", "not the path: it would tell where the user works"
    tokens = random_tokens(1, 6)
    original = lrc.record(tiny_model("qwen2_moe"), tokens, progress=False)
    assert (lrc.record(model, tokens, progress=False).experts == original.experts).all()
    assert capfd.readouterr() == ("", "")


def test_result_has_names(saved):
    loaded = lrc.load_model(str(saved))
    assert loaded.model is loaded[0]
    assert loaded.tokenizer is loaded[1]


def test_dtype_device_and_options(saved):
    for dtype in ("bfloat16", torch.bfloat16):
        model, _ = lrc.load_model(saved, dtype=dtype, device="cpu", attn_implementation="eager")
        assert model.dtype == torch.bfloat16
        assert model.config._attn_implementation == "eager"


@pytest.mark.skipif(RECENT, reason="what transformers 5 writes, read by 4")
def test_files_of_transformers_5(copied):
    path = copied / "config.json"
    fields = json.loads(path.read_text())
    fields.pop("rope_theta", None)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    for rope in ({"rope_type": "default", "rope_theta": 500.0}, scaled):
        path.write_text(json.dumps(fields | {"rope_parameters": rope}))
        edit = json.loads((copied / "tokenizer_config.json").read_text())
        edit["tokenizer_class"] = "TokenizersBackend"
        (copied / "tokenizer_config.json").write_text(json.dumps(edit))
        model, tokenizer = lrc.load_model(copied)
        expected = 500.0 ** -(torch.arange(0, 16, 2) / 16) / rope.get("factor", 1)
        torch.testing.assert_close(model.model.rotary_emb.inv_freq.cpu(), expected)
        assert tokenizer("local").input_ids == [1]


def test_folder_without_tokenizer(copied):
    for file in copied.glob("tokenizer*"):
        file.unlink()
    assert lrc.load_model(copied).tokenizer is None


def test_toy(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "baseline")
    monkeypatch.setattr(toys, "DATA", tmp_path)
    model, _ = lrc.load_model("toy:baseline")
    trace = lrc.record(model, random_tokens(1, 4), progress=False)
    assert trace.meta["model"] == "toy:baseline"


def test_shipped_toy():
    model, tokenizer = lrc.load_model("toy:baseline")
    batch = tokenizer(["def route(token):"], return_tensors="pt")
    trace = lrc.record(model, [dict(batch)], progress=False)
    assert trace.shape[2:] == (4, 8)
    assert trace.num_experts == 64


def test_unknown_toy():
    with pytest.raises(lrc.LrcError, match="baseline"):
        lrc.load_model("toy:nonesuch")


def test_folder_without_config(tmp_path):
    assert "folder has no config.json" in message(tmp_path)


def test_file_instead_of_folder(saved):
    assert "is a file" in message(saved / "config.json")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "a/b/c", ""])
def test_missing_folder(name):
    assert "no such folder" in message(name)


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = message("allenai/no-such-model-in-any-cache")
    assert "out of reach" in text
    assert "HF_HUB_OFFLINE" in text
    assert "local folder" in text


def test_dense_model(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    config = LlamaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert "LlamaForCausalLM has no MoE layer" in message(tmp_path)


def test_unknown_architecture(copied):
    edit_config(copied, model_type="gpt_eleven", architectures=["GptEleven"])
    text = message(copied)
    assert f"transformers {transformers.__version__} does not know this architecture" in text


def test_class_without_language_model(copied):
    edit_config(copied, model_type="vit")
    assert "no language model class" in message(copied)


def test_broken_config(copied):
    (copied / "config.json").write_text("{")
    assert "cannot be loaded" in message(copied)


def test_pickled_weights_are_not_read(copied):
    weights = tiny_model("qwen2_moe").state_dict()
    torch.save(weights, copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert "no safetensors weights" in message(copied)


def test_missing_weights_are_not_made_up(copied):
    edit_config(copied, num_hidden_layers=4, layer_types=["full_attention"] * 4)
    assert "weights are missing in its files, such as model.layers.3." in message(copied)


@pytest.mark.skipif(not RECENT, reason="transformers 4 does not look")
def test_config_that_contradicts_itself(copied):
    edit_config(copied, num_hidden_layers=4)
    assert "cannot be loaded" in message(copied)


def test_weights_of_another_shape(copied):
    edit_config(copied, moe_intermediate_size=24)
    assert "have another shape in its files, such as model.layers.1.mlp" in message(copied)


def test_truncated_weights(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be loaded" in message(copied)


@pytest.mark.skipif(not RECENT, reason="it runs there")
def test_code_for_transformers_4_is_refused(copied):
    (copied / "modeling_old.py").write_text("raise AssertionError('must not run')")
    auto_map = {"AutoModelForCausalLM": "modeling_old.OldModel"}
    edit_config(copied, auto_map=auto_map, transformers_version="4.40.0")
    text = message(copied, trust_remote_code=True)
    assert "transformers 4.57" in text
    assert "trust_remote_code=False" in text
    assert lrc.load_model(copied).model.config.model_type == "qwen2_moe"


def test_code_of_the_repository(copied):
    """It runs if it is trusted, the same each time."""
    source = "from transformers import Qwen2MoeForCausalLM\n\n\nclass Own(Qwen2MoeForCausalLM):\n"
    (copied / "modeling_own.py").write_text(source + "    pass\n")
    edit_config(copied, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    for _ in range(2):
        assert type(lrc.load_model(copied, trust_remote_code=True).model).__name__ == "Own"
    assert type(lrc.load_model(copied).model).__name__ == "Qwen2MoeForCausalLM"


def test_code_is_of_the_revision(monkeypatch):
    """Who pins a commit runs the code of that commit, also before any weights are fetched."""
    config = transformers.PretrainedConfig(
        auto_map={"AutoModelForCausalLM": "owner/model--modeling.Own"},
        transformers_version="5.1.0",
    )
    fetched = []

    def file(*names, **options):
        fetched.append((names, options["revision"]))
        raise OSError("not there")

    monkeypatch.setattr(lrc.models, "_fields", lambda *_: config.to_dict())
    monkeypatch.setattr(lrc.models, "_config", lambda *_: config)
    monkeypatch.setattr("transformers.dynamic_module_utils.cached_file", file)
    with pytest.raises(lrc.ModelError):
        lrc.load_model("owner/model", trust_remote_code=True, revision="0123abc")
    assert fetched == [(("owner/model", "modeling.py"), "0123abc")]


def test_chatter_is_as_before(saved):
    logger = transformers.logging
    before = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity_info()
    lrc.load_model(saved)
    assert logger.get_verbosity() == logger.INFO
    logger.set_verbosity(before[0])
    assert logger.is_progress_bar_enabled() == before[1]


def bare(folder, **config):
    """A repository of which only the configuration is looked at."""
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not RECENT, reason="runs rightly on transformers 4")
def test_nllb_is_refused_where_it_runs_wrongly(tmp_path):
    text = message(bare(tmp_path, model_type="nllb-moe", architectures=["NllbMoeModel"]))
    assert "every token uses experts 0 and 1; install transformers 4.57" in text


@pytest.mark.skipif(not RECENT, reason="runs rightly on transformers 4")
def test_nllb_still_runs_wrongly():
    """When this fails, transformers was mended and the refusal can go."""
    config = transformers.NllbMoeConfig(
        **{"d_model": 16, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 50},
        **{"encoder_layers": 1, "decoder_layers": 1, "encoder_sparse_step": 1, "num_experts": 8},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "expert_capacity": 64},
    )
    model = transformers.NllbMoeForConditionalGeneration(config).eval()
    used = set()
    for number, expert in enumerate(model.model.encoder.layers[0].ffn.experts.values()):
        expert.register_forward_hook(lambda *_, number=number: used.add(number))
    with torch.no_grad():
        model(torch.arange(5, 45)[None], decoder_input_ids=torch.tensor([[2]]))
    assert used == {0, 1}


@pytest.mark.parametrize("kind", ["llama_moe", "openmoe", "yuan"])
def test_models_that_need_their_own_code(tmp_path, kind):
    auto_map = {"AutoModelForCausalLM": "modeling_own.Own"}
    bare(tmp_path, model_type=kind, auto_map=auto_map, transformers_version="4.31.0")
    text = message(tmp_path)
    assert "runs with its own code only" in text
    assert "trust_remote_code=True" in text
    if RECENT:
        assert "install transformers 4.57" in text
        trusted = message(tmp_path, trust_remote_code=True)
        assert "install transformers 4.57" in trusted
        assert "trust_remote_code=False" not in trusted, "it would not help"


def test_own_code_of_llama_moe_v2_is_refused(tmp_path):
    bare(tmp_path, **configuration("llamamoe2"))
    text = message(tmp_path, trust_remote_code=True)
    assert "trust_remote_code=False" in text if RECENT else "leave trust_remote_code off" in text


def test_layers_that_the_configuration_overlooks(copied):
    """As of jetmoe-8b-chat: its 24 layers, read with names that mean 12 of them."""
    edit_config(copied, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    text = message(copied)
    assert "weights for which its configuration has no place, such as model.layers.2." in text


def test_older_names_of_jetmoe_are_read():
    from lrc.conversions import find_conversion

    config = configuration("jetmoechat")
    assert "num_hidden_layers" not in config
    assert transformers.JetMoeConfig(**config).num_hidden_layers == 12, "the trap"
    native = find_conversion(config).config
    assert native.num_hidden_layers == 24
    assert native.num_key_value_heads == 2
    assert native.num_local_experts == 8
    assert native.intermediate_size == config["ffn_hidden_size"]
    current = transformers.JetMoeConfig(num_hidden_layers=3).to_dict()
    assert find_conversion(current) is None
