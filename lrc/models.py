"""Load the model to study: a hub name, a local folder, or a toy model shipped with the package."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lrc.conversions import find_conversion
from lrc.errors import LrcError, ModelError, RecordError
from lrc.paper_models import OWN_CODE_TYPES, ROUTES, paper_models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ROUTES", "LoadedModel", "ModelError", "load_model", "paper_models"]

TOY = "toy:"

# A stack and the number of a layer in the name of a weight.
_LAYER = re.compile(r"^(.*?\b(?:layers?|h|blocks?))\.(\d+)\.")


class LoadedModel(NamedTuple):
    """What `load_model` returns; ``model, tokenizer = lrc.load_model(name)`` unpacks it.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase or None
        None if a local folder has none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None


def load_model(
    name_or_path: str | os.PathLike,
    *,
    dtype=None,
    device=None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    **options: Any,
) -> LoadedModel:
    """Load a Mixture-of-Experts model and its tokenizer, ready to record.

    Before any weights are fetched, the architecture is checked for MoE layers that can be recorded.
    Only safetensors files are read, never pickles. Of some models of the paper, the files are
    translated for a native class that computes the same (see `lrc.models.paper_models`); which
    ones, is told from their configuration, be it on the hub or in a folder.

    Parameters
    ----------
    name_or_path : str or path
        ``"toy:baseline"`` (a model shipped with lrc), a local folder with a ``config.json``, or
        the name of a repository on the Hugging Face hub.
    dtype : torch.dtype or str, optional
        Of the weights (default: as stored).
    device : torch.device or str, optional
        Default: the first GPU if there is one, else the CPU. To spread a model over devices, give
        ``device_map="auto"`` instead.
    trust_remote_code : bool
        Let the repository's own code build the model. On transformers 5, refused for code written
        for transformers 4: it does not run there, or runs wrongly. Install transformers 4.57 for
        it, where such a model runs without a KV cache.
    revision : str, optional
        Branch, tag or commit on the hub.
    **options
        For ``from_pretrained`` of transformers: ``attn_implementation``,
        ``experts_implementation``, ``quantization_config``, ``device_map``, ``token``, …

    Returns
    -------
    LoadedModel
        A named tuple ``(model, tokenizer)``.

    Raises
    ------
    ModelError
        Unknown toy, no such folder, no ``config.json``, hub out of reach, not a Mixture-of-Experts
        model that can be recorded, or weights missing from the checkpoint.

    Examples
    --------
    >>> model, tokenizer = lrc.load_model("toy:baseline")  # doctest: +SKIP
    """
    name = os.fspath(name_or_path)
    source = _source(name)
    with _quiet(), _one_line(name):
        hub = _hub(revision, options)
        fields = _fields(source, hub)
        remote = trust_remote_code and bool(fields.get("auto_map"))
        _check_version(fields, name, remote)
        conversion = None if remote else find_conversion(fields)
        if conversion is None:
            config = _config(source, fields, trust_remote_code, hub)
            loader, skeleton = _skeleton(config, name, source, remote, hub)
        else:
            config, loader = conversion.config, conversion.model_class
            skeleton = _without_weights(loader, config)
            options = {"key_mapping": conversion.renames} | options
        _check_layers(skeleton, name)
        if device is None and "device_map" not in options:
            device = _default_device()
        # Before the weights: what is wrong with it shows before they are downloaded.
        tokenizer = _tokenizer(source, trust_remote_code, hub)
        model, loading = loader.from_pretrained(
            source,
            config=config,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            revision=revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that _check_complete can name them
            **options,
        )
        _check_complete(model, loading, name, conversion.added if conversion else None)
        if conversion is not None and conversion.finish is not None:
            _finish(model, conversion.name, conversion.finish, name)
    if name.startswith(TOY):
        model.config._name_or_path = name
    if device is not None:
        model = model.to(device)
    return LoadedModel(model.eval(), tokenizer)


def _source(name: str) -> str:
    """Return the folder of a toy or the folder given, or the hub name as it is."""
    if name.startswith(TOY):
        from lrc import toys

        return os.fspath(toys.path(name.removeprefix(TOY)))
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{name}: folder has no config.json; give the folder that save_pretrained wrote"
            )
        return os.fspath(folder)
    if name and folder.exists():
        raise ModelError(f"{name}: is a file; give the folder with config.json and the weights")
    if not name or name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise ModelError(f"{name!r}: no such folder (a hub name looks like owner/model)")
    return name


def _hub(revision, options) -> dict:
    names = ("token", "cache_dir", "local_files_only", "force_download")
    return {"revision": revision} | {key: options[key] for key in names if key in options}


def _fields(source, hub) -> dict:
    """Content of config.json, whether or not transformers knows the architecture."""
    from transformers import PretrainedConfig

    return PretrainedConfig.get_config_dict(source, **hub)[0]


def _check_version(fields, name, remote):
    """Refuse what this version of transformers cannot run, or runs wrongly."""
    import transformers

    version = transformers.__version__
    recent = _recent()
    legacy = "install transformers 4.57 in an environment of its own"
    kind = fields.get("model_type")
    written_for = str(fields.get("transformers_version") or "4")
    old_code = int(written_for.split(".")[0]) < 5
    if kind == "nllb-moe" and recent and not remote:
        raise ModelError(
            f"{name}: NLLB-MoE runs wrongly on transformers {version}, where every token uses "
            f"experts 0 and 1; {legacy}"
        )
    if remote and old_code and recent:
        cure = f"{legacy} for it"
        if kind not in OWN_CODE_TYPES:
            cure = f"try trust_remote_code=False, else {cure}"
        raise ModelError(
            f"{name}: its own code is for transformers {written_for} and does not run rightly on "
            f"{version}; {cure}"
        )
    if remote and kind == "mixtral" and "scale_factor" in fields:
        raise ModelError(
            f"{name}: its own code does not run on transformers {version} (4.55.4 is its last); "
            "leave trust_remote_code off, then lrc loads it into a native class that computes "
            "the same"
        )
    if kind in OWN_CODE_TYPES and not remote:
        cure = "give trust_remote_code=True"
        raise ModelError(
            f"{name}: {OWN_CODE_TYPES[kind]} runs with its own code only, on transformers 4; "
            + (f"{legacy} and {cure} there" if recent else cure)
        )


def _config(source, fields, trust_remote_code, hub):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **hub)
    rope = fields.get("rope_parameters")
    if not _recent() and isinstance(rope, dict) and "rope_theta" in rope:
        # Written by transformers 5; version 4 would overlook it and take its defaults.
        config.rope_theta = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config.rope_scaling = {key: rope[key] for key in rope if key != "rope_theta"}
    if not _recent() and getattr(config, "use_mamba_kernels", False):
        # Version 5 finds out itself; 4 fails in the first forward pass.
        config.use_mamba_kernels = _has_mamba_kernels()
    return config


def _has_mamba_kernels() -> bool:
    import torch

    packages = ("mamba_ssm", "causal_conv1d")
    return torch.cuda.is_available() and all(find_spec(package) for package in packages)


def _recent() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def _tokenizer(source, trust_remote_code, hub):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if Path(source).is_dir():
        names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
        if not any((Path(source) / name).is_file() for name in names):
            return None
    kind = None if _recent() else get_tokenizer_config(source, **hub).get("tokenizer_class")
    if kind == "TokenizersBackend":  # Its name in transformers 5.
        return PreTrainedTokenizerFast.from_pretrained(source, **hub)
    return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **hub)


def _skeleton(config, name, source, remote, hub):
    """Return the class that loads the model, and the model without weights."""
    import transformers
    from accelerate import init_empty_weights
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    classes = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModelForImageTextToText,
    )
    known = [auto_class for auto_class in classes if type(config) in auto_class._model_mapping]
    auto_class = known[0] if known else classes[0]
    if not (known or remote):
        raise ModelError(
            f"{name}: {type(config).__name__} has no language model class in transformers "
            f"{transformers.__version__}"
        )
    code = config.auto_map.get(auto_class.__name__) if remote else None
    if code is None:
        return auto_class, _without_weights(auto_class, config)
    if not _recent():
        config.use_cache = False  # Caches of old code are not those of transformers 4.57.
    # from_config would run the newest code rather than that of the revision.
    own_class = get_class_from_dynamic_module(code, source, **hub)
    with init_empty_weights():  # Buffers are real: old code computes with them when it is built.
        return auto_class, own_class._from_config(config)


def _without_weights(loader, config):
    import torch

    with torch.device("meta"):
        if hasattr(loader, "from_config"):
            return loader.from_config(config, trust_remote_code=False)
        return loader(config)


def _check_layers(skeleton, name):
    from lrc.moe_layers import find_moe_layers

    try:
        find_moe_layers(skeleton)
    except RecordError as error:
        raise ModelError(f"{name}: {error}") from error


def _check_complete(model, loading, name, added):
    """transformers fills what a checkpoint lacks with random numbers, with a warning at most.

    It also passes over what the configuration does not mention, such as the upper half of a model.
    """
    import transformers

    for kind, text in (("missing_keys", "are missing"), ("mismatched_keys", "have another shape")):
        keys = loading.get(kind) or ()
        names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
        names = [key for key in names if not (added and re.search(added, key))]
        if names:
            raise ModelError(
                f"{name}: {len(names)} weights {text} in its files, such as {names[0]}; the "
                "download is incomplete, or the class does not fit the checkpoint"
            )
    unread = {key: _LAYER.match(key) for key in sorted(loading.get("unexpected_keys") or ())}
    stacks = {match[1] for match in map(_LAYER.match, model.state_dict()) if match}
    # Not those of another tower, of position embeddings, nor of a layer that looks further ahead.
    ahead = {match[0] for key, match in unread.items() if match and "eh_proj" in key}
    passed = [
        key
        for key, match in unread.items()
        if match and match[1] in stacks and match[0] not in ahead and "rotary_emb" not in key
    ]
    if passed:
        raise ModelError(
            f"{name}: its files hold {len(passed)} weights for which its configuration has no "
            f"place, such as {passed[0]}; the configuration is of another model, or uses names "
            f"that transformers {transformers.__version__} does not know"
        )


def _finish(model, conversion: str, finish: Callable, name: str):
    import torch

    if any(weight.is_meta or not weight.is_floating_point() for weight in model.parameters()):
        raise ModelError(
            f"{name}: {conversion} is converted while it is loaded, which needs its weights "
            "in memory and not quantized; leave out quantization_config, and give a device_map "
            "that offloads nothing"
        )
    with torch.no_grad():
        finish(model)


def _default_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no chatter: in a notebook they become widgets fetched from the web."""
    import huggingface_hub.utils as hub
    import transformers.utils.logging as chatter

    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    if hub_bars:
        hub.disable_progress_bars()
    hub_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(verbosity)
        if bars:
            chatter.enable_progress_bar()
        if hub_bars:
            hub.enable_progress_bars()
        hub_logger.setLevel(hub_level)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what transformers and the hub raise into one line: what is wrong and what to do."""
    try:
        yield
    except LrcError:
        raise
    except Exception as error:  # of many kinds: files, network, validation, remote code
        raise ModelError(f"{name}: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
    import transformers
    from huggingface_hub import errors

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for kind, text in (
        (errors.GatedRepoError, "is gated; accept its terms on the hub and log in (hf auth login)"),
        (errors.RevisionNotFoundError, "has no such revision on the hub"),
        (
            errors.RepositoryNotFoundError,
            "is not on the hub, or private; check the spelling, or log in (hf auth login)",
        ),
        (
            (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError),
            "the Hugging Face hub is out of reach and the model is not in the local cache; "
            "connect (and unset HF_HUB_OFFLINE), or give a local folder",
        ),
    ):
        if any(isinstance(link, kind) for link in chain):
            return text
    text = " ".join(str(chain[0]).split())
    if "model.safetensors" in text and ("no file named" in text or "does not appear" in text):
        return "has no safetensors weights; convert them first (lrc reads no pickles)"
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return (
            f"transformers {transformers.__version__} does not know this architecture "
            f"({text[:120]}…)"
        )
    return f"cannot be loaded ({type(chain[0]).__name__}: {text[:300]})"
