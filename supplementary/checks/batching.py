"""The exercises of notebook 02: labels, truncation, padding, and padding on the left."""

import torch
from torch import Tensor

from ..batching import Batch
from ..data import IGNORE_INDEX, Example
from ..model import CausalLM, ModelConfig
from ..training import next_token_loss
from .check import Check

END = 99  # end-of-text and padding of the toy batch
TINY = ModelConfig(
    vocab_size=END + 1,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=32,
)
TOY = [[0, 1, 2, 3, 4, END], [5, 6, END], [7, 8, 9, END]]


def pad_right(rows: list[list[int]]) -> Tensor:
    """Return the rows as one tensor (B, T), padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [END] * (longest - len(row)) for row in rows])


def mask_labels(input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
    """Return unshifted labels (B, T), prompts and padding at IGNORE_INDEX."""
    return _mask(input_ids, prompt_lengths, lengths)


def _mask(input_ids: Tensor, first: Tensor, end: Tensor) -> Tensor:
    places = torch.arange(input_ids.shape[1])  # (T,)
    counts = (places >= first[:, None]) & (places < end[:, None])  # (B, T)
    return torch.where(counts, input_ids, IGNORE_INDEX)


def _hidden_by_id(input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
    labels = _mask(input_ids, prompt_lengths, lengths)
    return labels.masked_fill(labels == END, IGNORE_INDEX)


def _shifted(input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
    labels = _mask(input_ids, prompt_lengths, lengths)
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)


def _in_place(input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
    places = torch.arange(input_ids.shape[1])
    return input_ids.masked_fill_(
        (places < prompt_lengths[:, None]) | (places >= lengths[:, None]), IGNORE_INDEX
    )


check_mask_labels = Check(
    solution=mask_labels,
    cases=lambda: {
        "the toy batch": (pad_right(TOY), torch.tensor([3, 1, 2]), torch.tensor([6, 3, 4])),
        "rows that begin with the end-of-text id": (
            pad_right([[END, 1, 2, END], [END, 3, END]]),
            torch.tensor([2, 1]),
            torch.tensor([4, 3]),
        ),
    },
    mistakes={
        "the end-of-text is hidden with the padding, as it has the same id: hide by length": (
            _hidden_by_id
        ),
        "the labels are shifted here, and the loss will shift them again": _shifted,
        "the padding keeps its labels": lambda ids, prompts, lengths: _mask(
            ids, prompts, torch.full_like(lengths, ids.shape[1])
        ),
        "the prompt keeps its labels": lambda ids, prompts, lengths: _mask(
            ids, torch.zeros_like(prompts), lengths
        ),
        "the first response token is hidden, too": lambda ids, prompts, lengths: _mask(
            ids, prompts + 1, lengths
        ),
        "the last prompt token has a label": lambda ids, prompts, lengths: _mask(
            ids, prompts - 1, lengths
        ),
        "`input_ids` are changed in place: the model would read -100": _in_place,
    },
)


def truncate(example: Example, max_length: int) -> Example | None:
    """Return the example cut to `max_length` with its end-of-text; None if no response is left."""
    *ids, end = example.input_ids
    if example.prompt_length + 2 > max_length:
        return None
    return Example([*ids[: max_length - 1], end], example.prompt_length)


def _cut_off(example: Example, max_length: int) -> Example | None:
    if example.prompt_length + 2 > max_length:
        return None
    return Example(example.input_ids[:max_length], example.prompt_length)


def _one_too_long(example: Example, max_length: int) -> Example | None:
    if example.prompt_length + 2 > max_length:
        return None
    *ids, end = example.input_ids
    return Example([*ids[:max_length], end], example.prompt_length)


def _end_twice(example: Example, max_length: int) -> Example | None:
    if example.prompt_length + 2 > max_length:
        return None
    ids = example.input_ids[: max_length - 1]
    return Example([*ids, example.input_ids[-1]], example.prompt_length)


def _never_none(example: Example, max_length: int) -> Example:
    *ids, end = example.input_ids
    return Example([*ids[: max_length - 1], end], example.prompt_length)


def _only_the_end(example: Example, max_length: int) -> Example | None:
    return None if example.prompt_length + 1 > max_length else _never_none(example, max_length)


def _from_the_left(example: Example, max_length: int) -> Example | None:
    if example.prompt_length + 2 > max_length:
        return None
    cut = max(0, len(example.input_ids) - max_length)
    return Example(example.input_ids[cut:], example.prompt_length - cut)


check_truncate = Check(
    solution=truncate,
    cases=lambda: {
        "five tokens and the end, to be cut to five": (Example([0, 1, 2, 3, 4, END], 2), 5),
        "an example that just fits": (Example([0, 1, 2, END], 2), 4),
        "an example that is shorter": (Example([0, 1, 2, END], 2), 9),
        "a prompt that leaves room for the end alone": (Example([0, 1, 2, 3, END], 3), 4),
        "a prompt that is longer than all that is allowed": (Example([0, 1, 2, 3, END], 3), 2),
    },
    mistakes={
        "the end-of-text is cut off: the model learns to go on where it should stop": _cut_off,
        "the result is one token too long; the end-of-text needs room, too": _one_too_long,
        "an example that is not cut gets a second end-of-text": _end_twice,
        "a prompt without room for a response is kept; it teaches nothing": _never_none,
        "an example without a response token is kept; it teaches to answer nothing": _only_the_end,
        "the beginning is cut off; the model needs the instruction": _from_the_left,
    },
    view=lambda example: {"input_ids": example.input_ids, "prompt_length": example.prompt_length},
)


def padding_share(lengths: list[int], batch_size: int) -> float:
    """Return the share of padding, in [0, 1], if rows are batched in the order of the list."""
    batches = _cut(lengths, batch_size)
    return 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


def _cut(lengths: list[int], size: int) -> list[list[int]]:
    return [lengths[i : i + size] for i in range(0, len(lengths), size)]


def _to_the_longest_of_all(lengths: list[int], batch_size: int) -> float:
    return 1 - sum(lengths) / (len(lengths) * max(lengths))


def _last_filled_up(lengths: list[int], batch_size: int) -> float:
    return 1 - sum(lengths) / sum(batch_size * max(batch) for batch in _cut(lengths, batch_size))


def _of_the_tokens(lengths: list[int], batch_size: int) -> float:
    return 1 / (1 - padding_share(lengths, batch_size)) - 1


def _mean_of_batches(lengths: list[int], batch_size: int) -> float:
    batches = _cut(lengths, batch_size)
    return sum(1 - sum(b) / (len(b) * max(b)) for b in batches) / len(batches)


def _sorted_first(lengths: list[int], batch_size: int) -> float:
    return padding_share(sorted(lengths), batch_size)


check_padding_share = Check(
    solution=padding_share,
    cases=lambda: {
        "the toy batch and two more rows": ([6, 3, 4, 8, 2], 3),
        "batches of one": ([6, 3, 4], 1),
        "a batch that is larger than the data": ([6, 3, 4], 8),
    },
    mistakes={
        "rows are padded to the longest of all, not of their batch": _to_the_longest_of_all,
        "the last batch is smaller; it is not filled up": _last_filled_up,
        "the divisor is what is computed, padding included, not the tokens alone": _of_the_tokens,
        "a mean of the batches' shares lets small batches count as much as large ones": (
            _mean_of_batches
        ),
        "the rows are sorted first; keep the order of the list": _sorted_first,
        "these are percent; asked for is a share in [0, 1]": lambda lengths, batch_size: (
            100 * padding_share(lengths, batch_size)
        ),
        "this is the share that is not padding": lambda lengths, batch_size: (
            1 - padding_share(lengths, batch_size)
        ),
    },
)


def collate_left(examples: list[Example], pad_token_id: int) -> Batch:
    """Pad on the left; the mask (B, T, T) lets each token see its own text only."""
    return _left(examples, pad_token_id)


def _left(examples: list[Example], pad_token_id: int, mask: str = "whole") -> Batch:
    longest = max(len(example.input_ids) for example in examples)
    gaps = [longest - len(example.input_ids) for example in examples]
    pairs = list(zip(gaps, examples, strict=True))
    input_ids = torch.tensor([[pad_token_id] * gap + e.input_ids for gap, e in pairs])
    labels = torch.tensor([[IGNORE_INDEX] * gap + e.labels() for gap, e in pairs])
    real = torch.arange(longest) >= torch.tensor(gaps)[:, None]  # (B, T)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    itself = torch.eye(longest, dtype=torch.bool)
    masks = {
        "whole": causal & real[:, None] | itself,
        "causal": causal.expand(len(examples), -1, -1),
        "padding": (real[:, None] | itself).expand(-1, longest, -1),
        "transposed": (causal & real[:, None] | itself).transpose(1, 2),
    }
    return {"input_ids": input_ids, "labels": labels, "attention_mask": masks[mask]}


def _right(examples: list[Example], pad_token_id: int) -> Batch:
    rows = [example.input_ids for example in examples]
    longest = max(map(len, rows))
    shape = (len(rows), longest, longest)
    return {
        "input_ids": torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows]),
        "labels": pad_right([example.labels() for example in examples]).where(
            torch.arange(longest) < torch.tensor([[len(row)] for row in rows]), IGNORE_INDEX
        ),
        "attention_mask": torch.ones(longest, longest, dtype=torch.bool).tril().expand(shape),
    }


def try_batch(batch: Batch) -> dict:
    """Return the ids, the labels, and the loss that a small random model has on the batch."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = CausalLM(TINY)
        for parameter in model.parameters():  # large enough for attention to matter
            parameter.normal_(std=0.5)
        loss, count = next_token_loss(model, batch)
    return {
        "input_ids": batch["input_ids"],
        "labels": batch["labels"],
        "loss": (loss / count).item(),
    }


check_collate_left = Check(
    solution=collate_left,
    cases=lambda: {
        "the toy batch": (
            [Example(ids, length) for ids, length in zip(TOY, (3, 1, 2), strict=True)],
            END,
        ),
        "rows of equal length": ([Example([1, 2, END], 1), Example([3, 4, END], 2)], END),
    },
    mistakes={
        "the real tokens see the padding: there is no `attention_mask`, or a causal one only": (
            lambda examples, pad: _left(examples, pad, "causal")
        ),
        "the mask hides the padding, but tokens see what comes later": (
            lambda examples, pad: _left(examples, pad, "padding")
        ),
        "rows and columns of the mask are swapped; a row says what one token sees": (
            lambda examples, pad: _left(examples, pad, "transposed")
        ),
        "the padding is on the right": _right,
    },
    view=try_batch,
)
