"""The ways to train that are compared, each run by the same few lines."""

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from supplementary.batching import collate_padded
from supplementary.checkpoints import load_pretrained
from supplementary.data import Example
from supplementary.hardware import keep_freed_memory, peak_memory_bytes, pick_device
from supplementary.lora import LEARNING_RATE, add_lora
from supplementary.training import TrainSettings, train

from .limit import least_seconds
from .rounds import PRECISIONS, now, use_precision
from .textbook import train_textbook


@dataclass(frozen=True)
class Peer:
    """One way to train.

    Args:
        loop: "ours", "textbook", "trl", "trainer" or "limit".
        method: "full" or "lora".
        precision: of the matrix products.
        batches: for TRL, see `make_sft_trainer`.
        weights: precision in which TRL's model is loaded.
        keep_memory: whether freed memory stays in the process.
    """

    loop: str
    method: str = "full"
    precision: str = "float32"
    batches: str = ""
    weights: str = "float32"
    keep_memory: bool = True

    @property
    def settings(self) -> TrainSettings:
        """The settings of one epoch."""
        rate = LEARNING_RATE if self.method == "lora" else TrainSettings.learning_rate
        return TrainSettings(epochs=1, learning_rate=rate)

    @property
    def name(self) -> str:
        """The name on the command line and in the table."""
        parts = [self.loop, self.batches, self.method, self.precision]
        parts += ["half-base"] if self.weights != "float32" else []
        return "-".join(filter(None, parts + ([] if self.keep_memory else ["fresh-pages"])))


def make_peers() -> dict[str, Peer]:
    """Return all peers by name, in the order in which they take turns."""
    peers = [Peer("textbook"), Peer("textbook", keep_memory=False)]
    for precision in PRECISIONS:
        peers.append(Peer("trainer", precision=precision, batches="grouped"))
        for method in ("full", "lora"):
            peers += [
                Peer("trl", method, precision, batches)
                for batches in ("padded", "padding-free", "packed")
            ]
            peers += [Peer("ours", method, precision), Peer("limit", method, precision)]
    peers.append(Peer("trl", "lora", "bfloat16", "padding-free", weights="bfloat16"))
    return {peer.name: peer for peer in peers}


PEERS = make_peers()


class Stopwatch:
    """Measures from the last `start` to the last `lap`."""

    def __init__(self) -> None:
        self.device = pick_device()
        self.start()

    def start(self) -> None:
        self.begin = self.end = now(self.device)

    def lap(self) -> None:
        self.end = now(self.device)

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def train_plainly(
    peer: Peer, folder: Path, first: list[Example], examples: list[Example]
) -> tuple[float, float]:
    """Train with ours or the textbook loop: two steps on `first`, then the pass that is timed.

    Returns:
        The loss of `first` in nats per labelled token before training, and the seconds.
    """
    watch, settings, losses = Stopwatch(), peer.settings, []
    model, tokenizer = load_pretrained(folder, pick_device())
    if peer.method == "lora":
        add_lora(model)
    if peer.loop == "textbook":
        losses.append(_padded_loss(model, first, tokenizer.pad_token_id))

    def on_step(row: dict | None = None) -> None:
        losses.extend([row["loss"]] if row else [])
        watch.lap()

    for rows, epochs in ((first, 2), (examples, 1)):
        passes = replace(settings, epochs=epochs)
        watch.start()
        if peer.loop == "textbook":
            train_textbook(model, rows, passes, tokenizer.pad_token_id, on_step)
        else:
            train(model, rows, [], passes, on_step=on_step)
    return losses[0], watch.seconds


def train_with_trainer(
    peer: Peer, folder: Path, first: list[Example], examples: list[Example]
) -> tuple[float, float]:
    """Train with `Trainer` or TRL: one step on `first` for its loss, then two steps, then the pass.

    Returns:
        The loss of `first` in nats per labelled token before training, and the seconds.
    """
    from .trainers import make_plain_trainer, make_sft_trainer, run_trainer

    def make(rows: list[Example]):
        if peer.loop == "trainer":
            return make_plain_trainer(folder, rows, peer.settings, peer.precision)
        kind = (peer.method, peer.precision, peer.batches, peer.weights)
        return make_sft_trainer(folder, rows, peer.settings, *kind)

    watch = Stopwatch()
    loss = run_trainer(make(first), watch.start, watch.lap, steps=1)
    gc.collect()
    trainer = make(examples)
    run_trainer(trainer, watch.start, watch.lap, steps=2)
    run_trainer(trainer, watch.start, watch.lap)
    return loss, watch.seconds


@torch.no_grad()
def _padded_loss(model: torch.nn.Module, examples: list[Example], pad_token_id: int) -> float:
    """Return the loss of one padded batch, computed as the textbook loop does."""
    batch = collate_padded(examples, pad_token_id)
    logits = model(batch["input_ids"].to(model.device))[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, batch["labels"][:, 1:].flatten().to(model.device)).item()


def measure_peer(peer: Peer, folder: Path, first: list[Example], examples: list[Example]) -> dict:
    """Warm up, train, and return what was measured.

    Args:
        peer: the way to train.
        folder: the pretrained model.
        first: one batch to warm up on; its loss before training is reported.
        examples: what is learnt in the time measured.
    """
    if peer.keep_memory:
        keep_freed_memory()
    use_precision(peer.precision)
    counts = {
        "examples": len(examples),
        "tokens": sum(len(example.input_ids) for example in examples),
    }
    if peer.loop == "limit":
        model, _ = load_pretrained(folder, pick_device())
        if peer.method == "lora":
            add_lora(model)
        full, precision = peer.method == "full", PRECISIONS[peer.precision]
        size = TrainSettings.batch_size
        return counts | least_seconds(model, examples, size, full, precision)
    run = train_with_trainer if peer.loop in ("trl", "trainer") else train_plainly
    loss, seconds = run(peer, folder, first, examples)
    peak = peak_memory_bytes(pick_device())
    return {"first_loss": loss, "seconds": seconds, **counts, "peak": peak}
