import math
import random
from fractions import Fraction

import numpy as np
import pytest

from supplementary.evaluation import (
    bootstrap_interval,
    cohens_kappa,
    exact_matches,
    key_matches,
    mcnemar_test,
    rouge_l,
    summarize_scores,
    token_f1,
    wilson_interval,
)

PAIRS = [
    ("", ""),
    ("", "word"),
    ("word", ""),
    ("...", "?!"),
    ("...", "word"),
    ("word", " word.\n"),
    ("WORD", "word"),
    ("the dog bit the man", "the man bit the dog"),
    ("a b c d", "d c b a"),
    ("a a a", "a"),
    ("a a b", "a b b"),
    ("a b a b a", "b a b"),
    ("x a y b z c", "a b c"),
    ("don't", "dont"),
    ("don't", "don t"),
    ("1,000.50", "1 000 50"),
    ("snake_case-word", "snake case word"),
    ("a\tb\nc\u00a0d", "a b c d"),
    ("naïve café", "naive cafe"),
    ("naïve café", "Naïve Café"),
    ("straße", "STRASSE"),
    ("东京 Tokyo", "Tokyo 東京"),
    ("東京", "東京"),
    ("\u212a", "k"),  # the Kelvin sign is a k in lower case
    ("\u0130zmir ４２", "izmir 42"),
    ("\ud800 lone", "lone surrogate"),
    ("a " * 300, "b a " * 200),
]


def random_pairs(count, seed):
    """Draw pairs of texts from few words, so that many of them share some, in any order."""
    generator = random.Random(seed)
    words = ["a", "b", "c", "A", "été", "it's", "42", "x-y", "...", "中", "b."]
    gaps = [" ", "  ", "\n", ", "]

    def text():
        chosen = generator.choices(words, k=generator.randrange(14))
        return "".join(word + generator.choice(gaps) for word in chosen)

    return [(text(), text()) for _ in range(count)]


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


def test_rouge_l_equals_the_package_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = PAIRS + random_pairs(2000, seed=0)
    ours = [rouge_l(response, reference) for response, reference in pairs]
    theirs = [scorer.score(reference, response)["rougeL"].fmeasure for response, reference in pairs]
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert len(set(theirs)) > 50  # the pairs do tell scores apart


@pytest.mark.parametrize(
    ("response", "reference", "f1", "rouge"),
    [
        ("the dog bit the man", "the man bit the dog", 1, 3 / 5),
        ("The capital is Paris.", "Paris", 2 / 5, 2 / 5),
        ("a a b", "a b b", 2 / 3, 2 / 3),
        ("c b a", "a b c", 1, 1 / 3),
        ("a a a", "a", 1 / 2, 1 / 2),
        ("no word in common", "nothing shared", 0, 0),
        ("", "", 0, 0),
        ("?", "!", 0, 0),
        ("", "word", 0, 0),
        ("word", "", 0, 0),
    ],
)
def test_overlap_scores_are_those_computed_by_hand(response, reference, f1, rouge):
    assert token_f1(response, reference) == pytest.approx(f1)
    assert rouge_l(response, reference) == pytest.approx(rouge)


def test_token_f1_is_the_harmonic_mean_of_precision_and_recall():
    generator = random.Random(1)
    for _ in range(500):
        found, wanted = (generator.choices("abcd", k=generator.randrange(1, 9)) for _ in range(2))
        left = list(wanted)
        for word in found:
            if word in left:
                left.remove(word)
        shared = len(wanted) - len(left)
        precision, recall = Fraction(shared, len(found)), Fraction(shared, len(wanted))
        expected = 2 * precision * recall / (precision + recall) if shared else 0
        assert token_f1(" ".join(found), " ".join(wanted)) == pytest.approx(float(expected))


def test_overlap_scores_are_symmetric_and_order_only_lowers_rouge_l():
    for first, second in PAIRS + random_pairs(300, seed=2):
        f1, rouge = token_f1(first, second), rouge_l(first, second)
        assert (f1, rouge) == (token_f1(second, first), rouge_l(second, first))
        assert 0 <= rouge <= f1 <= 1


@pytest.mark.parametrize("total", [1, 2, 3, 10, 110, 1000])
def test_ends_of_the_wilson_interval_are_the_shares_that_the_score_test_just_keeps(total):
    for count in {0, 1, total // 3, total - 1, total}:
        for end in wilson_interval(count, total):
            expected = 1.959964**2 * end * (1 - end) / total
            assert (count / total - end) ** 2 == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(count, total, low, high):
    """Source: Newcombe, 1998, Statistics in Medicine 17, table I, method 3."""
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5.1e-5)


def test_wilson_interval_holds_the_share_stays_within_0_and_1_and_mirrors():
    for total in range(1, 40):
        for count in range(total + 1):
            low, high = wilson_interval(count, total)
            assert 0 <= low < high <= 1
            assert low - 1e-12 <= count / total <= high + 1e-12
            mirrored = wilson_interval(total - count, total)
            assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


def test_wilson_interval_of_no_cases_rules_nothing_out():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def paired(gained, lost, same=3):
    """Give scores before and after of which so many changed."""
    before = [False] * gained + [True] * lost + [True, False] * same
    return before, [True] * gained + [False] * lost + [True, False] * same


def exact_p_value(gained, lost):
    """Sum the binomial probabilities of all splits as uneven as this one, or more."""
    changed = gained + lost
    as_uneven = [k for k in range(changed + 1) if abs(2 * k - changed) >= abs(gained - lost)]
    return Fraction(sum(math.comb(changed, k) for k in as_uneven), 2**changed)


def test_mcnemar_test_equals_the_sum_of_binomial_probabilities_and_is_symmetric():
    for gained in range(16):
        for lost in range(16):
            p_value = mcnemar_test(*paired(gained, lost))
            assert p_value == pytest.approx(float(exact_p_value(gained, lost)), rel=1e-12)
            assert p_value == mcnemar_test(*reversed(paired(gained, lost)))


def test_mcnemar_test_counts_only_entries_that_changed():
    assert mcnemar_test(*paired(6, 0, same=0)) == mcnemar_test(*paired(6, 0, same=50)) == 2 / 64
    assert mcnemar_test([True, False] * 20, [True, False] * 20) == 1.0
    assert mcnemar_test([], []) == 1.0
    assert mcnemar_test([False], [True]) == 1.0


def test_mcnemar_test_takes_thousands_of_changes():
    p_value = mcnemar_test(*paired(1100, 900))
    z = (1100 - 900 - 1) / math.sqrt(2000)  # the normal approximation, corrected for continuity
    assert p_value == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)
    assert mcnemar_test(*paired(2000, 0)) < 1e-300


def test_equally_good_models_are_told_apart_no_oftener_than_promised():
    """Compare two equally good models a thousand times, with 110 paired scores each.

    The intervals come from 1,000 resamples, not 10,000, which keeps this to a few seconds.
    """
    generator = np.random.default_rng(0)
    excluded = rejected = 0
    for number in range(1000):
        difficulty = generator.random(110)  # the same for both, which makes their scores paired
        before, after = generator.random((2, 110)) < difficulty
        difference = after.astype(int) - before
        low, high = bootstrap_interval(difference, resamples=1000, seed=number)
        excluded += not low <= 0 <= high
        rejected += mcnemar_test(before.tolist(), after.tolist()) < 0.05
    assert 0.03 <= excluded / 1000 <= 0.075
    assert 0.01 <= rejected / 1000 <= 0.05  # an exact test of a discrete count is conservative


def test_mcnemar_test_of_a_fair_coin_never_rejects_oftener_than_the_level():
    for changed in range(1, 60):
        total = sum(
            math.comb(changed, gained)
            for gained in range(changed + 1)
            if mcnemar_test(*paired(gained, changed - gained, same=0)) < 0.05
        )
        assert total / 2**changed <= 0.05
    assert total / 2**changed > 0.02  # yet it does reject


def test_summary_of_yes_or_no_scores_has_mcnemars_p_value():
    before, after = paired(gained=9, lost=2, same=20)
    summary = summarize_scores(before, after)
    assert summary["p_value"] == mcnemar_test(before, after) < 0.07
    numbers = summarize_scores([*map(int, before)], [*map(float, after)])
    assert summary.keys() - numbers.keys() == {"count_before", "count_after", "p_value"}
    assert numbers.items() <= summary.items()


def test_summary_of_numbers_has_means_and_intervals_but_neither_counts_nor_a_p_value():
    before, after = [0.0, 0.25, 0.5, 1.0], [0.5, 0.5, 0.5, 1.0]
    assert summarize_scores(before, after) == {
        "entries": 4,
        "before": 0.4375,
        "before_interval": bootstrap_interval(before),
        "after": 0.625,
        "after_interval": bootstrap_interval(after),
        "difference": 0.1875,
        "difference_interval": bootstrap_interval([0.5, 0.25, 0, 0]),
    }
    assert "p_value" not in summarize_scores([0, 1], [1, 0.5])
    assert "p_value" not in summarize_scores([0, 0.5], [1, 1])


@pytest.mark.parametrize("after", [[0.3, 0.5], [0.3]])
def test_summary_of_scores_that_do_not_pair_up_is_refused(after):
    with pytest.raises(ValueError):
        summarize_scores([0.5, 0.2, 0.1], after)


def test_kappa_is_the_one_computed_by_hand():
    # Both say yes 20 times, both no 15 times; they differ 5 and 10 times.
    first = ["yes"] * 20 + ["no"] * 15 + ["yes"] * 5 + ["no"] * 10
    second = ["yes"] * 20 + ["no"] * 15 + ["no"] * 5 + ["yes"] * 10
    assert cohens_kappa(first, second) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    # Three labels: agreement 4/5; chance (2 * 1 + 2 * 3 + 1 * 1) / 25 = 9/25.
    first, second = ["a", "a", "b", "b", "c"], ["a", "b", "b", "b", "c"]
    assert cohens_kappa(first, second) == pytest.approx((4 / 5 - 9 / 25) / (1 - 9 / 25))


def test_kappa_is_1_for_agreement_0_for_chance_and_minus_1_for_contradiction():
    assert cohens_kappa([1, 0, 2, 1], [1, 0, 2, 1]) == 1
    assert cohens_kappa([1, 1, 0, 0], [1, 0, 1, 0]) == 0
    assert cohens_kappa([1, 1, 1], [1, 0, 1]) == 0  # one label for all carries no information
    assert cohens_kappa([1, 1], [0, 0]) == 0
    assert cohens_kappa([1, 0, 1, 0], [0, 1, 0, 1]) == -1


def test_kappa_of_raters_at_random_is_about_0_whatever_their_shares():
    generator = np.random.default_rng(0)
    first, second = generator.random(20_000) < 0.9, generator.random(20_000) < 0.8
    assert (first == second).mean() > 0.7
    assert abs(cohens_kappa(first.tolist(), second.tolist())) < 0.02


def test_kappa_is_symmetric_and_does_not_depend_on_the_names_of_the_labels():
    first, second = [1, 2, 2, 3, 1, 1], [1, 2, 3, 3, 2, 1]
    names = {1: "good", 2: "fair", 3: "bad"}
    named = cohens_kappa([names[n] for n in first], [names[n] for n in second])
    assert cohens_kappa(first, second) == cohens_kappa(second, first) == named


def test_kappa_that_is_not_defined_is_refused():
    with pytest.raises(ValueError, match="no labels"):
        cohens_kappa([], [])
    with pytest.raises(ValueError, match="one and the same label"):
        cohens_kappa(["yes"] * 4, ["yes"] * 4)
    with pytest.raises(ValueError, match="shorter"):
        cohens_kappa([1, 0], [1])
