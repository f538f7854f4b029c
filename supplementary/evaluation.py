"""Scores: how many responses are right, and how sure that is."""

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


def summarize_scores(before: list[bool], after: list[bool]) -> dict:
    """Summarize one yes-or-no score before and after finetuning.

    Returns:
        The counts, both means with their 95 % intervals, and the mean paired difference with its
        own.
    """
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    return {
        "entries": len(before),
        "count_before": int(first.sum()),
        "count_after": int(second.sum()),
        "before": float(first.mean()),
        "before_interval": bootstrap_interval(first),
        "after": float(second.mean()),
        "after_interval": bootstrap_interval(second),
        "difference": float((second - first).mean()),
        "difference_interval": bootstrap_interval(second - first),
    }
