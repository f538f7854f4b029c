"""The training loop as textbooks write it: padded batches, all logits, plain PyTorch.

It learns the same as `supplementary.training.train`: the same loss, schedule and clipping.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from supplementary.batching import collate_padded
from supplementary.data import IGNORE_INDEX, Example
from supplementary.model import CausalLM
from supplementary.training import TrainSettings, learning_rate_at


def train_textbook(
    model: CausalLM,
    examples: list[Example],
    settings: TrainSettings,
    pad_token_id: int,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Finetune the trainable parameters of `model` in place; call `on_step` after each step."""
    loader = DataLoader(
        examples,
        batch_size=settings.batch_size,
        shuffle=True,
        collate_fn=partial(collate_padded, pad_token_id=pad_token_id),
        generator=torch.Generator().manual_seed(settings.seed),
    )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
    )
    total_steps = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_at(step, total_steps, settings) / settings.learning_rate,
    )
    model.train()
    for _ in range(settings.epochs):
        for batch in loader:
            optimizer.zero_grad()
            labels = batch["labels"].to(model.device)
            logits = model(batch["input_ids"].to(model.device))  # (B, T, V)
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1),
                labels[:, 1:].flatten(),
                ignore_index=IGNORE_INDEX,
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            on_step()
    model.eval()
