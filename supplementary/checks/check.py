"""How an answer is checked: beside the solution, on cases, with the mistakes that people make.

A check prints and never raises. It shows what was expected and what came, and names the mistake if
a known one gives the very same results. What it does not show is the solution.
"""

import copy
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import Example

UNATTEMPTED = "Not attempted yet: write your code in place of `raise NotImplementedError`."
LONGEST = 400  # characters of a value that are shown
PLAIN = list | dict | set | torch.Tensor | Example  # arguments that a function must not change


@dataclass(frozen=True)
class Stopped:
    """What a function gives that raises: the exception's type and text, and where."""

    kind: str
    text: str
    line: str = ""


@dataclass(frozen=True)
class Unfit:
    """A result of another kind than the view can read: what it is, and what the view says."""

    what: str
    why: str = ""


@dataclass(frozen=True)
class Check:
    """The check of one exercise; call it with the learner's function.

    Args:
        solution: a function that does what the exercise asks.
        cases: gives the arguments of each case by name, new ones at each call. The first is the
            one that the exercise shows.
        mistakes: functions that make one mistake each, by what is wrong with them.
        view: what is compared and shown of a result; the result itself by default.
        in_place: the function changes its first argument, and that is its result.
    """

    solution: Callable
    cases: Callable[[], dict[str, tuple]]
    mistakes: dict[str, Callable]
    view: Callable[[Any], Any] = lambda result: result
    in_place: bool = False

    def __call__(self, answer: Callable) -> None:
        """Print whether `answer` is right; if not, what came, and the likely mistake."""
        print(self.verdict(answer))

    def verdict(self, answer: Callable) -> str:
        """Return what the check prints."""
        if not callable(answer):
            return f"Give the function itself, by its name alone, not a {type(answer).__name__}."
        came = self.results(answer)
        if any(same(result, Stopped("NotImplementedError", "")) for result in came.values()):
            return UNATTEMPTED
        expected = self.results(self.solution)
        wrong = [name for name in expected if not same(came[name], expected[name])]
        if not wrong:
            return f"Right, in all {len(expected)} cases."
        lines = [f"Not yet: right in {len(expected) - len(wrong)} of {len(expected)} cases."]
        lines += self.report(wrong[0], expected[wrong[0]], came[wrong[0]])
        if all(came[name] is None for name in came if name in wrong or not stopped(came[name])):
            lines.append("Likely mistake: there is no `return`, or it gives nothing back.")
        elif mistake := self.name_mistake(came, wrong):
            lines.append(f"Likely mistake: {mistake}.")
        return "\n".join(lines)

    def results(self, function: Callable) -> dict[str, Any]:
        """Return what a function gives in each case, or how it stopped."""
        came = {}
        for name, arguments in self.cases().items():
            kept = [copy.deepcopy(a) if isinstance(a, PLAIN) else a for a in arguments]
            try:
                result = self.apply(function, arguments)
            except Exception as error:  # whatever the learner's code does
                came[name] = Stopped(type(error).__name__, str(error), last_line(error))
                continue
            if same(arguments, kept):
                came[name] = None if result is None else self.look(result)
            else:
                came[name] = Stopped("Changed argument", "work on a copy of what is given")
        return came

    def apply(self, function: Callable, arguments: tuple) -> Any:
        """Return the result of a function, or its first argument if that is the result."""
        result = function(*arguments)
        return arguments[0] if self.in_place else result

    def look(self, result: Any) -> Any:
        """Return what the view gives of a result; a reason only if the view has words for it."""
        try:
            return self.view(result)
        except Exception as error:  # the view reads what the exercise asks for, and nothing else
            frame = traceback.extract_tb(error.__traceback__)[-1]
            own = Path(frame.filename).parent == Path(__file__).parent
            spoken = own and (frame.line or "").startswith("raise ")
            return Unfit(describe(result), str(error) if spoken else "")

    def report(self, name: str, expected: Any, came: Any) -> list[str]:
        """Return the lines on one case."""
        lines = [f"In the case of {name}:"]
        if isinstance(came, Unfit):
            wanted = describe(self.apply(self.solution, self.cases()[name]))
            wanted = came.why or f"asked for is {wanted}" * (wanted != came.what)
            came = f"{came.what}; {wanted or 'what is asked for is shown above'}"
            return [*lines, f"  expected: {show(expected)}", f"  came:     {came}"]
        raised = f"raises {expected.kind}" if stopped(expected) else show(expected)
        lines += [f"  expected: {raised}", f"  came:     {show(came)}"]
        if isinstance(expected, str) and isinstance(came, str):
            pairs = enumerate(zip(expected, came, strict=False))
            start = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(came)))
            here = [repr(text[start : start + 20]) for text in (expected, came)]
            lines.append(f"  they part at character {start}: {here[0]} and {here[1]}")
        return lines

    def name_mistake(self, came: dict[str, Any], wrong: list[str]) -> str | None:
        """Return the mistake that gives the same results.

        If the case that the exercise shows is wrong, the same wrong results are enough: an answer
        may make a mistake, and yet think of a special case.
        """
        results = {mistake: self.results(function) for mistake, function in self.mistakes.items()}
        for names in (list(came), wrong if next(iter(came)) in wrong else []):
            for mistake, gave in results.items():
                alike = all(
                    same(came[name], gave[name])
                    and (name not in wrong or same_reason(came[name], gave[name]))
                    for name in names
                )
                if names and alike:
                    return mistake
        return None


def stopped(result: Any) -> bool:
    """Tell whether a function stopped instead of returning."""
    return isinstance(result, Stopped)


def last_line(error: Exception) -> str:
    """Return the line of code at which an exception was raised, if it is known."""
    return traceback.extract_tb(error.__traceback__)[-1].line or ""


def same_reason(a: Any, b: Any) -> bool:
    """Tell whether two functions that stopped did so for one reason: an error has many."""
    return not stopped(a) or a.kind == "ZeroDivisionError" or a.text == b.text


def describe(result: Any) -> str:
    """Say what kind of thing a result is.

    >>> describe([1, 2]), describe({"loss": torch.zeros(2, 3)}), describe(None)
    ('a list of int', 'a dict with loss: float32 of shape (2, 3)', 'None')
    """
    if result is None:
        return "None"
    if isinstance(result, torch.Tensor):
        return f"a tensor, {_kind(result)}"
    if isinstance(result, Mapping):
        items = ", ".join(f"{key}: {_kind(value)}" for key, value in result.items())
        return f"a {type(result).__name__} with {items}" if items else "an empty dict"
    if isinstance(result, list | tuple) and result:
        kinds = dict.fromkeys(type(item).__name__ for item in result)
        return f"a {type(result).__name__} of {' and '.join(kinds)}"
    return f"a value of type {type(result).__name__}"


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__


def same(a: Any, b: Any) -> bool:
    """Tell whether two results are equal: floats up to rounding, lists and tuples alike.

    >>> same({"loss": 0.1 + 0.2}, {"loss": 0.3}), same([1, 2], (1, 2)), same("1", 1)
    (True, True, False)
    """
    a, b = (x.item() if getattr(x, "shape", None) == () else x for x in (a, b))
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
            return False
        if a.shape != b.shape or a.is_floating_point() != b.is_floating_point():
            return False
        return torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-6, equal_nan=True)
    if isinstance(a, Stopped) and isinstance(b, Stopped):
        return a.kind == b.kind
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        try:
            return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) or (a != a and b != b)
        except TypeError:
            return False
    return a is b or (type(a) is type(b) and a == b)


def show(value: Any) -> str:
    """Write a result so that it can be compared by eye.

    >>> show(torch.tensor([[1.0, 2.0]]))
    'tensor of shape (1, 2): [[1.0, 2.0]]'
    """
    if isinstance(value, Stopped):
        return f"{value.kind}: {value.text}" + (f" (at `{value.line}`)" if value.line else "")
    if isinstance(value, torch.Tensor):
        numbers = value.detach().double().round(decimals=4) if value.is_floating_point() else value
        text = f"tensor of shape {tuple(value.shape)}: {numbers.tolist()}"
    elif isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key!r}: {show(item)}" for key, item in value.items()) + "}"
    else:
        text = repr(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."
