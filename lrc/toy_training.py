"""Train the toy family and record its traces: ``python -m lrc.toy_training``.

Runs resume where they stopped, finished runs are skipped, and the same command uses a GPU where
there is one. What the package ships is written by ``--ship`` (traces, losses, the weights of the
baseline) and ``--statistics`` (of experiments, and of runs with ``--snapshots``), see
`lrc.toy_shipping`. The experiments were trained with
``python -m lrc.toy_training NAME --steps 400``.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lrc import corpora, toy_models, toys
from lrc.toy_texts import VOCABULARY, held_out_sequences, tokenizer, training_sequences

TRACED_PER_DOMAIN = 12


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


PRESET = Preset()


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


def train(
    name: str,
    seed: int = 0,
    out: Path = Path("runs/toys"),
    preset: Preset = PRESET,
    *,
    snapshots: bool = False,
) -> Path:
    """Train one variant, or go on where an earlier call stopped.

    Parameters
    ----------
    name : str
        A key of `lrc.toys.VARIANTS` or `lrc.toys.EXPERIMENTS`.
    seed : int
        Seed of initialisation and of the order of sequences.
    out : pathlib.Path
        The run's folder is ``out/NAME-SEED``.
    preset : Preset
    snapshots : bool, default False
        Also trace the model while it learns, at `snapshot_steps`, to ``snapshots/STEP.parquet``.

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
    biased = variant.bias_rate > 0
    if checkpoint is None:
        model = toy_models.build(toys.config(name, VOCABULARY), biased)
    else:
        # The trainer reads weights by name, and in a file experts are named one by one: it
        # would leave those of the model, which are fused, as they were initialised.
        model = toy_models.load(checkpoint, biased)
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
                loss = loss + variant.aux_loss * balance + variant.z_loss * z
                toy_models.move_biases(model, variant.bias_rate)
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
        train_dataset=_dataset(
            Dataset,
            training_sequences(
                preset.steps * preset.batch, variant.domains, variant.piece
            ).token_ids,
        ),
        eval_dataset=by_domain,
    )
    if snapshots:
        trainer.add_callback(_snapshots(name, run / "snapshots", preset))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.evaluate()
    _losses(trainer.state.log_history, name, seed, preset).to_csv(run / "losses.csv", index=False)
    partial = run / "model.partial"
    model.save_pretrained(partial)
    tokenizer().save_pretrained(partial)
    os.replace(partial, model_folder)
    shutil.rmtree(checkpoints)
    return model_folder


def snapshot_steps(steps: int) -> list[int]:
    """Return the steps at which a run is traced: 0, then spread evenly in the logarithm.

    Examples
    --------
    >>> snapshot_steps(1200)
    [0, 1, 3, 8, 20, 40, 80, 160, 300, 500, 800, 1200]
    """
    marks = (0, 1, 3, 8, 20, 40, 80, 160, 300, 500, 800)
    return sorted({mark * steps // 1200 for mark in marks} | {steps})


def _snapshots(name: str, folder: Path, preset: Preset):
    """Return the trainer's callback that records a trace at the steps of `snapshot_steps`."""
    import transformers

    from lrc.recording import record

    wanted = snapshot_steps(preset.steps)
    biased = toys.variant(name).bias_rate > 0
    texts = held_out_sequences(TRACED_PER_DOMAIN)

    class Snapshots(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **_):
            self._record(state.global_step, model)

        def on_step_end(self, args, state, control, model=None, **_):
            self._record(state.global_step, model)

        def _record(self, step, model):
            if step not in wanted:
                return
            # A copy, since the trainer has the model compute in bfloat16; and its making must
            # not draw from the random numbers of the training.
            with torch.random.fork_rng():
                still = toy_models.build(model.config, biased)
            still.load_state_dict(model.state_dict())
            folder.mkdir(parents=True, exist_ok=True)
            record(still, texts, progress=False).save(folder / f"{step}.parquet")

    return Snapshots()


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


def all_runs(names=tuple(toys.VARIANTS)) -> list[tuple[str, int]]:
    """Return every variant and seed, first seeds first: what is missing last matters least."""
    variants = [toys.variant(name) for name in names]
    seeds = range(max(variant.seeds for variant in variants))
    return [(v.name, seed) for seed in seeds for v in variants if seed < v.seeds]


def _run(name: str, seed: int, out: Path, threads: int, preset: Preset, snapshots: bool) -> str:
    if threads:
        torch.set_num_threads(threads)
    folder = train(name, seed, out, preset, snapshots=snapshots)
    table = pd.read_csv(folder.parent / "losses.csv")
    final = table[(table["split"] == "held-out") & (table["step"] == table["step"].max())]
    line = f"{name} seed {seed}: held-out loss {final['loss'].mean():.3f} nats per token"
    print(line, flush=True)
    return line


def main(arguments: list[str] | None = None) -> None:
    """Train the runs named on the command line, all by default, a process a core."""
    from joblib import Parallel, delayed

    parser = argparse.ArgumentParser(prog="python -m lrc.toy_training", description=__doc__)
    known = ", ".join(toys.VARIANTS | toys.EXPERIMENTS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: the ten; {known}")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of each variant")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else 2)
    parser.add_argument("--out", type=Path, default=Path("runs/toys"))
    parser.add_argument("--steps", type=int, default=PRESET.steps)
    parser.add_argument("--snapshots", action="store_true", help="trace while training, too")
    parser.add_argument("--ship", action="store_true", help="write lrc/data/toys and stop")
    parser.add_argument("--statistics", action="store_true", help="ship only statistics and stop")
    options = parser.parse_args(arguments)
    if options.ship or options.statistics:
        from lrc.toy_shipping import ship, ship_statistics

        runs = ship(options.out) if options.ship else ship_statistics(options.out)
        print(f"shipped {len(runs)} runs")
        return
    names = [toys.variant(name).name for name in options.names or toys.VARIANTS]
    runs = all_runs(names)
    if options.seeds is not None:
        runs = [(name, seed) for seed in options.seeds for name in names]
    tokenizer()  # Once, before the processes start.
    preset = Preset(steps=options.steps)
    threads = 0 if torch.cuda.is_available() else max((os.cpu_count() or 1) // options.jobs, 1)
    Parallel(n_jobs=options.jobs)(
        delayed(_run)(name, seed, options.out, threads, preset, options.snapshots)
        for name, seed in runs
    )


if __name__ == "__main__":
    # By its import name, so that worker processes find what they are sent.
    from lrc.toy_training import main as run

    run()
