"""Train the toy family and record its traces: ``python -m lrc.toy_training``.

Runs resume where they stopped, finished runs are skipped, and the same command uses a GPU where
there is one. What the package ships (traces, loss curves, the baseline's weights) is written by
``--ship``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lrc import corpora, toys
from lrc.trace import Trace
from lrc.trace_file import TraceWriter

TOKENIZER = toys.DATA / "tokenizer.json"
VOCABULARY = 2048
TRACED_PER_DOMAIN = 12
COUNTED_PER_DOMAIN = 32


@dataclass(frozen=True)
class Preset:
    """Size of a training run.

    Attributes
    ----------
    steps : int
        Optimizer steps.
    batch : int
        Sequences of a step.
    learning_rate : float
        Peak, after a warm-up over 5 % of the steps; it falls to a tenth along a cosine.
    """

    steps: int = 1200
    batch: int = 4
    learning_rate: float = 1e-2
    z_loss: float = 1e-3


PRESET = Preset()


def tokenizer():
    """Return the family's tokenizer, byte-level BPE; trained on the embedded corpus if missing."""
    from transformers import PreTrainedTokenizerFast

    if not TOKENIZER.is_file():
        _train_tokenizer()
    return PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), eos_token="<eos>")


def _train_tokenizer() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The same amount of every domain, so that none owns the vocabulary.
    texts = corpora.embedded("train")
    size = min(sum(map(len, documents)) for documents in texts.values())
    sample = (text for documents in texts.values() for text in _first(documents, size))
    bpe.train_from_iterator(sample, trainer)
    TOKENIZER.parent.mkdir(parents=True, exist_ok=True)
    partial = TOKENIZER.with_suffix(".partial")
    bpe.save(str(partial))
    os.replace(partial, TOKENIZER)


def _first(documents: list[str], characters: int):
    for document in documents:
        if characters <= 0:
            return
        yield document[:characters]
        characters -= len(document)


def training_sequences(preset: Preset = PRESET) -> corpora.Sequences:
    """Return the training sequences, the same number of every domain, in one fixed order.

    A domain with too little text is repeated.
    """
    encoder = tokenizer()
    per_domain = -(-preset.steps * preset.batch // len(corpora.DOMAINS))
    parts, labels = [], []
    for domain, documents in corpora.embedded("train").items():
        packed = corpora.pack(documents, encoder)
        parts.append(np.resize(packed, (per_domain, packed.shape[1])))
        labels += [domain] * per_domain
    return corpora.Sequences(np.concatenate(parts), tuple(labels))


def held_out_sequences(per_domain: int) -> corpora.Sequences:
    """Return the first `per_domain` held-out sequences of every domain."""
    return corpora.sequences(tokenizer(), per_domain=per_domain)


def routing_losses(
    router_logits: tuple[torch.Tensor, ...], num_experts: int, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the load-balancing loss and the z-loss, each summed over MoE layers.

    Parameters
    ----------
    router_logits : tuple of torch.Tensor
        ``[tokens, experts]`` of each MoE layer.
    num_experts, top_k : int

    Returns
    -------
    balance : torch.Tensor
        Sum over layers of E / k * sum_e f_e p_e (Switch Transformers, equations 4-6): 1 a layer
        at perfect balance. Layer by layer, as in the paper's training; transformers' own loss
        averages over layers first, which lets a layer be lopsided if another makes up for it.
    z : torch.Tensor
        Sum over layers of the mean squared log-partition (ST-MoE).
    """
    from transformers.models.qwen2_moe.modeling_qwen2_moe import load_balancing_loss_func

    balance = z = torch.zeros((), device=router_logits[0].device)
    for layer in router_logits:
        logits = layer.float()
        balance = balance + load_balancing_loss_func((logits,), num_experts, top_k) / top_k
        z = z + torch.logsumexp(logits, dim=-1).square().mean()
    return balance, z


def train(name: str, seed: int = 0, out: Path = Path("runs/toys"), preset: Preset = PRESET) -> Path:
    """Train one variant, or go on where an earlier call stopped.

    Parameters
    ----------
    name : str
        A key of `lrc.toys.VARIANTS`.
    seed : int
        Seed of initialisation and of the order of sequences.
    out : pathlib.Path
        The run's folder is ``out/NAME-SEED``.
    preset : Preset

    Returns
    -------
    pathlib.Path
        Folder of the finished model (``save_pretrained``); beside it ``losses.csv``.
    """
    import transformers
    from datasets import Dataset

    transformers.logging.set_verbosity_error()
    variant = toys.variant(name)
    run = out / f"{name}-{seed}"
    model_folder = run / "model"
    if (model_folder / "model.safetensors").is_file():
        return model_folder
    transformers.set_seed(seed)
    checkpoints = run / "checkpoints"
    checkpoint = _last_checkpoint(checkpoints)
    with warnings.catch_warnings():
        # Without shared experts their block has width zero, which torch finds worth a warning.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        model_class = transformers.Qwen2MoeForCausalLM
        if checkpoint is None:
            model = model_class(toys.config(name, VOCABULARY))
        else:
            # The trainer reads weights by name, and in a file experts are named one by one: it
            # would leave those of the model, which are fused, as they were initialised.
            model = model_class.from_pretrained(checkpoint)
    model.set_experts_implementation("grouped_mm")

    class ToyTrainer(transformers.Trainer):
        """Adds the routing losses in training; evaluates the language-model loss alone."""

        def compute_loss(self, model, inputs, return_outputs=False, **_):
            output = model(input_ids=inputs["input_ids"], output_router_logits=model.training)
            loss = model.loss_function(
                output.logits, inputs["labels"], vocab_size=model.config.vocab_size
            )
            self.language_loss = loss.detach()
            if model.training:
                balance, z = routing_losses(
                    output.router_logits,
                    model.config.num_experts,
                    model.config.num_experts_per_tok,
                )
                loss = loss + variant.aux_loss * balance + preset.z_loss * z
            return (loss, {"logits": output.logits[:, :1]}) if return_outputs else loss

    held_out = held_out_sequences(4)
    by_domain = {
        domain: _dataset(Dataset, held_out.token_ids[[d == domain for d in held_out.datasets]])
        for domain in corpora.DOMAINS
    }
    every = max(preset.steps // 10, 1)
    # Threads set by the environment are kept: two runs on one thread each beat one on two.
    arguments = transformers.TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=preset.steps,
        per_device_train_batch_size=preset.batch,
        per_device_eval_batch_size=4,
        learning_rate=preset.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=max(preset.steps // 20, 1),
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=_fast_bfloat16(),
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=every,
        logging_steps=max(preset.steps // 100, 1),
        save_steps=every,
        save_total_limit=1,
        seed=seed,
        data_seed=seed,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        prediction_loss_only=True,
    )
    trainer = ToyTrainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(Dataset, training_sequences(preset).token_ids),
        eval_dataset=by_domain,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.evaluate()
    _losses(trainer.state.log_history, name, seed, preset).to_csv(run / "losses.csv", index=False)
    partial = run / "model.partial"
    model.save_pretrained(partial)
    tokenizer().save_pretrained(partial)
    os.replace(partial, model_folder)
    shutil.rmtree(checkpoints)
    return model_folder


def _last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint: the trainer writes its state after everything else."""
    states = folder.glob("checkpoint-*/trainer_state.json")
    steps = {int(state.parent.name.split("-")[1]): str(state.parent) for state in states}
    return steps[max(steps)] if steps else None


def _dataset(dataset_class, token_ids: np.ndarray):
    rows = token_ids.tolist()
    return dataset_class.from_dict({"input_ids": rows, "labels": rows}).with_format("torch")


def _fast_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.backends.cpu.get_cpu_capability() == "AVX512") and _has_flag("avx512_bf16")


def _has_flag(flag: str) -> bool:
    """Say whether the processor has an instruction set; without Linux's list, no."""
    try:
        return flag in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def _losses(history: list[dict], name: str, seed: int, preset: Preset) -> pd.DataFrame:
    rows = []
    for record in history:
        for key, value in record.items():
            if key == "loss":
                rows.append((record["step"], "train", "", value))
            elif key.startswith("eval_") and key.endswith("_loss"):
                rows.append((record["step"], "held-out", key[5:-5], value))
    table = pd.DataFrame(rows, columns=["step", "split", "dataset", "loss"]).drop_duplicates()
    table.insert(0, "model", name)
    table.insert(1, "seed", seed)
    table.insert(3, "tokens", table["step"] * preset.batch * corpora.SEQUENCE_LENGTH)
    return table.round({"loss": 4})


def ship(out: Path = Path("runs/toys"), data: Path = toys.DATA) -> list[tuple[str, int]]:
    """Write what the package ships of every finished run; texts stay behind.

    Parameters
    ----------
    out : pathlib.Path
        Where `train` left the runs.
    data : pathlib.Path
        Gets ``traces/NAME-SEED.parquet`` (experts of 12 held-out sequences of every domain,
        without token ids), ``counts/NAME-SEED.parquet`` (uses of each expert by token, over 32
        sequences of every domain), ``losses/NAME-SEED.csv``, and the weights of the baseline.

    Returns
    -------
    list of (str, int)
        Variant and seed of the runs shipped.
    """
    from lrc.models import load_model
    from lrc.recording import record
    from lrc.vocabulary import token_counts

    texts = held_out_sequences(COUNTED_PER_DOMAIN)
    place = np.arange(len(texts)) % COUNTED_PER_DOMAIN  # Of a sequence within its domain.
    traced = np.flatnonzero(place < TRACED_PER_DOMAIN)
    runs = []
    for folder in ("traces", "counts", "losses"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    for name, seed in _all_runs():
        run = out / f"{name}-{seed}"
        target = data / "traces" / f"{name}-{seed}.parquet"
        if not (run / "model" / "model.safetensors").is_file():
            continue
        runs.append((name, seed))
        if target.is_file() and target.stat().st_mtime > (run / "model").stat().st_mtime:
            continue
        trace = record(load_model(str(run / "model")).model, texts, progress=False)
        token_counts(trace, min_count=20).save(data / "counts" / target.name)
        shutil.copyfile(run / "losses.csv", data / "losses" / f"{name}-{seed}.csv")
        if (name, seed) == ("baseline", 0):
            shutil.copytree(run / "model", data / name, dirs_exist_ok=True)
        part = trace.select(sequences=traced)
        meta = part.meta | {
            "model": f"toy:{name}",
            "revision": f"seed {seed}",
            "corpus": "embedded corpus, held-out",
            "fingerprint": corpora.Sequences(part.token_ids, tuple(part.datasets)).fingerprint(),
        }
        shipped = Trace(
            part.experts, part.num_experts, lengths=part.lengths, datasets=part.datasets, meta=meta
        )
        with TraceWriter(target, compression_level=19) as writer:
            writer.append(shipped)
    return runs


def _all_runs() -> list[tuple[str, int]]:
    """Return every variant and seed, first seeds first: what is missing last matters least."""
    variants = toys.VARIANTS.values()
    seeds = range(max(variant.seeds for variant in variants))
    return [(v.name, seed) for seed in seeds for v in variants if seed < v.seeds]


def _run(name: str, seed: int, out: Path, threads: int, preset: Preset) -> str:
    if threads:
        torch.set_num_threads(threads)
    folder = train(name, seed, out, preset)
    table = pd.read_csv(folder.parent / "losses.csv")
    final = table[(table["split"] == "held-out") & (table["step"] == table["step"].max())]
    line = f"{name} seed {seed}: held-out loss {final['loss'].mean():.3f} nats per token"
    print(line, flush=True)
    return line


def main(arguments: list[str] | None = None) -> None:
    """Train the runs named on the command line, all by default, a process a core."""
    from joblib import Parallel, delayed

    parser = argparse.ArgumentParser(prog="python -m lrc.toy_training", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(toys.VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of each variant")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else 2)
    parser.add_argument("--out", type=Path, default=Path("runs/toys"))
    parser.add_argument("--steps", type=int, default=PRESET.steps)
    parser.add_argument("--ship", action="store_true", help="write lrc/data/toys and stop")
    options = parser.parse_args(arguments)
    if options.ship:
        print(f"shipped {len(ship(options.out))} runs")
        return
    names = [toys.variant(name).name for name in options.names or toys.VARIANTS]
    runs = [(name, seed) for name, seed in _all_runs() if name in names]
    if options.seeds is not None:
        runs = [(name, seed) for seed in options.seeds for name in names]
    tokenizer()  # Once, before the processes start.
    preset = Preset(steps=options.steps)
    threads = 0 if torch.cuda.is_available() else max((os.cpu_count() or 1) // options.jobs, 1)
    Parallel(n_jobs=options.jobs)(
        delayed(_run)(name, seed, options.out, threads, preset) for name, seed in runs
    )


if __name__ == "__main__":
    # By its import name, so that worker processes find what they are sent.
    from lrc.toy_training import main as run

    run()
