"""The exercises of notebook 03: the end of a response, min-p, a mask behind the cache."""

import torch
from torch import Tensor

from .check import Check

NEVER = float("-inf")  # the logit of a token that is never drawn
Response = tuple[list[int], bool]


def cut_response(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    """Return the tokens before the first end token, and whether it comes within the limit."""
    ids = new_ids[:max_new_tokens]
    ends = [place for place, token in enumerate(ids) if token in end_ids]
    return (ids[: ends[0]], True) if ends else (ids, False)


def _first_of_the_list(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    return cut_response(new_ids, end_ids[:1], max_new_tokens)


def _in_the_lists_order(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    ids = new_ids[:max_new_tokens]
    for end in end_ids:
        if end in ids:
            return ids[: ids.index(end)], True
    return ids, False


def _end_kept(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    ids, stopped = cut_response(new_ids, end_ids, max_new_tokens)
    return new_ids[: len(ids) + stopped], stopped


def _end_behind_the_limit(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    ids, stopped = cut_response(new_ids, end_ids, len(new_ids))
    return ids[:max_new_tokens], stopped


def _told_by_length(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    ids, _ = cut_response(new_ids, end_ids, max_new_tokens)
    return ids, len(ids) < max_new_tokens


def _without_limit(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    return cut_response(new_ids, end_ids, len(new_ids))


def _ends_skipped(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    ids = new_ids[:max_new_tokens]
    kept = [token for token in ids if token not in end_ids]
    return kept, len(kept) < len(ids)


def _last_place_missed(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    ids, stopped = cut_response(new_ids, end_ids, max_new_tokens - 1)
    return (ids, True) if stopped else (new_ids[:max_new_tokens], False)


def _all_without_end(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    ids, stopped = cut_response(new_ids, end_ids, max_new_tokens)
    return (ids, True) if stopped else (new_ids, False)


def _first_token(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    stopped = new_ids[0] in end_ids
    return [] if stopped else new_ids[:max_new_tokens], stopped


def _zero_is_false(new_ids: list[int], end_ids: list[int], max_new_tokens: int) -> Response:
    ids, stopped = cut_response(new_ids, end_ids, max_new_tokens)
    return (ids, stopped) if ids else (new_ids[:max_new_tokens], False)


check_cut_response = Check(
    solution=cut_response,
    cases=lambda: {
        "[11, 12, 2, 13, 0] with the ends [0, 2] and a limit of 8": (
            [11, 12, 2, 13, 0],
            [0, 2],
            8,
        ),
        "[11, 12, 13, 14, 15] without an end, limit 3": ([11, 12, 13, 14, 15], [0, 2], 3),
        "[11, 12, 13, 2] with the ends [0, 2] and a limit of 3": ([11, 12, 13, 2], [0, 2], 3),
        "[11, 12, 2] with the ends [0, 2] and a limit of 3": ([11, 12, 2], [0, 2], 3),
        "[2, 11], which begins with the end 2": ([2, 11], [0, 2], 3),
        "[11, 12], which ends without an end token, limit 3": ([11, 12], [0, 2], 3),
    },
    mistakes={
        "only the first of `end_ids` is looked for; a model may end with any of them": (
            _first_of_the_list
        ),
        "the order of `end_ids` decides; cut at the end token that stands first in the response": (
            _in_the_lists_order
        ),
        "the end token is still in the response; a reader would see it as text": _end_kept,
        "an end behind the limit counts; with that limit the model would not have written it": (
            _end_behind_the_limit
        ),
        "`stopped` is told by the length; a short response may lack an end, too": _told_by_length,
        "`max_new_tokens` is not used; what comes after it does not count": _without_limit,
        "an end token in the last place within the limit is missed": _last_place_missed,
        "without an end, the tokens behind the limit are kept; they do not count": _all_without_end,
        "only the first token is looked at: a `return` stands inside the loop": _first_token,
        "only the first token is looked at and kept: a `return` stands inside the loop": (
            lambda new_ids, end_ids, _: cut_response(new_ids, end_ids, 1)
        ),
        "the end tokens are taken out, and what follows them is kept; cut there": _ends_skipped,
        "an end at index 0 is missed, as 0 counts as false in `if` and `or`": _zero_is_false,
    },
)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Return the logits (B, V) with tokens below `p` times their row's likeliest at -inf.

    Source: Nguyen et al., 2024, https://arxiv.org/abs/2407.01082.
    """
    probabilities = logits.softmax(-1)
    least = p * probabilities.amax(-1, keepdim=True)  # (B, 1)
    return logits.masked_fill(probabilities < least, NEVER)


def _absolute(logits: Tensor, p: float) -> Tensor:
    return logits.masked_fill(logits.softmax(-1) < p, NEVER)


def _of_the_logits(logits: Tensor, p: float) -> Tensor:
    return logits.masked_fill(logits < p * logits.amax(-1, keepdim=True), NEVER)


def _of_the_batch(logits: Tensor, p: float) -> Tensor:
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), NEVER)


def _strict(logits: Tensor, p: float) -> Tensor:
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities <= p * probabilities.amax(-1, keepdim=True), NEVER)


def _without_keepdim(logits: Tensor, p: float) -> Tensor:
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1), NEVER)


def _zeros(logits: Tensor, p: float) -> Tensor:
    return logits.masked_fill(min_p(logits, p) == NEVER, 0.0)


def _probabilities(logits: Tensor, p: float) -> Tensor:
    return logits.softmax(-1).masked_fill(min_p(logits, p) == NEVER, 0.0)


def _inverted(logits: Tensor, p: float) -> Tensor:
    return logits.masked_fill(min_p(logits, p) > NEVER, NEVER)


check_min_p = Check(
    solution=min_p,
    cases=lambda: {
        "p = 0.3 and the logits [3, 2, 1, 0, -1] and [0.5, 0.375, 0.25, 0.125, 0]": (
            torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0], [0.5, 0.375, 0.25, 0.125, 0.0]]),
            0.3,
        ),
        "p = 0.4 and the logits [4, 0, 0], [1, 1, 1] and [0, 3, 2.5]": (
            torch.tensor([[4.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 3.0, 2.5]]),
            0.4,
        ),
        "p = 1 and the logits [1, 1, 0.5]": (torch.tensor([[1.0, 1.0, 0.5]]), 1.0),
    },
    mistakes={
        "p itself is the threshold; a flat row, where all are unlikely, loses every token": (
            _absolute
        ),
        "logits are compared, whose zero means nothing; compare probabilities": _of_the_logits,
        "one maximum serves the whole batch; each row needs its own": _of_the_batch,
        "a token exactly at the threshold is dropped; asked for is `at least`": _strict,
        "the maxima (B,) are compared with columns; `keepdim=True` keeps them (B, 1)": (
            _without_keepdim
        ),
        "dropped tokens have the logit 0, which still has a probability; only -inf has none": (
            _zeros
        ),
        "these are probabilities; `sample` would take another softmax of them, so return logits": (
            _probabilities
        ),
        "what is kept are probabilities; `sample` takes the softmax itself, so return logits": (
            lambda logits, p: logits.softmax(-1).masked_fill(min_p(logits, p) == NEVER, NEVER)
        ),
        "the likely tokens are dropped; `masked_fill` fills where its mask is True": _inverted,
    },
)


def cache_mask(cached: int, new: int) -> Tensor:
    """Return the boolean mask (1, new, cached + new) of tokens that follow cached ones."""
    return _shifted(cached, new, 0)


def _shifted(cached: int, new: int, by: int) -> Tensor:
    return torch.ones(1, new, cached + new, dtype=torch.bool).tril(cached + by)


def _upper_left(cached: int, new: int) -> Tensor:
    return _shifted(cached, new, -cached)


def _new_only(cached: int, new: int) -> Tensor:
    return cache_mask(0, new)


def _sees_all(cached: int, new: int) -> Tensor:
    return _shifted(cached, new, new)


def describe_mask(mask: Tensor) -> dict:
    """Return a mask and its type; an integer mask equals a boolean one, but is none."""
    return {"dtype": str(mask.dtype), "mask": mask} if isinstance(mask, Tensor) else mask


check_cache_mask = Check(
    solution=cache_mask,
    cases=lambda: {
        "3 cached tokens and 2 new ones": (3, 2),
        "an empty cache and 4 new tokens": (0, 4),
        "5 cached tokens and 1 new one": (5, 1),
        "2 cached tokens and 4 new ones": (2, 4),
    },
    mistakes={
        "the staircase begins at the first column; new tokens stand behind the cached ones": (
            _upper_left
        ),
        "a new token does not see itself": lambda cached, new: _shifted(cached, new, -1),
        "the cached tokens have rows, too; they were read before, so only new ones need a row": (
            lambda cached, new: cache_mask(0, cached + new)
        ),
        "new tokens see later new ones; among themselves they stay causal": _sees_all,
        "rows and columns are swapped; a row says what one new token sees": lambda cached, new: (
            cache_mask(cached, new).transpose(1, 2)
        ),
        "the columns of the cached tokens are missing": _new_only,
        "the first dimension is missing: the shape is (1, new, cached + new)": (
            lambda cached, new: cache_mask(cached, new)[0]
        ),
        "True means that a token may be looked at; here it means hidden": lambda cached, new: (
            ~cache_mask(cached, new)
        ),
        "floats are added to the scores, so a 0 hides nothing; make the mask boolean": (
            lambda cached, new: cache_mask(cached, new).float()
        ),
    },
    view=describe_mask,
)
