"""The exercises of notebook 07, patients 5 to 8: a step, a prompt, rates, a table."""

import math
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import torch

from ..batching import Batch, collate_padded
from ..data import IGNORE_INDEX, Example
from ..model import CausalLM
from ..prompts import Entry, alpaca_prompt, format_input
from ..training import TrainSettings, learning_rate_at, next_token_loss
from .batching import END
from .check import Check
from .clinic import PATIENT, TOY_EXAMPLES, rounded, small_model
from .dataset import ANTONYM, WORD

Weigh = Callable[[Batch, list[Batch]], float]


def _labels(*parts: Batch) -> int:
    return sum(int((part["labels"][:, 1:] != IGNORE_INDEX).sum()) for part in parts)


def _step(
    model: CausalLM,
    parts: list[Batch],
    divisor: Weigh = lambda part, parts: _labels(*parts),
    empty: str = "first",
    clip: float = 1.0,
) -> tuple[float, float]:
    """Divide the loss of each part by `divisor(part, parts)`.

    Args:
        model: the model.
        parts: the batch.
        divisor: gives what the loss of a part is divided by.
        empty: when old gradients are emptied: "first", "each" (before each part) or "never".
        clip: to what length the gradient is clipped.
    """
    if empty == "first":
        model.zero_grad()
    total = 0.0
    for part in parts:
        if empty == "each":
            model.zero_grad()
        loss = next_token_loss(model, part)[0] / divisor(part, parts)
        loss.backward()
        total += loss.item()
    return total, torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()


def _mean_of_means(model: CausalLM, parts: list[Batch]) -> tuple[float, float]:
    return _step(model, parts, lambda part, parts: _labels(part) * len(parts))


def _by_examples(part: Batch, parts: list[Batch]) -> float:
    rows = sum(len(other["labels"]) for other in parts)
    return _labels(part) * rows / len(part["labels"])


def _with_first_labels(part: Batch, parts: list[Batch]) -> int:
    return sum(int((part["labels"] != IGNORE_INDEX).sum()) for part in parts)


def _steps() -> dict[str, tuple[CausalLM, list[Batch]]]:
    no_prompt = [Example([1, 2, END], 0), Example([3, 4, 5, END], 0)]
    examples = {
        "three parts of one example": [[example] for example in TOY_EXAMPLES],
        "all at once": [TOY_EXAMPLES],
        "a part of two examples and one of one": [TOY_EXAMPLES[:2], TOY_EXAMPLES[2:]],
        "examples without a prompt": [[example] for example in no_prompt],
    }
    cases = {}
    for name, parts in examples.items():
        model = small_model()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)  # of an earlier step
        cases[name] = (model, [collate_padded(part, END) for part in parts])
    return cases


class StepCheck(Check):
    """A check that looks at the model's gradient, too."""

    def apply(self, function: Callable, arguments: tuple) -> Any:
        """Return what a function returns and, behind it, the length of the gradient it leaves."""
        result = function(*arguments)
        gradients = [p.grad for p in arguments[0].parameters() if p.grad is not None]
        length = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        return (*result, length) if isinstance(result, tuple | list) else result


def _view_step(result: tuple[float, float, float]) -> dict:
    if not isinstance(result, tuple) or len(result) != 3:
        raise TypeError("return two floats: the loss, and the length of the gradient")
    if any(isinstance(value, torch.Tensor) for value in result):
        raise TypeError("return two floats, no tensors")
    names = ("loss", "length before clipping", "length of what is left")
    return dict(zip(names, rounded(result), strict=True))


check_repaired_step = StepCheck(
    solution=_step,
    cases=_steps,
    mistakes={
        f"{PATIENT}work out what one token weighs in a part with few labels": _mean_of_means,
        "each part counts by its number of examples; the loss is a mean over labels": partial(
            _step, divisor=_by_examples
        ),
        "nothing is divided, so the gradient grows with the number of labels": partial(
            _step, divisor=lambda part, parts: 1
        ),
        "each part is divided by its own labels only, so the gradient grows with the parts": (
            partial(_step, divisor=lambda part, parts: _labels(part))
        ),
        "labels of first tokens are counted, too; nothing predicts a first token": partial(
            _step, divisor=_with_first_labels
        ),
        "the gradient is emptied in the loop: only the last part counts": partial(
            _step, empty="each"
        ),
        "the gradient of an earlier step stays, and is added": partial(_step, empty="never"),
        "the gradient is not clipped": partial(_step, clip=math.inf),
        "this length is the one after clipping; it hides how long the gradient was": (
            lambda model, parts: (_step(model, parts)[0], 1.0)
        ),
        "the loss is right, but the gradient is the patient's": lambda model, parts: (
            _step(model, parts)[0],
            _mean_of_means(model, parts)[1],
        ),
        "only what is reported is divided, after `backward`": lambda model, parts: (
            _step(model, parts)[0],
            _step(model, parts, lambda part, parts: 1)[1],
        ),
    },
    view=_view_step,
)


def _prompt(entry: Entry, preamble: bool = True, always: bool = False, end: str = "\n") -> str:
    text = format_input(entry)
    text += "\n\n### Input:\n" if always and not entry["input"] else ""
    return text[0 if preamble else text.index("###") :] + f"\n\n### Response:{end}"


check_repaired_prompt = Check(
    solution=lambda entry: alpaca_prompt(entry)[0],
    cases=lambda: {
        "entry 50": (dict(WORD),),
        "entry 999, which has no input": (dict(ANTONYM),),
        "an instruction of two lines": ({**ANTONYM, "instruction": "Write in French:\nbread"},),
    },
    mistakes={
        f"{PATIENT}print its end beside that of a training prompt, with `repr`": partial(
            _prompt, end=""
        ),
        "the preamble is missing; every training prompt begins with it": partial(
            _prompt, preamble=False
        ),
        "an empty input gets a heading, which no training prompt has": partial(
            _prompt, always=True
        ),
        "a space stands where training prompts have something else": partial(_prompt, end=" "),
        "an empty line follows the last heading, which no training prompt has": partial(
            _prompt, end="\n\n"
        ),
        "the wanted response is in the prompt": lambda entry: _prompt(entry) + entry["output"],
        "this is a list of pieces; a program sends one text, so join them": alpaca_prompt,
        "the input is missing": lambda entry: _prompt({**entry, "input": ""}),
    },
)


def learning_rates(
    total_steps: int, peak: float, warmup_ratio: float, final_ratio: float
) -> list[float]:
    """Return the rate of each step: a linear warm-up, rounded up to whole steps, and a cosine."""
    settings = TrainSettings(learning_rate=peak, warmup_ratio=warmup_ratio, final_ratio=final_ratio)
    return [learning_rate_at(step, total_steps, settings) for step in range(total_steps)]


def _warming(steps_of: Callable[[float], float]) -> Callable:
    """Make the rates with `steps_of(share of the steps)` steps of warm-up."""
    return lambda steps, peak, ratio, final: learning_rates(
        steps, peak, steps_of(ratio * steps) / steps, final
    )


def _from_zero(total_steps: int, peak: float, warmup_ratio: float, *rest: float) -> list[float]:
    warmup = math.ceil(warmup_ratio * total_steps)
    rates = learning_rates(total_steps, peak, warmup_ratio, *rest)
    return [peak * step / warmup for step in range(warmup)] + rates[warmup:]


def _late(total_steps: int, *arguments: float) -> list[float]:
    rates, warmup = [], math.ceil(arguments[1] * total_steps)
    for step in range(total_steps):
        share = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup)))
        rates.append(arguments[0] * (arguments[2] + (1 - arguments[2]) * share))
    return learning_rates(total_steps, *arguments)[:warmup] + rates[warmup:]


def _jump(total_steps: int, peak: float, warmup_ratio: float, *rest: float) -> list[float]:
    warmup = math.ceil(warmup_ratio * total_steps)
    rising = learning_rates(total_steps, peak, warmup_ratio, *rest)[:warmup]
    return rising + learning_rates(total_steps, peak, 0, *rest)[warmup:]


check_repaired_rates = Check(
    solution=learning_rates,
    cases=lambda: {
        "twelve steps, a quarter of them warm-up": (12, 2.0, 0.25, 0.1),
        "eight steps, a tenth of them warm-up": (8, 1.0, 0.1, 0.1),
        "ten steps, 24 percent of them warm-up": (10, 1.0, 0.24, 0.1),
        "no warm-up wanted": (4, 1.0, 0.0, 0.0),
    },
    mistakes={
        f"{PATIENT}print the number of warm-up steps": _warming(lambda share: 0),
        "the warm-up is rounded down: a short run has none": _warming(int),
        "a warm-up of 2.4 steps has become one of 2; it is rounded up": _warming(round),
        "2.4 steps of warm-up have become 2, and 0 steps have become 1": _warming(
            lambda share: max(1, int(share))
        ),
        "there is a warm-up of one step where none was asked for": _warming(
            lambda share: max(1, math.ceil(share))
        ),
        "the first step has the rate 0, so it learns nothing": _from_zero,
        "the cosine has begun before the warm-up ends, so the rate falls in one leap": _jump,
        "the last step does not reach the final rate; its number is `total_steps - 1`": _late,
        "the last rate is `final_ratio` itself, which is a share of the peak": (
            lambda steps, peak, ratio, final: learning_rates(steps, peak, ratio, final / peak)
        ),
    },
    view=rounded,
)

Score = Callable[[str, str], float]


def _table(
    rows: list[dict], score: Score, columns: tuple[str, ...] = ("response_before", "response_after")
) -> dict[str, float]:
    before, after = (mean(score(row[name], row["output"]) for row in rows) for name in columns)
    return {"before": before, "after": after, "gain": after - before}


def _columns(rows: list[dict]) -> list[str]:
    return [name for name in rows[0] if name.startswith("response_")]


def begins_with(response: str, reference: str) -> float:
    """Return a score that is quickly checked by hand: 1.0 if the response begins as wanted."""
    return float(response.startswith(reference))


def _responses(output: str, before: str, after: str) -> dict[str, str]:
    return {"output": output, "response_before": before, "response_after": after}


check_repaired_table = Check(
    solution=_table,
    cases=lambda: {
        "two rows": ([_responses("a", "b", "ab"), _responses("d", "", "de")], begins_with),
        "the keys in another order": (
            [dict(reversed(_responses("a", "b", "ab").items()))],
            begins_with,
        ),
        "a model that got worse": (
            [_responses("a", "ab", "ac"), _responses("d", "de", "")],
            begins_with,
        ),
    },
    mistakes={
        f"{PATIENT}print which column becomes which": lambda rows, score: _table(
            rows, score, sorted(_columns(rows))
        ),
        "the columns are taken by their place, and another file has another order": (
            lambda rows, score: _table(rows, score, _columns(rows))
        ),
        "the larger mean is called after; a run can make a model worse": lambda rows, score: _table(
            rows, score, sorted(_columns(rows), key=lambda n: _table(rows, score, (n, n))["after"])
        ),
        "rows without a response are left out, so silence is rewarded": lambda rows, score: _table(
            [row for row in rows if all(row.values())], score
        ),
        "`score` is given the reference first; some scores depend on the order": (
            lambda rows, score: _table(rows, lambda *texts: score(*texts[::-1]))
        ),
        "the sign of the gain is turned round": lambda rows, score: {
            **_table(rows, score),
            "gain": -_table(rows, score)["gain"],
        },
    },
)
