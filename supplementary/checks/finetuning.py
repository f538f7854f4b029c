"""The exercises of notebook 04: rows of responses, a schedule, Phi-3, losses in two parts."""

import re
from functools import partial

import torch
from torch import Tensor

from ..data import Example, encode_example
from ..prompts import Entry, phi3_prompt
from .check import Check

ADD = {"instruction": "Add 2 and 3.", "input": "", "output": "5"}
SPELL = {"instruction": "Spell it.", "input": "Ocassion", "output": "It is Occasion"}
MARKS = ("<|user|>", "<|end|>", "<|assistant|>")
SPECIAL = ("<|endoftext|>", *MARKS)  # by token id


def pair_responses(entries: list[Entry], before: list[str], after: list[str]) -> list[dict]:
    """Return the entries, each with its two responses, without white space around them."""
    if not len(entries) == len(before) == len(after):
        raise ValueError(f"{len(entries)} entries, {len(before)} and {len(after)} responses")
    return _pair(entries, before, after)


def _pair(entries: list, before: list, after: list) -> list[dict]:
    return [
        {**entry, "response_before": first.strip(), "response_after": second.strip()}
        for entry, first, second in zip(entries, before, after, strict=False)
    ]


def _in_place(entries: list, before: list, after: list) -> list[dict]:
    for entry, row in zip(entries, pair_responses(entries, before, after), strict=True):
        entry.update(row)
    return entries


def _responses_only(entries: list, before: list, after: list) -> list[dict]:
    if len(before) != len(after):
        raise ValueError
    return _pair(entries, before, after)


def _not_stripped(entries: list, before: list, after: list) -> list[dict]:
    rows = pair_responses(entries, before, after)
    for row, first, second in zip(rows, before, after, strict=True):
        row |= {"response_before": first, "response_after": second}
    return rows


check_pair_responses = Check(
    solution=pair_responses,
    cases=lambda: {
        "two entries": ([dict(ADD), dict(SPELL)], ["\n5.", "It is right. "], ["5", "Ocasion\n"]),
        "an entry with a key of its own": ([{**ADD, "source": "sums"}], ["Five"], [" 5 "]),
        "an empty response": ([dict(ADD), dict(SPELL)], ["6", "\n"], ["5", "Occasion"]),
        "a response too few": ([dict(ADD), dict(SPELL)], ["5.", "Right."], ["5"]),
        "an entry too few": ([dict(ADD)], ["5.", "Right."], ["5", "Occasion"]),
    },
    mistakes={
        "before and after are swapped": lambda entries, before, after: pair_responses(
            entries, after, before
        ),
        "the entries themselves are changed; make a new dictionary for each row": _in_place,
        "lists of different lengths are cut to the shortest, and nobody notices": _pair,
        "only the lengths of the responses are compared; entries may be missing, too": (
            _responses_only
        ),
        "white space is left around the responses; it is no part of an answer": _not_stripped,
        "`output` is overwritten by a response, so nothing is left to compare with": (
            lambda *lists: [r | {"output": r["response_after"]} for r in pair_responses(*lists)]
        ),
        "other keys of an entry are lost; take all that it has": lambda *lists: [
            {key: row[key] for key in row if key != "source"} for row in pair_responses(*lists)
        ],
        "an entry with an empty response is left out; no answer is a wrong answer": (
            lambda *lists: [row for row in pair_responses(*lists) if row["response_before"]]
        ),
    },
)


def linear_rate(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, then a linear decay."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (total_steps - 1 - step) / (total_steps - 1 - warmup_steps)


def _from_one(step: int, total: int, warmup: int, peak: float) -> float:
    return peak * (step / warmup if step < warmup else (total - step) / (total - warmup))


def _falls_over(steps: int, step: int, total: int, warmup: int, peak: float) -> float:
    """Fall as fast as over so many more steps than there are after the warm-up."""
    if step < warmup:
        return linear_rate(step, total, warmup, peak)
    return peak * (total - 1 - step) / (total - 1 - warmup + steps)


check_linear_rate = Check(
    solution=linear_rate,
    cases=lambda: {
        "step 0 of 10, 4 of them warm-up, peak 2": (0, 10, 4, 2.0),
        "step 3 of 10, 4 of them warm-up, peak 2": (3, 10, 4, 2.0),
        "step 4 of 10, 4 of them warm-up, peak 2": (4, 10, 4, 2.0),
        "step 6 of 10, 4 of them warm-up, peak 2": (6, 10, 4, 2.0),
        "step 9 of 10, 4 of them warm-up, peak 2": (9, 10, 4, 2.0),
        "step 0 of 5, none of them warm-up, peak 0.01": (0, 5, 0, 0.01),
    },
    mistakes={
        "there is no warm-up; the first steps have the peak": lambda step, total, warmup, peak: (
            linear_rate(max(step, warmup), total, warmup, peak)
        ),
        "step 0 has rate 0: its batch is computed, and no weight moves": (
            lambda step, total, warmup, peak: (
                peak * step / warmup if step < warmup else linear_rate(step, total, warmup, peak)
            )
        ),
        "step 0 has rate 0 and the last has not: steps count from 0, to `total_steps - 1`": (
            _from_one
        ),
        "the decay is counted from step 0, so the rate jumps where the warm-up ends": (
            lambda step, total, warmup, peak: _falls_over(warmup, step, total, warmup, peak)
        ),
        "the decay begins with the warm-up, so no step has the peak": (
            lambda step, total, warmup, peak: (
                linear_rate(step, total, 0, peak) * min(1.0, (step + 1) / max(1, warmup))
            )
        ),
        "step `warmup_steps` still warms up, and rises above the peak": (
            lambda step, total, warmup, peak: (
                peak * (step + 1) / warmup
                if step <= warmup
                else linear_rate(step, total, warmup, peak)
            )
        ),
        "the last step, `total_steps - 1`, is not at 0 yet": lambda step, total, warmup, peak: (
            linear_rate(step, total if step < warmup else total + 1, warmup, peak)
        ),
        "the decay begins a step too early; step `warmup_steps` has the peak, too": (
            partial(_falls_over, 1)
        ),
        "without a warm-up this divides by zero": lambda step, total, warmup, peak: min(
            peak * (step + 1) / warmup, linear_rate(max(step, warmup), total, warmup, peak)
        ),
    },
)


class WordTokenizer:
    """A stand-in for a tokenizer: a token is a word with the white space before it, or one sign.

    The id of an ordinary token is its text, read as a number; so any id can be decoded.

    Args:
        marks: the texts that are special tokens, besides the end-of-text.
    """

    eos_token_id = 0

    def __init__(self, *marks: str) -> None:
        self.marks = marks

    def encode(self, text: str) -> list[int]:
        """Encode ordinary text."""
        pieces = re.findall(r"\s?\w+|\W", text)
        return [int.from_bytes(piece.encode("utf-8"), "big") for piece in pieces]

    def special_id(self, token: str) -> int | None:
        """Return the id of a special token, or None if there is none."""
        return SPECIAL.index(token) if token in self.marks else None


def token_text(token: int) -> str:
    """Return the text of a `WordTokenizer`'s token; what is no such token, as Python writes it."""
    if not isinstance(token, int) or token < 0:
        return repr(token)
    if token < len(SPECIAL):
        return SPECIAL[token]
    return token.to_bytes((token.bit_length() + 7) // 8, "big").decode("utf-8", "replace")


def show_tokens(examples: list[Example]) -> list[dict[str, list[str]]]:
    """Write each example as the texts of its tokens, prompt and response apart, and a length."""
    shown = []
    for example in examples:
        tokens = [token_text(token) for token in example.input_ids]
        length = example.prompt_length
        parts = {"prompt": tokens[:length], "response": tokens[length:]}
        shown.append(parts | {"prompt_length": length})
    return shown


def encode_phi3(entries: list[Entry], tokenizer: WordTokenizer) -> list[Example]:
    """Encode entries in the Phi-3 format, each response closed by the end-of-text."""
    return [encode_example(entry, tokenizer, "phi3") for entry in entries]


def _count_prompts(count, entries: list, tokenizer: WordTokenizer) -> list[Example]:
    pairs = [(entry, encode_example(entry, tokenizer, "phi3")) for entry in entries]
    return [Example(example.input_ids, count(entry, example)) for entry, example in pairs]


def _close_by(
    mark: str, entries: list, tokenizer: WordTokenizer, as_text: bool = False
) -> list[Example]:
    special = None if as_text else tokenizer.special_id(mark)
    end = tokenizer.encode(mark) if special is None else [special]
    examples = encode_phi3(entries, tokenizer)
    return [Example(e.input_ids[:-1] + end, e.prompt_length) for e in examples]


def _as_text(joined: bool, entries: list, tokenizer: WordTokenizer) -> list[Example]:
    examples = []
    for entry in entries:
        text = "".join(phi3_prompt(entry))
        prompt = tokenizer.encode(text)
        whole = prompt + tokenizer.encode(entry["output"])
        whole = tokenizer.encode(text + entry["output"]) if joined else whole
        examples.append(Example([*whole, tokenizer.eos_token_id], len(prompt)))
    return examples


def _find_marks(entries: list, tokenizer: WordTokenizer) -> list[Example]:
    examples = []
    for entry in entries:
        ids = []
        for piece in re.split(r"(<\|\w+\|>)", "".join(phi3_prompt(entry))):
            special = tokenizer.special_id(piece)
            ids += tokenizer.encode(piece) if special is None else [special]
        response = [*tokenizer.encode(entry["output"]), tokenizer.eos_token_id]
        examples.append(Example(ids + response, len(ids)))
    return examples


check_encode_phi3 = Check(
    solution=encode_phi3,
    cases=lambda: {
        "two entries": ([dict(ADD), dict(SPELL)], WordTokenizer(*MARKS)),
        "a user who types a mark": ([{**SPELL, "input": "<|end|>"}], WordTokenizer(*MARKS)),
        "a tokenizer without the marks of Phi-3": ([dict(SPELL)], WordTokenizer()),
    },
    mistakes={
        "the prompt is in Alpaca's format, the default of `encode_prompt`": (
            lambda entries, tokenizer: [encode_example(entry, tokenizer) for entry in entries]
        ),
        "the end-of-text is missing, so the model never learns to stop": partial(_close_by, ""),
        "the response is closed by `<|end|>`; generation stops at the end-of-text": (
            partial(_close_by, "<|end|>")
        ),
        "the response is closed by `<|end|>` as ordinary text, which ends no generation": (
            partial(_close_by, "<|end|>", as_text=True)
        ),
        "the prompt is counted one token too long: the response's first token gets no label": (
            partial(_count_prompts, lambda entry, example: example.prompt_length + 1)
        ),
        "the prompt is counted as long as the whole row, so nothing has a label": partial(
            _count_prompts, lambda entry, example: len(example.input_ids)
        ),
        "the prompt is counted as 0 tokens, so its tokens have labels, too": partial(
            _count_prompts, lambda entry, example: 0
        ),
        "the prompt is counted in characters; count its tokens": partial(
            _count_prompts, lambda entry, example: len("".join(phi3_prompt(entry)))
        ),
        "the marks are encoded as ordinary text; `encode_prompt` keeps them whole": (
            partial(_as_text, False)
        ),
        "prompt and response are encoded as one text, so tokens reach across the border": (
            partial(_as_text, True)
        ),
        "a mark that the user typed became a special token": _find_marks,
    },
    view=show_tokens,
)


def split_losses(losses: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a prompt token and that of a response token; column t is t + 1's."""
    return _split(_mean, losses, prompt_lengths, lengths)


def _mean(losses: Tensor, part: Tensor) -> Tensor:
    return losses[part].mean()


def _split(reduce, losses: Tensor, prompts: Tensor, ends: Tensor, first: int = 1) -> tuple:
    """Reduce the losses of each part to one, if column 0 is that of token `first`."""
    places = torch.arange(first, first + losses.shape[1])
    prompt = places < prompts[:, None]
    response = ~prompt & (places < ends[:, None])
    return reduce(losses, prompt), reduce(losses, response)


check_split_losses = Check(
    solution=split_losses,
    cases=lambda: {
        "the toy batch, padding marked by 9": (
            torch.tensor([[4, 2, 3, 1, 0.5], [2.5, 1.5, 9, 9, 9], [6, 5, 1, 9, 9]]),
            torch.tensor([3, 1, 2]),
            torch.tensor([6, 3, 4]),
        ),
        "padding at 0, and a token that the model was certain of": (
            torch.tensor([[2.0, 0.0, 1.0, 3.0], [0.5, 4.0, 0.0, 0.0]]),
            torch.tensor([3, 2]),
            torch.tensor([5, 3]),
        ),
    },
    mistakes={
        "column t is taken for token t, but it scores token t + 1": partial(_split, _mean, first=0),
        "the padding counts as response": lambda losses, prompts, ends: split_losses(
            losses, prompts, torch.full_like(ends, losses.shape[1] + 1)
        ),
        "the end-of-text is left out; stopping is part of the response": (
            lambda losses, prompts, ends: split_losses(losses, prompts, ends - 1)
        ),
        "tokens are found by a loss that is not 0; a token may be certain": partial(
            _split, lambda losses, part: losses[part & (losses != 0)].mean()
        ),
        "the first token of a response counts as prompt": lambda losses, prompts, ends: (
            split_losses(losses, prompts + 1, ends)
        ),
        "the divisor counts all columns; each part has its own number of tokens": partial(
            _split, lambda losses, part: (losses * part).mean()
        ),
        "a mean of the rows' means lets a short row count as much as a long one": partial(
            _split, lambda losses, part: ((losses * part).sum(1) / part.sum(1)).mean()
        ),
        "the two are swapped; the prompt's comes first": lambda *batch: split_losses(*batch)[::-1],
    },
    view=lambda means: dict(zip(("prompt", "response"), map(float, means), strict=True)),
)
