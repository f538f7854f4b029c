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


def shared_prefix_length(sequences: list[list[int]]) -> int:
    """Return how many tokens all sequences begin with, leaving each at least one of its own."""
    first, limit = sequences[0], min(len(sequence) for sequence in sequences) - 1
    for length in range(limit):
        if any(sequence[length] != first[length] for sequence in sequences):
            return length
    return max(limit, 0)


def pack(sequences: list[list[int]], prefix_length: int = 0) -> Batch:
    """Put sequences on one row: `[prefix][rest of sequence 1][rest of sequence 2]...`.

    Args:
        sequences: B lists of token ids.
        prefix_length: tokens at the beginning that all share, see `shared_prefix_length`; they are
            stored, and computed, once.

    Returns:
        What `CausalLM` needs to give every token the logits that it would get alone, int64:
        `input_ids` and `position_ids` (1, T), and `rows` (B, S), the places in the packed row of
        each sequence's tokens, filled up with -1. Positions go on from the prefix.
    """
    input_ids, positions = sequences[0][:prefix_length], list(range(prefix_length))
    rows = torch.full((len(sequences), max(len(sequence) for sequence in sequences)), -1)
    rows[:, :prefix_length] = torch.arange(prefix_length)
    for row, sequence in zip(rows, sequences, strict=True):
        start = len(input_ids)
        input_ids += sequence[prefix_length:]
        row[prefix_length : len(sequence)] = torch.arange(start, len(input_ids))
        positions += range(prefix_length, len(sequence))
    packed = {"input_ids": torch.tensor([input_ids]), "position_ids": torch.tensor([positions])}
    return packed | {"rows": rows}


def collate_packed(
    examples: list[Example], prefix_length: int = 0, mask_prompt: bool = True
) -> Batch:
    """Put all examples on one row, and compute what they share once; see `pack`.

    Args:
        examples: the examples.
        prefix_length: tokens at the beginning that all examples share.
        mask_prompt: whether the prompts are hidden from the loss.

    Returns:
        What `pack` returns, and `labels`, int64 (1, T).

    Raises:
        ValueError: if there are no examples, or if shared tokens would carry labels.
    """
    if not examples:
        raise ValueError("no examples to batch; give at least one")
    if prefix_length and not mask_prompt:
        raise ValueError("a shared prefix cannot carry labels; pack with prefix_length=0")
    labels = [IGNORE_INDEX] * prefix_length
    for example in examples:
        # The first token of a part follows another example in the row: nothing may predict it.
        labels += [IGNORE_INDEX, *example.labels(mask_prompt)[prefix_length + 1 :]]
    batch = pack([example.input_ids for example in examples], prefix_length)
    return batch | {"labels": torch.tensor([labels])}


def balanced_batches(
    lengths: list[int], batch_size: int, seed: int, epoch: int = 0
) -> list[list[int]]:
    """Make random batches of about the same number of tokens, the same way on every machine.

    The examples are ordered by length and cut into `batch_size` classes, from short to long; each
    batch draws one example from each class.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch; some batches may hold one fewer.
        seed, epoch: together they decide which examples meet.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda index: lengths[index])  # stable: ties stay shuffled
    count = -(-len(order) // batch_size)  # rounded up
    batches = [[] for _ in range(count)]
    for start in range(0, len(order), count or 1):
        members = order[start : start + count]
        for place in torch.randperm(count, generator=generator)[: len(members)].tolist():
            batches[place].append(members.pop())
    return batches


def make_loader(
    examples: list[Example],
    batches: list[list[int]],
    collate: Callable[[list[Example]], Batch],
) -> DataLoader:
    """Return a `DataLoader` that gives the examples of each list of indices as one batch."""
    return DataLoader(examples, batch_sampler=batches, collate_fn=collate)
