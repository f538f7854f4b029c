"""The report on a file of responses, computed by hand and by `evaluate` as a user would."""

import json
import re
from dataclasses import replace
from statistics import mean

import pytest

from supplementary.checkpoints import save_pretrained
from supplementary.cli import main
from supplementary.evaluation import mcnemar_test, rouge_l, token_f1
from supplementary.model import CausalLM
from supplementary.reports import find_key_rows, format_report, load_responses, score_responses
from supplementary.tokenizer import Tokenizer

WRONG = "I would rather not say."
# Kinds whose checks pass the reference and not the words above, and how many are right of 4.
RIGHT = {"arithmetic": (1, 2), "capitals": (0, 4), "translate word": (3, 2)}
OTHER = [
    {
        "instruction": "Say who bit whom.",
        "input": "",
        "output": "The man bit the dog.",
        "response_before": "",
        "response_after": "the dog bit the MAN",
    },
    {
        "instruction": "Say hi.",
        "input": "in French",
        "output": "Salut!",
        "response_before": "salut",
        "response_after": "He says: salut.",
    },
]


@pytest.fixture(scope="module")
def workshop_rows(entries, answer_key):
    """Twelve of the workshop's entries, last first, with as many right responses as `RIGHT`."""
    rows, seen = [], dict.fromkeys(RIGHT, 0)
    for entry, key in zip(entries, answer_key, strict=True):
        kind = key["kind"]
        if kind in RIGHT and seen[kind] < 4:
            before, after = (
                entry["output"] if seen[kind] < right else WRONG for right in RIGHT[kind]
            )
            rows.append({**entry, "response_before": before, "response_after": after})
            seen[kind] += 1
    return rows[::-1]


@pytest.fixture
def evaluate(tmp_path):
    """Write rows, or a text, to responses.json and run `evaluate` on it."""

    def run(rows, *options):
        text = rows if isinstance(rows, str) else json.dumps(rows)
        (tmp_path / "responses.json").write_text(text, encoding="utf-8")
        path = str(tmp_path / "responses.json")
        return main(["evaluate", "--responses", path, *map(str, options)])

    return run


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def strictly(path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_workshop_rows_give_the_accuracy_and_the_right_responses_of_each_kind(workshop_rows):
    report = score_responses(workshop_rows)
    accuracy = report["scores"]["answer key"]
    assert (accuracy["entries"], accuracy["count_before"], accuracy["count_after"]) == (12, 4, 8)
    assert (accuracy["before"], accuracy["after"]) == (4 / 12, 8 / 12)
    assert report["kinds"] == {
        "arithmetic": {"entries": 4, "before": 1, "after": 2},
        "capitals": {"entries": 4, "before": 0, "after": 4},
        "translate word": {"entries": 4, "before": 3, "after": 2},
    }
    assert list(report["kinds"]) == sorted(RIGHT)
    assert report["note"] is None
    assert list(report["scores"]) == ["answer key", "exact match", "token F1", "ROUGE-L"]


def test_accuracy_is_judged_by_the_key_and_not_by_equality(workshop_rows, answer_key):
    rows = [{**row, "response_after": "Well: " + row["output"]} for row in workshop_rows]
    scores = score_responses(rows)["scores"]
    assert (scores["answer key"]["after"], scores["exact match"]["after"]) == (1, 0)
    assert 0.5 < scores["ROUGE-L"]["after"] < 1


def test_every_row_is_judged_by_its_own_check_in_whatever_order(workshop_rows):
    report = score_responses(workshop_rows)
    turned = score_responses(workshop_rows[5:] + workshop_rows[:5])
    assert turned["kinds"] == report["kinds"]
    outputs = [row["output"] for row in workshop_rows]
    moved = [
        {**row, "response_after": other}
        for row, other in zip(workshop_rows, outputs[1:] + outputs[:1], strict=True)
    ]
    assert score_responses(moved)["scores"]["answer key"]["count_after"] == 0


def test_entries_are_found_in_the_key_by_instruction_and_input(workshop_rows, entries, answer_key):
    first, second = entries[1], entries[2]
    assert find_key_rows([second, first]) == [answer_key[2], answer_key[1]]
    assert find_key_rows([{**first, "output": "another"}]) == [answer_key[1]]
    assert find_key_rows([{**first, "input": "another"}]) == [None]
    assert find_key_rows([{**first, "instruction": "another"}]) == [None]
    assert find_key_rows(entries) == answer_key


def test_other_data_gives_overlap_scores_and_a_note_that_says_why():
    report = score_responses(OTHER)
    scores = report["scores"]
    assert list(scores) == ["exact match", "token F1", "ROUGE-L"]
    assert [score["entries"] for score in scores.values()] == [2, 2, 2]
    # Before, only the second is right; after, the first has all five words but three in order,
    # and the second has one word of three and of one.
    pairs = {name: (score["before"], score["after"]) for name, score in scores.items()}
    assert pairs == {
        "exact match": (0.5, 0),
        "token F1": (0.5, pytest.approx((1 + 0.5) / 2)),
        "ROUGE-L": (0.5, pytest.approx((0.6 + 0.5) / 2)),
    }
    assert report["kinds"] == {}
    assert "the answer key knows 0 of these 2 entries" in report["note"]
    assert "only the overlap scores" in report["note"]


def test_mixed_rows_give_no_accuracy_and_the_note_counts_those_that_the_key_knows(workshop_rows):
    report = score_responses([*workshop_rows, OTHER[0]])
    assert "answer key" not in report["scores"]
    assert report["kinds"] == {}
    assert "the answer key knows 12 of these 13 entries" in report["note"]
    assert report["scores"]["token F1"]["entries"] == 13


def test_overlap_scores_are_means_over_the_rows(workshop_rows):
    scores = score_responses(workshop_rows)["scores"]
    for when in ("before", "after"):
        pairs = [(row[f"response_{when}"], row["output"]) for row in workshop_rows]
        assert scores["token F1"][when] == pytest.approx(mean(token_f1(*pair) for pair in pairs))
        assert scores["ROUGE-L"][when] == pytest.approx(mean(rouge_l(*pair) for pair in pairs))


def test_one_row_is_enough():
    report = score_responses(OTHER[1:])
    assert report["scores"]["exact match"]["before_interval"] == (1, 1)
    assert report["scores"]["ROUGE-L"]["difference_interval"] == (-0.5, -0.5)


def test_the_table_holds_every_score_with_its_intervals(workshop_rows):
    rows = [{**row, "response_after": row["response_after"] + " So."} for row in workshop_rows]
    report = score_responses(rows)
    head, *lines = format_report(report).splitlines()
    assert head.split()[:3] == ["before", "after", "difference"]
    assert len(lines) == len(report["scores"]) == 4
    for line, (name, score) in zip(lines, report["scores"].items(), strict=True):
        assert line.startswith(name)
        keys = ("before", "after", "difference")
        wanted = [number for key in keys for number in (score[key], *score[f"{key}_interval"])]
        found = [float(number) for number in re.findall(r"[-+]?[\d.]+(?=%)", line[len(name) :])]
        assert found == pytest.approx([100 * number for number in wanted], abs=0.0501)


def test_the_table_gives_mcnemars_p_value_where_scores_are_yes_or_no(workshop_rows):
    rows = [{**row, "response_after": row["response_after"] + " So."} for row in workshop_rows]
    lines = format_report(score_responses(rows)).splitlines()[1:]
    assert [line.split()[0] for line in lines if "McNemar" in line] == ["answer", "exact"]
    # By the key 2 + 4 changed: arithmetic and capitals gained 1 and 4, translation lost 1.
    p_value = mcnemar_test([False] * 5 + [True], [True] * 5 + [False])
    assert f"McNemar p = {p_value:.2g}" in lines[0]


def test_numbers_in_the_table_stand_apart(workshop_rows):
    table = format_report(score_responses(workshop_rows))
    assert not re.search(r"\)\d", table), table


def test_the_note_stands_under_the_table():
    report = score_responses(OTHER)
    assert format_report(report).splitlines()[-1] == report["note"]
    assert format_report({**report, "note": None}).splitlines()[-1].startswith("ROUGE-L")


def test_evaluate_prints_the_table_and_writes_the_report_beside_the_responses(
    evaluate, workshop_rows, tmp_path, capsys
):
    assert evaluate(workshop_rows) == 0
    report = score_responses(workshop_rows)
    assert strictly(tmp_path / "scores.json") == json.loads(json.dumps(report))
    assert names(tmp_path) == ["responses.json", "scores.json"]
    shown = capsys.readouterr().out
    assert shown == f"{format_report(report)}\nwritten to {tmp_path / 'scores.json'}\n"


def test_evaluate_tells_why_other_data_has_no_accuracy(evaluate, tmp_path, capsys):
    assert evaluate(OTHER) == 0
    note = strictly(tmp_path / "scores.json")["note"]
    assert "answer key knows 0 of these 2" in note
    assert note in capsys.readouterr().out


def test_evaluate_writes_to_the_path_given_as_out_and_makes_its_folder(evaluate, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "mine.json"
    assert evaluate(OTHER, "--out", out) == 0
    assert strictly(out).keys() == {"scores", "kinds", "note"}
    assert names(tmp_path) == ["new", "responses.json"]
    assert f"written to {out}" in capsys.readouterr().out


def test_evaluate_leaves_the_responses_as_they_were(evaluate, tmp_path):
    text = json.dumps(OTHER)
    evaluate(text)
    assert (tmp_path / "responses.json").read_text(encoding="utf-8") == text


def test_scores_take_the_place_of_older_ones_only_when_they_are_whole(evaluate, tmp_path, capsys):
    resource = pytest.importorskip("resource", reason="the system has no limits to set")
    assert evaluate(OTHER) == 0
    before = (tmp_path / "scores.json").read_bytes()
    (tmp_path / "rest.json").write_text(json.dumps(OTHER[:1]), encoding="utf-8")
    arguments = ["--responses", str(tmp_path / "rest.json"), "--out", str(tmp_path / "scores.json")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes a file: a full disk
    try:
        assert main(["evaluate", *arguments]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "error: " in capsys.readouterr().err
    assert (tmp_path / "scores.json").read_bytes() == before
    assert names(tmp_path) == ["responses.json", "rest.json", "scores.json"]
    assert main(["evaluate", *arguments]) == 0
    assert strictly(tmp_path / "scores.json")["scores"]["exact match"]["entries"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON"),
        ('[{"instruction": "a"', "is not valid JSON"),
        ("{}", "holds no list of responses"),
        ("[]", "holds no list of responses"),
        ('"text"', "holds no list of responses"),
        ("null", "holds no list of responses"),
        ("[1]", "row 0 is of type int"),
        (json.dumps([OTHER[0], [OTHER[1]]]), "row 1 is of type list"),
        (json.dumps([OTHER[0], None]), "row 1 is of type NoneType"),
        (json.dumps([OTHER[0], {}]), "row 1 has no text as 'instruction' (keys: )"),
    ],
)
def test_a_file_that_holds_no_responses_is_refused_and_nothing_is_written(
    evaluate, tmp_path, capsys, text, words
):
    assert evaluate(text) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and words in printed.err
    assert str(tmp_path / "responses.json") in printed.err
    assert printed.out == ""
    assert names(tmp_path) == ["responses.json"]


@pytest.mark.parametrize("value", ["missing", None, 3, ["a", "b"], True])
@pytest.mark.parametrize("key", OTHER[0])
def test_a_row_without_a_text_is_named_with_its_key(tmp_path, key, value):
    rows = [dict(row) for row in OTHER]
    rows[1][key] = value
    if value == "missing":
        del rows[1][key]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        load_responses(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: row 1 has no text as {key!r} (keys: {', '.join(rows[1])})")
    assert "every row needs instruction, input, output, response_before, response_after" in message


def test_further_keys_and_empty_responses_are_taken(tmp_path):
    rows = [{**row, "response_before": "", "rating": 5} for row in OTHER]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert load_responses(path) == rows
    assert load_responses(str(path)) == rows


def test_a_missing_file_and_a_folder_are_named(tmp_path, capsys):
    assert main(["evaluate", "--responses", str(tmp_path / "nowhere.json")]) == 1
    assert "nowhere.json" in capsys.readouterr().err
    folder = tmp_path / "folder"
    folder.mkdir()
    assert main(["evaluate", "--responses", str(folder)]) == 1
    assert str(folder) in capsys.readouterr().err
    assert names(tmp_path) == ["folder"]


def test_evaluate_needs_a_file_of_responses(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate"])
    assert "--responses" in capsys.readouterr().err


def test_metrics_of_finetune_hold_the_scores_that_evaluate_computes(
    tiny_config, train_tokenizer, entries, answer_key, tmp_path, monkeypatch, capsys
):
    tokenizer = Tokenizer(json.loads(train_tokenizer().to_str()), eos_token_id=0)
    save_pretrained(CausalLM(replace(tiny_config, vocab_size=320)), tokenizer, tmp_path / "model")
    short = sorted(
        (entry for entry, key in zip(entries, answer_key, strict=True) if key["kind"] in RIGHT),
        key=lambda entry: len(entry["instruction"] + entry["input"]),
    )
    (tmp_path / "data.json").write_text(json.dumps(short[:20]), encoding="utf-8")
    # A random model knows nothing: let it be wrong before and right after.
    responses = iter([lambda entry: WRONG, lambda entry: entry["output"]])

    def respond(model, tokenizer, test, *options, **more):
        return list(map(next(responses), test))

    monkeypatch.setattr("supplementary.finetune.respond", respond)
    options = {"data": tmp_path / "data.json", "model": tmp_path / "model", "out": tmp_path / "run"}
    options |= {"epochs": 1, "prompt-style": "chatml"}
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    assert main(["finetune", *arguments]) == 0
    finetuned = capsys.readouterr().out
    assert main(["evaluate", "--responses", str(tmp_path / "run" / "responses.json")]) == 0
    table, _ = capsys.readouterr().out.split("\nwritten to")
    metrics = strictly(tmp_path / "run" / "metrics.json")
    scores = strictly(tmp_path / "run" / "scores.json")
    assert {key: metrics[key] for key in scores} == scores
    accuracy = scores["scores"]["answer key"]
    assert (accuracy["entries"], accuracy["before"], accuracy["after"]) == (2, 0, 1)
    assert table in finetuned
