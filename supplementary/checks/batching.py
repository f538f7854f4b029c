"""The exercises of notebook 02: labels, truncation, padding, and padding on the left."""

from functools import partial

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


def _moved(
    input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor, first: int = 0, end: int = 0
) -> Tensor:
    return _mask(input_ids, prompt_lengths + first, lengths + end)


def _inverted(input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
    hidden = _mask(input_ids, prompt_lengths, lengths) == IGNORE_INDEX
    return torch.where(hidden, input_ids, IGNORE_INDEX)


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
        "rows that hold the end-of-text id elsewhere, too": (
            pad_right([[END, 1, 2, END, 3, END], [END, 3, END]]),
            torch.tensor([2, 1]),
            torch.tensor([6, 3]),
        ),
    },
    mistakes={
        "the end-of-text is hidden with the padding, as it has the same id: hide by length": (
            _hidden_by_id
        ),
        "the labels are shifted here, and the loss will shift them again": _shifted,
        "the padding keeps its labels": partial(_moved, end=END),
        "the prompt keeps its labels": partial(_moved, first=-END),
        "the first response token is hidden, too": partial(_moved, first=1),
        "the last prompt token has a label": partial(_moved, first=-1),
        "the end-of-text is hidden, too; `lengths` counts it, so its place is `lengths - 1`": (
            partial(_moved, end=-1)
        ),
        "the first padding token has a label; places count from 0, `lengths` from 1": (
            partial(_moved, end=1)
        ),
        "the response is hidden, and the rest has labels; look at what True does": _inverted,
        "places (T,) are compared with lengths (B,); `[:, None]` makes those a column (B, 1)": (
            lambda ids, *limits: torch.arange(ids.shape[1]) >= limits[0]
        ),
        "`input_ids` are changed in place: the model would read -100": _in_place,
    },
)


def truncate(example: Example, max_length: int) -> Example | None:
    """Return the example cut to `max_length` with its end-of-text; None if no response is left."""
    return _truncate(example, max_length)


def _truncate(
    example: Example, max_length: int, room: int = 2, longer: int = 0, end: bool = True
) -> Example | None:
    """Cut an example that has `room` behind its prompt, which -END says of all."""
    if example.prompt_length + room > max_length:
        return None
    *ids, last = example.input_ids
    ids = [*ids[: max_length - 1 + longer], last] if end else example.input_ids[:max_length]
    return Example(ids, example.prompt_length)


def _end_twice(example: Example, max_length: int) -> Example | None:
    longer = Example([*example.input_ids, example.input_ids[-1]], example.prompt_length)
    return truncate(longer, max_length)


def _from_the_left(example: Example, max_length: int) -> Example | None:
    gone = max(0, len(example.input_ids) - max_length)
    left = Example(example.input_ids[gone:], example.prompt_length - gone)
    return left if truncate(example, max_length) else None


check_truncate = Check(
    solution=truncate,
    cases=lambda: {
        "five tokens and the end, to be cut to five": (Example([0, 1, 2, 3, 4, END], 2), 5),
        "an example that just fits": (Example([0, 1, 2, END], 1), 4),
        "an example that is shorter": (Example([0, 1, 2, END], 2), 9),
        "room for one response token and the end": (Example([0, 1, 2, 3, 4, END], 3), 5),
        "a prompt that leaves room for the end alone": (Example([0, 1, 2, 3, END], 3), 4),
        "a prompt that is longer than all that is allowed": (Example([0, 1, 2, 3, END], 3), 2),
    },
    mistakes={
        "the end-of-text is cut off: the model learns to go on where it should stop": partial(
            _truncate, end=False
        ),
        "the end-of-text is cut off, and a prompt without a response is kept": partial(
            _truncate, room=-END, end=False
        ),
        "the result is one token too long; the end-of-text needs room, too": partial(
            _truncate, longer=1
        ),
        "the result is one token too long, and a prompt without room for a response is kept": (
            partial(_truncate, room=-END, longer=1)
        ),
        "an example that is not cut gets a second end-of-text": _end_twice,
        "a prompt without room for a response is kept; it teaches nothing": partial(
            _truncate, room=-END
        ),
        "an example without a response token is kept; it teaches to answer nothing": partial(
            _truncate, room=1
        ),
        "room for one response token and the end is enough; such an example is dropped": (
            partial(_truncate, room=3)
        ),
        "all examples that are too long are dropped; cut those with room for a response": (
            lambda example, max_length: example if len(example.input_ids) <= max_length else None
        ),
        "the beginning is cut off; the model needs the instruction": _from_the_left,
    },
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
        "not itself": causal & real[:, None],
        "of the rows": real,
        "inverted": ~(causal & real[:, None] | itself),
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


def _by_id(examples: list[Example], pad_token_id: int) -> Batch:
    batch = collate_left(examples, pad_token_id)
    labels = batch["labels"].masked_fill(batch["input_ids"] == pad_token_id, IGNORE_INDEX)
    return batch | {"labels": labels}


def _labels_from_column_0(examples: list[Example], pad_token_id: int) -> Batch:
    batch = collate_left(examples, pad_token_id)
    ids = batch["input_ids"]
    gaps = ids.shape[1] - torch.tensor([len(example.input_ids) for example in examples])
    prompts = torch.tensor([example.prompt_length for example in examples])
    whole = torch.full_like(gaps, ids.shape[1])
    return batch | {"labels": _mask(ids, torch.maximum(gaps, prompts), whole)}


def try_batch(batch: Batch) -> dict:
    """Return ids, labels, a small random model's loss, and whether tokens see themselves."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.ndim != 3:
        raise ValueError("the `attention_mask` has the shape (B, T, T), a row for each token")
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
        "every token sees itself": mask is None or bool(mask.diagonal(dim1=1, dim2=2).all()),
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
            partial(_left, mask="causal")
        ),
        "the mask hides the padding, but tokens see what comes later": (
            partial(_left, mask="padding")
        ),
        "rows and columns of the mask are swapped; a row says what one token sees": (
            partial(_left, mask="transposed")
        ),
        "a padding token sees nothing, not even itself; a softmax over nothing can give NaN": (
            partial(_left, mask="not itself")
        ),
        "the mask (B, T) says what is real, not what each token sees; asked for is (B, T, T)": (
            partial(_left, mask="of the rows")
        ),
        "True means that a token may be looked at; here it means hidden": (
            partial(_left, mask="inverted")
        ),
        "the end-of-text has no label: it has the padding's id, so hide padding by place": _by_id,
        "the prompts' labels are hidden from column 0 on, but the padding moved the prompts": (
            _labels_from_column_0
        ),
        "the padding is on the right": _right,
    },
    view=try_batch,
)
