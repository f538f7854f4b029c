"""Batches: examples of different lengths as tensors, padded or packed.

A batch is a dictionary of tensors. `labels` have the shape of `input_ids` and are not shifted; the
loss shifts them by one.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .data import IGNORE_INDEX, Example

Batch = dict[str, Tensor]


def collate_padded(examples: list[Example], pad_token_id: int, mask_prompt: bool = True) -> Batch:
    """Put each example on a row of its own and pad on the right to the longest.

    Args:
        examples: B examples.
        pad_token_id: what fills the rows; its labels are hidden by length, so it may equal the
            end-of-text id.
        mask_prompt: whether the prompt is hidden from the loss.

    Returns:
        `input_ids` and `labels`, int64 (B, T). No mask is needed: causal attention never looks
        right, where the padding is.

    Raises:
        ValueError: if there are no examples.
    """
    if not examples:
        raise ValueError("no examples to batch; give at least one")
    shape = (len(examples), max(len(example.input_ids) for example in examples))
    input_ids = torch.full(shape, pad_token_id)
    labels = torch.full(shape, IGNORE_INDEX)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids)
        labels[row, :length] = torch.tensor(example.labels(mask_prompt))
    return {"input_ids": input_ids, "labels": labels}


def shared_prefix_length(examples: list[Example]) -> int:
    """Return how many tokens all prompts begin with, leaving each at least one of its own."""
    first, *others = [
        example.input_ids[: max(0, example.prompt_length - 1)] for example in examples
    ]
    length = len(first)
    for other in others:
        length = min(length, len(other))
        while first[:length] != other[:length]:
            length -= 1
    return max(length, 0)


def collate_packed(
    examples: list[Example], prefix_length: int = 0, mask_prompt: bool = True
) -> Batch:
    """Put all examples on one row: `[prefix][rest of example 1][rest of example 2]...`.

    Each example sees the prefix and itself, and its positions go on from the prefix, so every token
    gets the logits that it would get alone.

    Args:
        examples: the examples.
        prefix_length: tokens at the beginning that all examples share, see `shared_prefix_length`;
            they are stored, and computed, once.
        mask_prompt: whether the prompts are hidden from the loss.

    Returns:
        `input_ids`, `labels` and `position_ids`, int64 (1, T), and `attention_mask`, boolean
        (1, T, T), True where a token may look at another.

    Raises:
        ValueError: if there are no examples, or if shared tokens would carry labels.
    """
    if not examples:
        raise ValueError("no examples to batch; give at least one")
    if prefix_length and not mask_prompt:
        raise ValueError("a shared prefix cannot carry labels; pack with prefix_length=0")
    rests = [example.input_ids[prefix_length:] for example in examples]
    input_ids, labels = examples[0].input_ids[:prefix_length], [IGNORE_INDEX] * prefix_length
    positions, owner = list(range(prefix_length)), [0] * prefix_length
    for number, (example, rest) in enumerate(zip(examples, rests, strict=True), start=1):
        input_ids = input_ids + rest
        # The first token of a part follows another example in the row: nothing may predict it.
        labels += [IGNORE_INDEX, *example.labels(mask_prompt)[prefix_length + 1 :]]
        positions += range(prefix_length, prefix_length + len(rest))
        owner += [number] * len(rest)
    owners = torch.tensor(owner)
    visible = (owners[:, None] == owners[None]) | (owners[None] == 0)  # (T, T)
    return {
        "input_ids": torch.tensor([input_ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": visible.tril()[None],
    }


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int = 0) -> list[list[int]]:
    """Shuffle the indices 0..count-1 and cut them into batches, the same way on every machine.

    Args:
        count: number of examples.
        batch_size: examples in a batch; the last one may hold fewer.
        seed, epoch: together they decide the order.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


def grouped_batches(lengths: list[int], batch_size: int, seed: int) -> list[list[int]]:
    """Make batches of examples of about the same length, in random order.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch.
        seed: decides which examples of equal length meet, and the order of the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda index: lengths[index])  # stable: ties stay shuffled
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def make_loader(
    examples: list[Example],
    batches: list[list[int]],
    collate: Callable[[list[Example]], Batch],
) -> DataLoader:
    """Return a `DataLoader` that gives the examples of each list of indices as one batch."""
    return DataLoader(examples, batch_sampler=batches, collate_fn=collate)
