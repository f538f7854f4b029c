import numpy as np
import pytest

from supplementary.evaluation import (
    bootstrap_interval,
    exact_matches,
    key_matches,
    summarize_scores,
)


def test_exact_matches_compare_normalized_texts():
    responses = ["The **Answer**  is “Paris”.", "paris", "Paris, France", "", "Berlin\n"]
    references = ['the answer is "Paris"', "Paris!", "Paris", "Rome", " 'berlin' "]
    assert exact_matches(responses, references) == [True, True, False, False, True]
    assert exact_matches([], []) == []


def test_key_matches_apply_to_each_response_its_own_check():
    checks = [{"type": "equals", "answers": ["A"]}, {"type": "number", "value": 5}]
    assert key_matches(["a", "It is 5."], checks) == [True, True]
    assert key_matches(["It is 5.", "a"], checks) == [False, False]


def test_responses_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        exact_matches(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="longer"):
        key_matches(["a"], [{"type": "equals", "answers": ["a"]}] * 2)


def test_interval_of_equal_values_has_no_width():
    assert bootstrap_interval([0.25] * 30) == (0.25, 0.25)
    assert bootstrap_interval([True] * 110) == (1.0, 1.0)
    assert bootstrap_interval([7.0]) == (7.0, 7.0)


def test_interval_of_no_values_is_refused():
    with pytest.raises(ValueError, match="no values to resample; give at least one"):
        bootstrap_interval([])


def test_interval_ends_at_the_percentiles_of_the_resampled_means():
    # Two values drawn twice: the mean is 0, 0.5 or 1 with probability 1/4, 1/2 and 1/4.
    assert bootstrap_interval([0, 1], confidence=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0, 1], confidence=0.6) == (0.0, 1.0)
    assert bootstrap_interval([0, 1], confidence=0.4) == (0.5, 0.5)


def test_interval_of_a_share_agrees_with_the_normal_approximation():
    low, high = bootstrap_interval([1] * 60 + [0] * 140)
    half = 1.96 * (0.3 * 0.7 / 200) ** 0.5
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.008)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_intervals_hold_the_true_mean_as_often_as_promised(confidence):
    generator = np.random.default_rng(0)
    held = 0
    for number in range(300):
        values = generator.random(60) < 0.4
        low, high = bootstrap_interval(values, confidence=confidence, resamples=300, seed=number)
        held += low <= 0.4 <= high
    assert held / 300 == pytest.approx(confidence, abs=0.08)


def test_interval_is_the_same_for_the_same_seed():
    values = list(np.random.default_rng(1).random(40))
    intervals = [bootstrap_interval(values, resamples=200, seed=seed) for seed in (0, 0, 1, 2)]
    assert intervals[0] == intervals[1]
    assert len(set(intervals)) == 3


def test_interval_of_another_statistic():
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    low, high = bootstrap_interval(values)
    sums = bootstrap_interval(values, statistic=lambda samples: samples.sum(axis=-1))
    assert sums == pytest.approx((5 * low, 5 * high))
    medians = bootstrap_interval(values, statistic=lambda samples: np.median(samples, axis=-1))
    assert medians == (1.0, 100.0)


def test_summary_counts_and_gives_the_paired_difference_with_its_interval():
    before = [True] * 10 + [False] * 100
    after = [True] * 60 + [False] * 50
    summary = summarize_scores(before, after)
    assert (summary["entries"], summary["count_before"], summary["count_after"]) == (110, 10, 60)
    assert summary["before"] == 10 / 110
    assert summary["after"] == 60 / 110
    assert summary["difference"] == pytest.approx(50 / 110)
    assert summary["before_interval"] == bootstrap_interval(before)
    assert summary["after_interval"] == bootstrap_interval(after)
    assert summary["difference_interval"] == bootstrap_interval([0] * 10 + [1] * 50 + [0] * 50)


def test_paired_difference_is_surer_than_the_two_scores_apart():
    before = [True, False] * 55
    after = [True] * 6 + before[6:]  # three entries more
    summary = summarize_scores(before, after)
    low, high = summary["difference_interval"]
    assert summary["difference"] == pytest.approx(3 / 110)
    assert 0 <= low < 3 / 110 < high < 0.07
    assert np.ptp(summary["before_interval"]) > 0.15


def test_scores_that_got_worse_have_a_difference_below_zero():
    summary = summarize_scores([True] * 90 + [False] * 20, [False] * 110)
    assert summary["difference"] == pytest.approx(-90 / 110)
    assert summary["difference_interval"][1] < 0


def test_scores_that_did_not_change_have_a_difference_of_exactly_zero():
    scores = [True, False, True, True]
    summary = summarize_scores(scores, scores)
    assert summary["difference"] == 0
    assert summary["difference_interval"] == (0, 0)


def test_summary_can_be_written_as_json():
    types = {type(value) for value in summarize_scores([True, False], [True, True]).values()}
    assert types == {int, float, tuple}
