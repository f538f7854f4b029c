"""The exercises of notebook 06: two runs compared, a judge asked twice, an interval for kappa."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from ..evaluation import cohens_kappa, mcnemar_test
from .check import Check


def compare_runs(first: list[bool], second: list[bool]) -> dict[str, float]:
    """Return what only one run gets right, and the paired difference with its uncertainty."""
    changes = [int(b) - int(a) for a, b in zip(first, second, strict=True)]
    return {
        "only_first": changes.count(-1),
        "only_second": changes.count(1),
        "points": 100 * float(np.mean(changes)),
        "standard_error": 100 * float(np.std(changes, ddof=1)) / math.sqrt(len(changes)),
        "p_value": mcnemar_test(first, second),
    }


def _but(change: Callable[..., dict]) -> Callable:
    """Make the solution with some of its values changed."""

    def compare(first: list[bool], second: list[bool]) -> dict[str, float]:
        result = compare_runs(first, second)
        return result | change(result, np.array(first, float), np.array(second, float))

    return compare


def _unpaired(result: dict, first: np.ndarray, second: np.ndarray) -> dict:
    deviations = np.hypot(first.std(ddof=1), second.std(ddof=1))
    return {"standard_error": 100 * deviations / math.sqrt(len(first))}


def _changed_only(_: dict, first: np.ndarray, second: np.ndarray) -> dict:
    changes = 100 * (second - first)[first != second]
    if len(changes) < 2:
        return {"points": math.nan, "standard_error": math.nan}
    error = changes.std(ddof=1) / math.sqrt(len(changes))
    return {"points": changes.mean(), "standard_error": error}


def _tail(result: dict) -> float:
    fewer, more = sorted((result["only_first"], result["only_second"]))
    return sum(math.comb(fewer + more, k) for k in range(fewer + 1)) / 2 ** (fewer + more)


def _outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[list, list]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


check_compare_runs = Check(
    solution=compare_runs,
    cases=lambda: {
        "twelve entries, five of them with different outcomes": _outcomes(4, 1, 4, 3),
        "a second run that is worse": _outcomes(2, 4, 1, 1),
        "two runs that win as many entries from each other": _outcomes(3, 2, 2, 1),
        "two runs that differ nowhere": _outcomes(2, 0, 0, 2),
    },
    mistakes={
        "the sign is swapped: `points` is positive if the second run is better": _but(
            lambda result, *_: {"points": -result["points"]}
        ),
        "the counts are swapped: `only_first` counts what the second run gets wrong": _but(
            lambda result, *_: {
                "only_first": result["only_second"],
                "only_second": result["only_first"],
            }
        ),
        "entries that both runs get right are counted, too; they cannot tell the runs apart": _but(
            lambda _, first, second: {"only_first": first.sum(), "only_second": second.sum()}
        ),
        "the standard error is that of runs on different entries; take it from the changes": (
            _but(_unpaired)
        ),
        "the spread of single changes is not yet that of their mean; divide by the root of n": _but(
            lambda result, a, b: {"standard_error": result["standard_error"] * len(a) ** 0.5}
        ),
        "the standard deviation has the divisor n, NumPy's default; asked for is n - 1": _but(
            lambda _, a, b: {"standard_error": 100 * np.std(b - a) / len(a) ** 0.5}
        ),
        "`points` is the mean of the changes that are not 0; asked for is that of all": _but(
            lambda *given: {"points": _changed_only(*given)["points"]}
        ),
        "`points` is divided by the entries on which the runs differ, not by all of them": _but(
            lambda _, a, b: {"points": 100 * int((b - a).sum()) / int((a != b).sum())}
        ),
        "entries on which the runs do not differ are left out; their changes are 0, and count": (
            _but(_changed_only)
        ),
        "these are shares; asked for are percentage points, for both numbers": _but(
            lambda result, *_: {key: result[key] / 100 for key in ("points", "standard_error")}
        ),
        "the p-value is one-sided; either run could have turned out better, so both sides count": (
            _but(lambda result, *_: {"p_value": _tail(result)})
        ),
        "half of the p-value is one-sided; either run could have turned out better": _but(
            lambda result, *_: {"p_value": result["p_value"] / 2}
        ),
    },
)

GIVEN = {"A": "before", "B": "after", None: None}  # which response a letter means
SWAPPED = {"A": "after", "B": "before", None: None}


def fair_preference(given: list[str | None], swapped: list[str | None]) -> dict[str, int]:
    """Count the comparisons that each response wins in both orders, and those that neither does."""
    return _count(given, swapped, _agree)


def _agree(first: str | None, second: str | None) -> str | None:
    return first if first == second else None


def _count(given: list, swapped: list, decide: Callable, names: tuple = (GIVEN, SWAPPED)) -> dict:
    wins = Counter()
    for first, second in zip(given, swapped, strict=True):
        wins[decide(names[0][first], names[1][second]) or "undecided"] += 1
    return {name: wins[name] for name in ("before", "after", "undecided")}


def _deciding(decide: Callable, names: tuple = (GIVEN, SWAPPED)) -> Callable:
    return lambda given, swapped: _count(given, swapped, decide, names)


def _counting_replies(given: list, swapped: list) -> dict[str, int]:
    kinds = [_count(given, swapped, lambda a, b: a), _count(given, swapped, lambda a, b: b)]
    return {name: kinds[0][name] + kinds[1][name] for name in kinds[0]}


def _differing_letters(given: list, swapped: list) -> dict[str, int]:
    differ = [a for a, b in zip(given, swapped, strict=True) if a != b]
    before, after = differ.count("A"), len(differ) - differ.count("A")
    return {"before": before, "after": after, "undecided": len(given) - len(differ)}


def _dropping(drop: Callable) -> Callable:
    def count(given: list, swapped: list) -> dict[str, int]:
        pairs = [pair for pair in zip(given, swapped, strict=True) if not drop(*pair)]
        return fair_preference([a for a, _ in pairs], [b for _, b in pairs])

    return count


check_fair_preference = Check(
    solution=fair_preference,
    cases=lambda: {
        "eight comparisons": (
            ["A", "B", "B", "A", "B", None, "A", None],
            ["B", "A", "A", "A", "B", "A", None, None],
        ),
        "a judge that always takes what stands first": (["A"] * 4, ["A"] * 4),
        "more replies that nobody can read": (
            [None, "B", "B", None, "A", None],
            ["B", None, "A", "A", "B", "B"],
        ),
        "no comparisons": ([], []),
    },
    mistakes={
        "the letters are compared, but in swapped order A is the other response": _deciding(
            _agree, (GIVEN, GIVEN)
        ),
        "A and B are mistaken for each other: in the given order A is the response before": (
            _deciding(_agree, (SWAPPED, GIVEN))
        ),
        "the given order alone decides; a judge that always says A would be taken at its word": (
            _deciding(lambda first, second: first)
        ),
        "each reply counts as a vote; a comparison has two replies, and counts once": (
            _counting_replies
        ),
        "comparisons with an unreadable reply are left out; they are undecided": _dropping(
            lambda first, second: None in (first, second)
        ),
        "contradictory replies are left out; a comparison that flips is undecided": _dropping(
            lambda first, second: first is not None and first == second
        ),
        "if one reply is unreadable, the other decides alone; a win needs both orders": _deciding(
            lambda first, second: _agree(first or second, second or first)
        ),
        "an unreadable reply differs from every letter; `!=` takes that for a choice that held": (
            _differing_letters
        ),
    },
)


def resampled_kappas(first: list, second: list, rows: np.ndarray) -> list[float]:
    """Return the kappa of two raters on each resample, 0 if both give one label to all of it."""
    return _on_each(_kappa)(first, second, rows)


def _on_each(score: Callable[[list, list], float]) -> Callable:
    """Make a function that gives the score of each resample."""
    return lambda first, second, rows: [
        score([first[i] for i in row], [second[i] for i in row]) for row in rows
    ]


def _kappa(first: list, second: list, undefined: float = 0.0) -> float:
    return undefined if len({*first, *second}) == 1 else cohens_kappa(first, second)


def _agreement(first: list, second: list) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def _chance_of_all(first: list, second: list, rows: np.ndarray) -> list[float]:
    agreed, kappa = _agreement(first, second), cohens_kappa(first, second)
    chance = (agreed - kappa) / (1 - kappa)
    return [(a - chance) / (1 - chance) for a in _on_each(_agreement)(first, second, rows)]


def _of_true_and_false(first: list, second: list) -> float:
    shares = [float(np.mean(labels)) for labels in (first, second)]
    chance = math.prod(shares) + math.prod(1 - share for share in shares)
    return 0.0 if chance == 1 else (_agreement(first, second) - chance) / (1 - chance)


def _without_repeats(first: list, second: list, rows: np.ndarray) -> list[float]:
    return resampled_kappas(first, second, [sorted(set(row.tolist())) for row in rows])


def _drawn_anew(first: list, second: list, rows: np.ndarray) -> list[float]:
    drawn = np.random.default_rng(0).integers(0, len(first), rows.shape)
    return resampled_kappas(first, second, drawn)


def _or_nan(first: list, second: list) -> float:
    return _kappa(first, second, undefined=math.nan)


check_resampled_kappas = Check(
    solution=resampled_kappas,
    cases=lambda: {
        "six entries, three resamples": (
            [True, True, True, True, False, False],
            [True, True, True, False, False, True],
            np.array([[0, 1, 2, 3, 4, 5], [0, 0, 3, 4, 4, 5], [5, 4, 2, 2, 1, 1]]),
        ),
        "a resample in which both raters give one label only": (
            [True, True, False, False],
            [True, False, True, False],
            np.array([[0, 0, 0, 0], [0, 1, 2, 3], [1, 1, 1, 1], [0, 0, 3, 2]]),
        ),
        "three grades": (
            [1, 2, 3, 3, 1],
            [1, 3, 3, 2, 1],
            np.array([[0, 1, 2, 3, 4], [4, 4, 2, 2, 1]]),
        ),
    },
    mistakes={
        "only the first rater's labels are resampled, which tears the pairs apart": (
            lambda first, second, rows: [_kappa([first[i] for i in row], second) for row in rows]
        ),
        "repeated rows are dropped; a resample differs from the data only by its repeats": (
            _without_repeats
        ),
        "new rows are drawn here; `rows` says which ones each resample has": _drawn_anew,
        "this is agreement; kappa takes off what chance alone would give": _on_each(_agreement),
        "the chance agreement is that of all entries; each resample has shares of its own": (
            _chance_of_all
        ),
        "the formula holds for True and False only; chance agreement is a sum over all labels": (
            _on_each(_of_true_and_false)
        ),
        "one label in a whole resample gives nan, and then the interval is nan; count it as 0": (
            _on_each(_or_nan)
        ),
        "`cohens_kappa` refuses a resample with one label only; count it as 0": (
            _on_each(cohens_kappa)
        ),
        "resamples with one label only are left out; each resample has a place in the result": (
            lambda *given: [kappa for kappa in _on_each(_or_nan)(*given) if not math.isnan(kappa)]
        ),
        "one label in a whole resample is agreement, but not beyond chance; count 0, not 1": (
            _on_each(lambda first, second: _kappa(first, second, undefined=1.0))
        ),
    },
    view=lambda kappas: np.round(np.asarray(kappas, dtype=float), 4).tolist(),
)
