"""Every check accepts the solution, rejects the stub, and knows its mistakes apart."""

import pytest

from supplementary import checks
from supplementary.checks.check import UNATTEMPTED

CHECKS = {name: getattr(checks, name) for name in checks.__all__}
MISTAKES = [(name, mistake) for name, check in CHECKS.items() for mistake in check.mistakes]


@pytest.fixture(params=CHECKS)
def check(request):
    return CHECKS[request.param]


def test_the_solution_is_right(check, capsys):
    check(check.solution)
    assert capsys.readouterr().out == f"Right, in all {len(check.cases())} cases.\n"


def test_an_untouched_stub_prints_the_fixed_line(check, capsys):
    def stub(*arguments):
        raise NotImplementedError

    check(stub)
    assert capsys.readouterr().out == UNATTEMPTED + "\n"


def test_there_is_a_hidden_case_and_three_mistakes_are_known(check):
    assert len(check.cases()) >= 2 and len(check.mistakes) >= 3


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_is_rejected_by_its_name(name, mistake):
    check = CHECKS[name]
    verdict = check.verdict(check.mistakes[mistake])
    assert verdict.startswith("Not yet: ") and verdict.endswith(f"\nLikely mistake: {mistake}.")


@pytest.mark.parametrize("wrong", [lambda *a: None, lambda *a: 1 / 0, lambda: 1, lambda *a: [a]])
def test_no_answer_makes_a_check_raise(check, wrong):
    assert check.verdict(wrong).startswith("Not yet: right in ")


@pytest.mark.parametrize("answer", [None, 3, "text", [1]])
def test_a_value_instead_of_a_function_is_explained(check, answer):
    assert check.verdict(answer).startswith("Give the function itself")


def test_a_case_that_rightly_gives_nothing_is_no_missing_return():
    verdict = checks.check_truncate.verdict(
        lambda example, max_length: example if len(example.input_ids) <= max_length else None
    )
    assert verdict.startswith("Not yet: ") and "no `return`" not in verdict


def test_a_result_of_another_kind_is_met_with_what_is_asked_for():
    verdict = checks.check_encode_phi3.verdict(lambda entries, tokenizer: [{}])
    assert "asked for is a list of Example" in verdict


def test_of_an_expected_exception_only_the_kind_is_shown():
    def zip_alone(entries, before, after):
        rows = zip(entries, before, after, strict=False)
        return [
            {**e, "response_before": a.strip(), "response_after": b.strip()} for e, a, b in rows
        ]

    assert "  expected: raises ValueError\n" in checks.check_pair_responses.verdict(zip_alone)
