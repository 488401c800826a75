"""Load the model to study: a hub name, a local folder, or a toy model shipped with the package."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lrc.errors import LrcError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOY = "toy:"


class ModelError(LrcError):
    """A model is unknown, out of reach, incomplete, or not one to record."""


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
    Only safetensors files are read, never pickles.

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
        Let the repository's own code build the model. Refused for code written for transformers 4:
        it does not run on transformers 5, or runs wrongly.
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
        config = _config(source, trust_remote_code, revision, options)
        hub = _hub(revision, options)
        auto_class = _check_architecture(config, name, source, trust_remote_code, hub)
        if device is None and "device_map" not in options:
            device = _default_device()
        # Before the weights: what is wrong with it shows before they are downloaded.
        tokenizer = _tokenizer(source, trust_remote_code, revision, options)
        model, loading = auto_class.from_pretrained(
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
        _check_complete(loading, name)
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


def _config(source, trust_remote_code, revision, options):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        source, trust_remote_code=trust_remote_code, **_hub(revision, options)
    )


def _tokenizer(source, trust_remote_code, revision, options):
    from transformers import AutoTokenizer

    if Path(source).is_dir():
        names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
        if not any((Path(source) / name).is_file() for name in names):
            return None
    return AutoTokenizer.from_pretrained(
        source, trust_remote_code=trust_remote_code, **_hub(revision, options)
    )


def _check_architecture(config, name, source, trust_remote_code, hub):
    """Build the model without weights, look for MoE layers; return the class that loads it."""
    import torch
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from lrc.moe_layers import RecordError, find_moe_layers

    remote = trust_remote_code and getattr(config, "auto_map", None)
    written_for = str(getattr(config, "transformers_version", None) or "4")
    if remote and int(written_for.split(".")[0]) < 5:
        raise ModelError(
            f"{name}: its own code is for transformers {written_for} and does not run rightly on "
            f"{transformers.__version__}; try trust_remote_code=False, else install "
            "transformers 4.57 in an environment of its own"
        )
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
    code = (remote or {}).get(auto_class.__name__)
    with torch.device("meta"):
        if code:  # from_config would run the newest code rather than that of the revision.
            skeleton = get_class_from_dynamic_module(code, source, **hub)._from_config(config)
        else:
            skeleton = auto_class.from_config(config, trust_remote_code=False)
    try:
        find_moe_layers(skeleton)
    except RecordError as error:
        raise ModelError(f"{name}: {error}") from error
    return auto_class


def _check_complete(loading, name):
    """transformers fills what a checkpoint lacks with random numbers, with a warning at most."""
    for kind, text in (("missing_keys", "are missing"), ("mismatched_keys", "have another shape")):
        keys = loading.get(kind) or ()
        names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
        if names:
            raise ModelError(
                f"{name}: {len(names)} weights {text} in its files, such as {names[0]}; the "
                "download is incomplete, or the class does not fit the checkpoint"
            )


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

    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
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
