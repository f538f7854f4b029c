"""The exercises of notebook 07, patients 1 to 4: a batch, labels, a cut, a row."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from ..batching import Batch, collate_packed, collate_padded
from ..data import IGNORE_INDEX, Example
from ..model import CausalLM
from ..training import token_losses
from .batching import END, TINY, TOY
from .check import Check

PATIENT = "this does what the patient does: "
TOY_EXAMPLES = [Example(ids, length) for ids, length in zip(TOY, (3, 1, 2), strict=True)]


def _batches() -> dict[str, tuple[list[Example], int]]:
    in_prompt = [Example([1, END, 2, END], 2), Example([3, 4, 5, 6, END], 1)]
    two_turns = [Example([1, 2, END, 3, END], 1), Example([4, END], 1)]
    return {
        "the toy batch": (list(TOY_EXAMPLES), END),
        "rows of equal length": ([Example([1, 2, END], 1), Example([3, 4, END], 2)], END),
        "a prompt that holds an end-of-text": (in_prompt, END),
        "a response of two turns": (two_turns, END),
    }


def _batch(examples: list[Example], pad_token_id: int, moved: int = 0, cut: int = 0) -> Batch:
    """Move the labels to the left, and cut columns off at the right."""
    batch = collate_padded(examples, pad_token_id)
    labels = torch.full_like(batch["labels"], IGNORE_INDEX)
    for place in range(labels.shape[1]):
        if 0 <= place + moved < labels.shape[1]:
            labels[:, place] = batch["labels"][:, place + moved]
    kept = labels.shape[1] - cut
    return {"input_ids": batch["input_ids"][:, :kept], "labels": labels[:, :kept]}


def _labels(
    examples: list[Example],
    pad_token_id: int,
    counts: Callable[[int, list[int], int], bool],
    mask_prompt: bool = True,
) -> Tensor:
    """Keep the labels of the places behind the prompt that `counts(place, ids, length)`."""
    input_ids = collate_padded(examples, pad_token_id)["input_ids"]
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, ids, example in zip(labels, input_ids.tolist(), examples, strict=True):
        for place in range(example.prompt_length if mask_prompt else 0, len(ids)):
            if counts(place, ids, len(example.input_ids)):
                row[place] = ids[place]
    return labels


def _labelled(counts: Callable[[int, list[int], int], bool], mask_prompt: bool = True) -> Callable:
    """Make a batch function whose labels are those of `_labels`."""
    return lambda examples, pad_token_id: {
        "input_ids": collate_padded(examples, pad_token_id)["input_ids"],
        "labels": _labels(examples, pad_token_id, counts, mask_prompt),
    }


check_repaired_batch = Check(
    solution=collate_padded,
    cases=_batches,
    mistakes={
        f"{PATIENT}follow one label from here into the loss, and count how often it moves": partial(
            _batch, moved=1, cut=1
        ),
        "the rows have their whole length now, but each label still moves twice": partial(
            _batch, moved=1
        ),
        "the labels move to the right; with the loss's own shift each token predicts itself": (
            partial(_batch, moved=-1)
        ),
        "the last column is missing, and with it the end-of-text of the longest example": partial(
            _batch, cut=1
        ),
        "the prompt keeps its labels": partial(collate_padded, mask_prompt=False),
        "the padding keeps its labels: the model is asked to stop after it has stopped": _labelled(
            lambda place, ids, length: True
        ),
        "nothing is hidden: prompts and padding keep their labels": _labelled(
            lambda place, ids, length: True, mask_prompt=False
        ),
        "the padding is hidden by its id, and with it the label that says stop": _labelled(
            lambda place, ids, length: ids[place] != END
        ),
    },
)


check_repaired_labels = Check(
    solution=lambda examples, pad_token_id: collate_padded(examples, pad_token_id)["labels"],
    cases=_batches,
    mistakes={
        f"{PATIENT}read the labels of one row, and look for the one that says stop": partial(
            _labels, counts=lambda place, ids, length: ids[place] != END
        ),
        "the padding keeps its labels: the model is asked to stop after it has stopped": partial(
            _labels, counts=lambda place, ids, length: True
        ),
        "the id still decides: a mark inside the text is taken for the end of the row": partial(
            _labels, counts=lambda place, ids, length: END not in ids[:place]
        ),
        "one token too many is hidden, the one that says stop": partial(
            _labels, counts=lambda place, ids, length: place < length - 1
        ),
        "the prompt keeps its labels": lambda examples, pad_token_id: collate_padded(
            examples, pad_token_id, mask_prompt=False
        )["labels"],
    },
)

Cut = tuple[list[Example], list[int]]


def _cut(examples: list[Example], max_length: int) -> Cut:
    """Cut responses; leave out examples that keep no token of theirs beside the end."""
    kept, left_out = [], []
    for index, example in enumerate(examples):
        *ids, last = example.input_ids
        if min(len(example.input_ids), max_length) < example.prompt_length + 2:
            left_out.append(index)
        else:
            kept.append(Example([*ids[: max_length - 1], last], example.prompt_length))
    return kept, left_out


def _cut_where_long(
    examples: list[Example], max_length: int, least: int = 2, end: bool = True
) -> Cut:
    """Leave out only prompts behind which `least` tokens have no room."""
    kept, left_out = [], []
    for index, example in enumerate(examples):
        ids, last = example.input_ids[:max_length], example.input_ids[-1]
        if example.prompt_length + least > max_length:
            left_out.append(index)
        else:
            ids = [*ids[:-1], last] if end else ids
            kept.append(Example(ids, min(example.prompt_length, max_length)))
    return kept, left_out


def _whole_only(examples: list[Example], max_length: int) -> Cut:
    fits = [len(example.input_ids) <= max_length for example in examples]
    kept = [example for example, fit in zip(examples, fits, strict=True) if fit]
    return kept, [index for index, fit in enumerate(fits) if not fit]


def _from_the_left(examples: list[Example], max_length: int) -> Cut:
    gone = [max(0, len(example.input_ids) - max_length) for example in examples]
    pairs = zip(examples, gone, strict=True)
    return [Example(e.input_ids[n:], max(0, e.prompt_length - n)) for e, n in pairs], []


def _end_twice(examples: list[Example], max_length: int) -> Cut:
    kept, left_out = _cut_where_long(examples, max_length - 1)
    return [Example([*e.input_ids, e.input_ids[-1]], e.prompt_length) for e in kept], left_out


def _view_cut(result: Cut) -> dict:
    if len(result) != 2 or isinstance(result[0], Example):
        raise TypeError("return two things: the examples that are kept, and the others' indices")
    kept, left_out = result
    pairs = [(example.input_ids, example.prompt_length) for example in kept]
    return {"kept": pairs, "left out": list(left_out)}


check_repaired_cut = Check(
    solution=_cut,
    cases=lambda: {
        "four examples": ([*TOY_EXAMPLES, Example([1, 2, 3, 4, 5, END], 5)], 5),
        "room for the end alone": ([Example([1, 2, 3, 4, END], 2)], 3),
        "examples that just fit": ([Example([1, 2, END], 1), Example([3, 4, END], 1)], 3),
        "an example whose response is empty": (
            [Example([1, 2, END], 2), Example([3, 4, END], 1)],
            10,
        ),
    },
    mistakes={
        f"{PATIENT}count the labels that each example keeps, and look at its last token": partial(
            _cut_where_long, least=-1000, end=False
        ),
        "examples without a label are gone, but a cut response has lost its end-of-text": partial(
            _cut_where_long, end=False
        ),
        "an example is kept with nothing but its end: it teaches to answer nothing": partial(
            _cut_where_long, least=1
        ),
        "only prompts that fill the limit are left out, and a cut response has lost its "
        "end-of-text": partial(_cut_where_long, least=1, end=False),
        "an example without a response is kept, since there is room for one; it teaches to answer "
        "nothing": _cut_where_long,
        "an example without room for a response is kept": partial(_cut_where_long, least=-1000),
        "every example that is too long is left out; those with room keep what fits": _whole_only,
        "the beginning is cut off, where the instruction stands": _from_the_left,
        "a second end-of-text is put behind the first": _end_twice,
        "what is left out is not reported": lambda examples, max_length: (
            _cut(examples, max_length)[0],
            [],
        ),
    },
    view=_view_cut,
)


def rounded(values: Iterable[float]) -> list[float]:
    """Return numbers as they are compared and shown."""
    return [round(float(value), 4) for value in values]


def small_model() -> CausalLM:
    """Return a small random model, the same each time, whose attention matters."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = CausalLM(TINY)
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@torch.no_grad()
def try_row(batch: Batch) -> dict:
    """Return the batch's shape, and a small random model's loss of each labelled token."""
    rows, length = batch["input_ids"].shape
    mask = batch.get("attention_mask")
    if mask is not None:
        if tuple(mask.shape) not in {(1, length, length), (rows, length, length)}:
            shape = tuple(mask.shape)
            raise ValueError(f"the mask has the shape {shape}, and has to be boolean, (1, T, T)")
        if mask.dtype != torch.bool:
            raise ValueError(f"the mask is {mask.dtype}, and has to be boolean, (1, T, T)")
    losses = token_losses(small_model(), batch).tolist()
    return {"shape": (rows, length), "losses": rounded(losses)}


def _row(
    examples: list[Example], mask: str = "causal", restart: bool = False, mend: bool = False
) -> Batch:
    """Pack examples by hand, with one of several masks, and with mended labels or without."""
    ids = [example.input_ids for example in examples]
    owner = torch.tensor([number for number, row in enumerate(ids) for _ in row])
    own = owner[:, None] == owner  # (T, T)
    causal = torch.ones_like(own).tril()
    masks = {"causal": causal, "own": own, "own, causal": own & causal, "others": ~own & causal}
    rows = [example.labels() for example in examples]
    rows = [[IGNORE_INDEX, *row[1:]] for row in rows] if mend else rows
    batch = {
        "input_ids": torch.tensor([list(chain(*ids))]),
        "labels": torch.tensor([list(chain(*rows))]),
        "attention_mask": (masks[mask] | torch.eye(len(owner)).bool())[None],
    }
    places = [place for row in ids for place in range(len(row))]
    return batch | ({"position_ids": torch.tensor([places])} if restart else {})


check_repaired_row = Check(
    solution=collate_packed,
    cases=lambda: {
        "the toy examples": (list(TOY_EXAMPLES),),
        "the same in another order": (TOY_EXAMPLES[::-1],),
        "a single example": (TOY_EXAMPLES[:1],),
        "examples without a prompt": ([Example([1, 2, END], 0), Example([3, 4, 5, END], 0)],),
    },
    mistakes={
        f"{PATIENT}put another example in front, and see whose loss changes": _row,
        "the labels are repaired, but tokens still see the examples before theirs": partial(
            _row, mend=True
        ),
        "the positions restart, but tokens still see the examples before theirs": partial(
            _row, restart=True
        ),
        "each example sees itself alone, but also its own future: the mask is not causal": partial(
            _row, mask="own", mend=True
        ),
        "tokens see the future of their own example, and its first token is scored after another's "
        "end": partial(_row, mask="own"),
        "the mask shows the other examples and hides the own one": partial(_row, mask="others"),
        "the mask is right, but the first token of an example is scored after another's end": (
            partial(_row, mask="own, causal")
        ),
        "each example has a row of its own, and padding behind it; pack all on one": (
            lambda examples: collate_padded(examples, END)
        ),
    },
    view=try_row,
)
