"""Scores of responses, and how sure they are: intervals, paired differences, an exact test."""

import math
import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from .answer_key import check_response, normalize


def exact_matches(responses: list[str], references: list[str]) -> list[bool]:
    """Tell for each response whether it equals its reference, both normalized."""
    pairs = zip(responses, references, strict=True)
    return [normalize(response) == normalize(reference) for response, reference in pairs]


def key_matches(responses: list[str], checks: list[dict]) -> list[bool]:
    """Tell for each response whether it passes its check of the answer key."""
    pairs = zip(responses, checks, strict=True)
    return [check_response(check, response) for response, check in pairs]


def token_f1(response: str, reference: str) -> float:
    """Return the F1 score of the words that a response and its reference share, 0 to 1.

    Precision is the share of the response's words that the reference holds, recall the share of the
    reference's words that the response holds; a word counts as often as both hold it.

    Source: Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250, section 6.1; articles
    count here.

    >>> token_f1("The capital is Paris.", "Paris")
    0.4
    """
    found, wanted = _words(response), _words(reference)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return _f1(shared, len(found), len(wanted))


def rouge_l(response: str, reference: str) -> float:
    """Return ROUGE-L: as `token_f1`, of the longest run of words that both hold in one order.

    Other words may stand between them.

    Source: Lin, 2004, https://aclanthology.org/W04-1013, section 3.1, with beta 1, as the package
    `rouge-score` has it.

    >>> rouge_l("the dog bit the man", "the man bit the dog")
    0.6
    """
    found, wanted = _words(response), _words(reference)
    lengths = [0] * (len(wanted) + 1)  # of the longest run in `found` so far and `wanted[:j]`
    for word in found:
        diagonal = 0
        for j, other in enumerate(wanted, start=1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == other else max(above, lengths[j - 1])
            diagonal = above
    return _f1(lengths[-1], len(found), len(wanted))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _f1(shared: int, found: int, wanted: int) -> float:
    return 2 * shared / (found + wanted) if shared else 0.0


def bootstrap_interval(
    values: list[float],
    statistic: Callable[[np.ndarray], np.ndarray] = lambda samples: samples.mean(axis=-1),
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic, by default the mean.

    For a paired difference give the differences.

    Args:
        values: one number for each test entry.
        statistic: maps samples (resamples, entries) to (resamples,).
        confidence: share of the intervals that hold the true value, over many test sets.
        resamples: how often the entries are drawn anew, with replacement.
        seed: of the drawing.

    Returns:
        The lower and upper end.

    Raises:
        ValueError: if there are no values.

    Source: Efron and Tibshirani, 1993, An Introduction to the Bootstrap, chapter 13.
    """
    if len(values) == 0:
        raise ValueError("no values to resample; give at least one")
    data = np.asarray(values, dtype=float)
    generator = np.random.default_rng(seed)
    samples = data[generator.integers(0, len(data), (resamples, len(data)))]
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(samples), [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share, which holds up also for very few cases.

    Source: Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953.

    >>> [round(end, 2) for end in wilson_interval(3, 3)]
    [0.44, 1.0]
    """
    if total == 0:
        return 0.0, 1.0
    z, share = 1.959964, count / total
    middle = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    scale = 1 + z**2 / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mcnemar_test(before: list[bool], after: list[bool]) -> float:
    """Return the p-value of McNemar's exact test, two-sided.

    Only entries that changed can tell two models apart. If both were equally good, an entry that
    changed would be a fair coin: right before or right after.

    Source: McNemar, 1947, https://doi.org/10.1007/BF02295996, with the binomial distribution.

    >>> mcnemar_test([True, False, False, False, False], [False, True, True, True, True])
    0.375
    """
    pairs = list(zip(before, after, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)


def summarize_scores(before: list[bool] | list[float], after: list[bool] | list[float]) -> dict:
    """Summarize the scores of the same entries before and after finetuning.

    Args:
        before, after: one score for each entry: True or False, or a number.

    Returns:
        Both means with their 95 % intervals, the mean paired difference with its own and, for
        yes-or-no scores, the counts and McNemar's p-value.

    Raises:
        ValueError: if there are no scores, or not as many before as after.
    """
    pairs = list(zip(before, after, strict=True))
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    summary = {
        "entries": len(before),
        "before": float(first.mean()),
        "before_interval": bootstrap_interval(first),
        "after": float(second.mean()),
        "after_interval": bootstrap_interval(second),
        "difference": float((second - first).mean()),
        "difference_interval": bootstrap_interval(second - first),
    }
    if all(isinstance(value, bool) for pair in pairs for value in pair):
        summary["count_before"], summary["count_after"] = sum(before), sum(after)
        summary["p_value"] = mcnemar_test(before, after)
    return summary


def cohens_kappa(first: list, second: list) -> float:
    """Return Cohen's kappa: how far two raters agree beyond what chance would give.

    1 is full agreement, 0 what two raters reach who draw their labels at random, each with the
    shares that it has; below 0 is worse than chance.

    Raises:
        ValueError: if there are no labels, or both raters give one and the same label to all, where
            kappa is not defined.

    Source: Cohen, 1960, https://doi.org/10.1177/001316446002000104.

    >>> cohens_kappa([1, 1, 0, 0], [1, 0, 0, 0])
    0.5
    """
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        raise ValueError("no labels to compare; give at least one pair")
    agreed = sum(a == b for a, b in pairs) / len(pairs)
    shares = [Counter(a for a, _ in pairs), Counter(b for _, b in pairs)]
    chance = sum(shares[0][label] * shares[1][label] for label in shares[0]) / len(pairs) ** 2
    if chance == 1:
        raise ValueError("both raters give one and the same label to all; kappa is not defined")
    return (agreed - chance) / (1 - chance)
