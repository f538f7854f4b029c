"""Training: the loss, the schedule, and a loop that can be interrupted and resumed."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .batching import Batch, balanced_batches, collate_packed, make_loader, shared_prefix_length
from .data import IGNORE_INDEX, Example
from .hardware import autocast, keep_freed_memory, pick_precision
from .model import CausalLM
from .runs import (
    check_checkpoint,
    latest_checkpoint,
    read_checkpoint,
    read_state,
    write_checkpoint,
)

# For float16. With PyTorch's own 65,536 the first gradient overflows, and the step is left out.
_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a run, apart from the model and the data.

    Args:
        epochs: passes over the training examples.
        learning_rate: the largest one, reached after the warm-up.
        batch_size: examples in a step.
        micro_batch_size: examples computed at once; smaller needs less memory, with equal results.
        warmup_ratio: share of the steps in which the learning rate rises from 0.
        final_ratio: the learning rate at the end, as a share of the largest.
        weight_decay: of AdamW, for matrices.
        max_grad_norm: longer gradients are scaled down to this length.
        eval_every: steps between two measurements of the validation loss.
        checkpoint_every: steps between two checkpoints, if the run has a folder.
        mask_prompt: whether only responses are learnt.
        seed: decides the order of the examples.
    """

    epochs: int = 2
    learning_rate: float = 1e-4
    batch_size: int = 8
    micro_batch_size: int = 8
    warmup_ratio: float = 0.1
    final_ratio: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    eval_every: int = 39
    checkpoint_every: int = 117
    mask_prompt: bool = True
    seed: int = 0


def token_losses(model: CausalLM, batch: Batch) -> Tensor:
    """Compute the cross-entropy of every labelled token, given the tokens before it.

    This is the one place where labels are shifted: the logits at position t are scored against the
    label at t + 1. Logits are computed only where that label counts.

    Args:
        model: the model.
        batch: `input_ids` and unshifted `labels`, (B, T), and what else the model takes.

    Returns:
        (N,) for the N labelled tokens, row after row, in nats.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]
    keep = F.pad(targets != IGNORE_INDEX, (0, 1))  # nothing follows the last position
    logits = model(**inputs, keep=keep)  # (N, V)
    return F.cross_entropy(logits.float(), targets[targets != IGNORE_INDEX], reduction="none")


def next_token_loss(model: CausalLM, batch: Batch) -> tuple[Tensor, int]:
    """Return the sum of `token_losses` in nats, and the number of labelled tokens."""
    losses = token_losses(model, batch)
    return losses.sum(), len(losses)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to `device`."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def packed_loader(
    examples: list[Example], batches: list[list[int]], mask_prompt: bool = True
) -> torch.utils.data.DataLoader:
    """Return a loader of packed batches that share what all prompts begin with, where they may."""
    prompts = [example.input_ids[: example.prompt_length] for example in examples]
    prefix = shared_prefix_length(prompts) if mask_prompt else 0
    collate = partial(collate_packed, prefix_length=prefix, mask_prompt=mask_prompt)
    return make_loader(examples, batches, collate)


@torch.no_grad()
def measure_losses(model: CausalLM, batch: Batch) -> Tensor:
    """Return `token_losses` on the CPU, computed in the device's precision without gradients."""
    device = model.device
    with autocast(device, pick_precision(device)):
        return token_losses(model, to_device(batch, device)).cpu()


def mean_loss(
    model: CausalLM, examples: list[Example], batch_size: int = 8, mask_prompt: bool = True
) -> float:
    """Return the mean loss of `examples` in nats per labelled token.

    Raises:
        ValueError: if there are no examples.
    """
    if not examples:
        raise ValueError("no examples to measure the loss on; give at least one")
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    loader = packed_loader(examples, batches, mask_prompt)
    with autocast(model.device, pick_precision(model.device)):  # casts the weights once
        losses = torch.cat([measure_losses(model, batch) for batch in loader])
    return losses.mean().item()


def learning_rate_at(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine.

    Args:
        step: counted from 0.
        total_steps: steps of the whole run.
        settings: gives the largest rate, the warm-up and the final share.

    Source: Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983, eq. 5 (without restarts).
    """
    warmup = math.ceil(settings.warmup_ratio * total_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    share = settings.final_ratio + (1 - settings.final_ratio) * cosine
    return settings.learning_rate * share


def make_optimizer(model: CausalLM, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; only matrices decay.

    Source: Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = model.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=fused)


def fingerprint(examples: list[Example]) -> str:
    """Return a SHA-256 that changes with any token of any example, or with their order."""
    rows = [(example.prompt_length, example.input_ids) for example in examples]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


@dataclass
class History:
    """What a run measured.

    Args:
        steps: one row a step: `step` (from 1), `epoch` (fraction), `tokens` (labelled, so far),
            `learning_rate`, `loss` (nats per labelled token), `grad_norm` and `seconds`.
        evaluations: one row a measurement: `step`, `epoch`, `loss` on the validation data.
    """

    steps: list[dict] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)


def _steps(
    examples: list[Example], settings: TrainSettings, done: int
) -> Iterator[tuple[int, list[int], list[Batch]]]:
    """Yield the steps still to do: their number from 0, their examples, the parts of the batch."""
    step, size = 0, settings.micro_batch_size
    lengths = [len(example.input_ids) for example in examples]
    for epoch in range(settings.epochs):
        batches = balanced_batches(lengths, settings.batch_size, settings.seed, epoch)
        skip = min(len(batches), max(0, done - step))
        step += skip
        cut = [[b[i : i + size] for i in range(0, len(b), size)] for b in batches[skip:]]
        loader = iter(packed_loader(examples, list(chain(*cut)), settings.mask_prompt))
        for parts in cut:
            yield step, list(chain(*parts)), list(islice(loader, len(parts)))
            step += 1


def train_step(
    model: CausalLM,
    optimizer: torch.optim.Optimizer,
    parts: list[Batch],
    settings: TrainSettings,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[float, float, int]:
    """Take one optimizer step on a batch that is computed in parts.

    The loss is the mean over all labelled tokens of the batch, so the parts do not matter.

    Returns:
        The loss in nats per labelled token, the length of the gradient, and the labelled tokens.

    Raises:
        FloatingPointError: if loss or gradient are not finite; the weights are untouched then.
    """
    device = model.device
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    count = sum(int((part["labels"][:, 1:] != IGNORE_INDEX).sum()) for part in parts)
    total = 0.0
    optimizer.zero_grad()
    with autocast(device, pick_precision(device)):  # it casts the weights once for all parts
        for part in parts:
            loss, _ = next_token_loss(model, to_device(part, device))
            total += loss.item()
            if not math.isfinite(total):
                raise FloatingPointError(f"the loss became {total / count}")
            scaler.scale(loss / count).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    if not (norm.isfinite() or scaler.is_enabled()):  # a scaler leaves such a step out
        raise FloatingPointError(f"the gradient norm became {norm.item()}")
    scaler.step(optimizer)
    scaler.update()
    return total / count, norm.item(), count


def train(
    model: CausalLM,
    examples: list[Example],
    validation: list[Example],
    settings: TrainSettings,
    run_folder: Path | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    on_step: Callable[[dict], None] | None = None,
) -> History:
    """Finetune the trainable parameters of `model` in place.

    Args:
        model: the model.
        examples: what it learns.
        validation: what the loss is measured on every `eval_every` steps; may be empty.
        settings: how to train.
        run_folder: where checkpoints go; none are written if None.
        resume: go on from the newest checkpoint in `run_folder`.
        stop_after: end after this many steps of the run, as if interrupted.
        on_step: called with each row of `History.steps`.

    Returns:
        The losses over the whole run, the part before a resumption included.

    Raises:
        ValueError: if there are no examples, a resumed run has other settings or data, or its
            checkpoint is damaged.
        FloatingPointError: if loss or gradient are not finite; the message names the step, the
            learning rate and the examples, and the checkpoint before stays.
    """
    if not examples:
        raise ValueError("no examples to train on; give at least one")
    per_epoch = math.ceil(len(examples) / settings.batch_size)
    total_steps = per_epoch * settings.epochs
    optimizer = make_optimizer(model, settings)
    device = model.device
    if device.type == "cpu":
        keep_freed_memory()
    half = pick_precision(device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, init_scale=_LOSS_SCALE, enabled=half)
    history, done, data = History(), 0, fingerprint(examples)
    if resume and run_folder and (folder := latest_checkpoint(run_folder)):
        check_checkpoint(folder)
        state = read_state(folder)
        if state["settings"] != asdict(settings) or state["data"] != data:
            raise ValueError(
                f"{folder} belongs to a run with other settings or data; give the same ones to "
                "resume it, or another folder to start anew"
            )
        read_checkpoint(folder, model, optimizer)
        scaler.load_state_dict(state["scaler"])
        history, done = History(**state["history"]), state["step"]
    elif validation:
        loss = mean_loss(model, validation, mask_prompt=settings.mask_prompt)
        history.evaluations.append({"step": 0, "epoch": 0.0, "loss": loss})
    end = total_steps if stop_after is None else min(stop_after, total_steps)
    tokens = history.steps[-1]["tokens"] if history.steps else 0
    model.train()
    bar = tqdm(total=end, initial=done, desc="training", unit="step", disable=on_step is not None)
    for step, indices, parts in _steps(examples, settings, done):
        if step >= end:
            break
        start = time.perf_counter()
        rate = learning_rate_at(step, total_steps, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        try:
            loss, norm, count = train_step(model, optimizer, parts, settings, scaler)
        except FloatingPointError as error:
            batch = ", ".join(map(str, sorted(indices)))
            raise FloatingPointError(
                f"{error} at step {step + 1} (learning rate {rate:.2g}, training examples {batch}, "
                "counted from 0); lower the learning rate, or look at these examples"
            ) from error
        tokens += count
        epoch = (step + 1) / per_epoch
        row = {"step": step + 1, "epoch": epoch, "tokens": tokens, "learning_rate": rate}
        row |= {"loss": loss, "grad_norm": norm, "seconds": time.perf_counter() - start}
        history.steps.append(row)
        bar.set_postfix(loss=f"{loss:.2f}", refresh=False)  # `update` keeps to its interval
        bar.update()
        if on_step:
            on_step(row)
        last = step + 1 == total_steps
        if validation and (last or (step + 1) % settings.eval_every == 0):
            model.eval()
            loss = mean_loss(model, validation, mask_prompt=settings.mask_prompt)
            model.train()
            history.evaluations.append({"step": step + 1, "epoch": epoch, "loss": loss})
        if run_folder and (step + 1 == end or (step + 1) % settings.checkpoint_every == 0):
            state = {"step": step + 1, "settings": asdict(settings), "data": data}
            state |= {"scaler": scaler.state_dict(), "history": asdict(history)}
            write_checkpoint(run_folder, step + 1, model, optimizer, state)
    bar.close()
    model.eval()
    return history
