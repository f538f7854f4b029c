import re
import time

import pytest

from supplementary import answer_key
from supplementary.answer_key import (
    check_response,
    holds,
    keeps_constraints,
    list_items,
    normalize,
    numbers,
    strip_fence,
)

# Normalizing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("  Paris. ", "paris"),
        ("It\n is\t\u00a0so", "it is so"),
        ("**Bold** and STRAßE", "bold and strasse"),
        ("‘one’ “two” `three`", "one' \"two\" 'three"),
        ("ﬁne １２", "fine 12"),
        ("cafe\u0301", "caf\u00e9"),
        ("Wow?!;", "wow"),
        ("...", ""),
        ("3.5 * 2", "3.5 * 2"),
    ],
)
def test_normalizing_folds_only_what_does_not_matter(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("The capital is Paris.", "paris", True),
        ("The capital is Paris.", "Capital is  PARIS", True),
        ("Parisian life", "Paris", False),
        ("comparison", "Paris", False),
        ("snake_case", "snake", False),
        ("a dog's life", "dog", True),
        ("non-metal", "metal", True),
        ("It is 'simple'.", "simple", True),
        ("It costs 5 €", "€", True),
        ("A comment starts with #.", "#", True),
        ("a.b", "a+b", False),
        ("axb", "a.b", False),  # a phrase is no regular expression
        ("", "a", False),
    ],
)
def test_phrases_are_held_as_whole_words(text, phrase, expected):
    assert holds(text, phrase) is expected


# Checks, one by one: (settings, responses that pass, responses that do not)

CHECKS = {
    "equals one of the answers": (
        {"type": "equals", "answers": ["Simple", "easy"]},
        ["simple", "'Simple.'", " **EASY**\n"],
        ["", "not simple", "simple, easy", "simples"],
    ),
    "contains any": (
        {"type": "contains", "any": ["dog", "house cat"]},
        ["A dog.", "The House  Cat!", "hot-dog"],
        ["", "dogs", "cat in a house", "a house, cat"],
    ),
    "contains all": (
        {"type": "contains", "all": ["red", "blue"]},
        ["Blue and red.", "red/blue"],
        ["", "red", "Bluered", "reddish blue"],
    ),
    "contains none": (
        {"type": "contains", "any": ["noun"], "none": ["verb", "pronoun"]},
        ["It is a noun.", "A noun, not an adverb."],
        ["", "a pronoun", "A noun and a verb.", "noun VERB"],
    ),
    "contains any, all and none": (
        {"type": "contains", "any": ["a", "b"], "all": ["c"], "none": ["d"]},
        ["a c", "c, b"],
        ["a", "c", "a c d", "d"],
    ),
    "contains a stem": (
        {"type": "contains", "any": ["smil*"], "none": ["cat*"]},
        ["She smiled.", "Smiles!", "A smil* scat"],
        ["", "asmile", "sm il", "Smile at cattle"],
    ),
    "contains all of several alternatives": (
        {"type": "contains", "all": [["doctor", "physician*"], "rest"]},
        ["Rest, says the doctor.", "Physicians advise rest."],
        ["", "doctor", "rest", "doctors rest", "The doctor is restless."],
    ),
    "choice": (
        {"type": "choice", "right": ["3/4", "three quarters"], "wrong": ["2/3", "two thirds"]},
        ["3/4", "3/4 is larger than 2/3.", "Three quarters is more, and two thirds is less."],
        ["", "2/3", "2/3 is larger than 3/4.", "13/4", "Two thirds or 3/4?", "neither"],
    ),
    "choice among options that hold each other": (
        {"type": "choice", "right": ["even"], "wrong": ["even temper"]},
        ["even", "Even, not of even temper."],
        ["even temper", "uneven", "Even temper, or even."],
    ),
    "choice with a reason, and not denied": (
        {"type": "choice", "right": ["oak"], "wrong": ["rose"], "all": ["tree"], "none": ["not"]},
        ["The oak is a tree.", "Oak, a tree among roses; a rose is a flower."],
        ["oak", "A rose is no tree, but the oak is.", "The oak is not a tree.", "a tree"],
    ),
    "number spelled out": (
        {"type": "number", "value": 42},
        ["forty-two", "It is Forty-Two.", "42"],
        ["", "forty", "two", "fourty-two"],
    ),
    "number that may end the response": (
        {"type": "number", "value": 5, "units": ["", "kg"]},
        ["5", "5.", "five", "'5'", "5 kg", "5000 g are 5 kg.", "It is **5**."],
        ["", "5 g", "5%", "It is 5 or so.", "5 km", "6", "6 kg"],
    ),
    "constraints on each item": (
        {
            "type": "constraints",
            "items": 3,
            "among": ["red", "green", "box", "city"],
            "layout": "commas",
        },
        ["red, green, box", "The red, a green, and boxes.", "Colours: RED, GREENS, BOX"],
        ["red, green", "red, green, blue", "red, reds, green", "red\ngreen\nbox", "red green box"],
    ),
    "constraints on lines": (
        {"type": "constraints", "items": 2, "layout": "lines"},
        ["a\nb", "- a\n- b"],
        ["a, b", "a", "a\n\nb", ""],
    ),
    "constraints on a list with dashes": (
        {"type": "constraints", "items": 2, "layout": "dashes"},
        ["- a\n- b", "* a\n* b", "- a c\n- b"],
        ["a\nb", "- a", "1. a\n2. b", "-a\n-b"],
    ),
    "constraints on a numbered list": (
        {"type": "constraints", "items": 2, "layout": "numbers"},
        ["1. a\n2. b", "1) a\n2) b"],
        ["a\nb", "- a\n- b", "1. a", "1. a, 2. b"],
    ),
    "constraints with alternatives": (
        {"type": "constraints", "max_words": 4, "must": [["rain*", "wet"], "day"]},
        ["A wet day.", "Rainy day"],
        ["day", "wet", "It is a rainy day"],
    ),
    "number": (
        {"type": "number", "value": 12},
        ["12", "It is 12.", "12.0", "The answer: **12**!", "12 = 3 * 4", "twelve", "$12"],
        ["", "twelfth", "-12", "120", "12.5", "1 2", "3 12 4", "12,000"],
    ),
    "number below zero": (
        {"type": "number", "value": -3.5},
        ["-3.5", "\u22123.5 degrees", "It fell to -3.50."],
        ["3.5", "-3", "- 3,5"],
    ),
    "number with thousands separators": (
        {"type": "number", "value": 1234567.5},
        ["1,234,567.5", "1234567.5", "It has 1,234,567.50 parts."],
        ["1,234,567", "1,234", "234,567.5", "1.234.567,5"],
    ),
    "number below one": (
        {"type": "number", "value": 0.25},
        ["0.25", ".25", "It is .25."],
        ["25", "0.2", "1/4"],
    ),
    "number within a tolerance": (
        {"type": "number", "value": 3.14, "tolerance": 0.01},
        ["3.14", "3.1416", "3.131", "about 3.149"],
        ["3.151", "3.129", "3"],
    ),
    "number exact where no tolerance is given": (
        {"type": "number", "value": 0.3},
        ["0.3", "0.30"],
        ["0.31", "0.300001"],
    ),
    "number with units": (
        {"type": "number", "value": 5, "units": ["km", "kilometers", "kilometer"]},
        ["5 km", "5km", "5,000 m are 5 km.", "5 Kilometers", "**5** km", "5-kilometer", "km 5"],
        ["5", "5 m", "5 kmh", "5 kms", "5 miles or 8 km", "a km has 5 parts", "5 k m"],
    ),
    "number with a sign before it": (
        {"type": "number", "value": 12.5, "units": ["$", "dollars"]},
        ["$12.50", "$ 12.5", "12.50 dollars", "It costs **$12.50**."],
        ["12.50", "€12.50", "12.50 cents", "$12"],
    ),
    "number in percent": (
        {"type": "number", "value": 40, "units": ["%", "percent"]},
        ["40%", "40 %.", "40 percent", "50 of 125 are 40%"],
        ["40", "40 percentage", "0.4%"],
    ),
    "list": (
        {"type": "list", "items": ["red", "green", "blue"]},
        ["red, green, blue", "Blue, red and green.", "1. Green\n2. Red\n3. Blue"],
        ["", "red, green", "red, greenish, blue"],
    ),
    "list of phrases that hold each other": (
        {"type": "list", "items": ["apple", "apple pie"]},
        ["apple pie, apple", "An apple and an apple pie"],
        ["apple pie", "apple", "apple and pie"],
    ),
    "ordered list": (
        {"type": "list", "items": ["ant", "bee", "cat"], "ordered": True},
        ["ant, bee, cat", "1. Ant\n2. Bee\n3. Cat", "Sorted, cat, ant, bee is: ant, bee, cat."],
        ["", "ant, cat, bee", "ant, bee", "ant, bee, cat, ant", "ants, bees, cats"],
    ),
    "ordered list with repeated items": (
        {"type": "list", "items": ["a", "b", "a"], "ordered": True},
        ["a b a", "A, B, A."],
        ["a b", "b a a", "a a b"],
    ),
    "pattern": (
        {"type": "pattern", "regex": r"^(?i:yes|no)\b.*\.$"},
        ["Yes.", " no, it is not.\n"],
        ["", "Yes", "It is so: yes."],
    ),
    "pattern that minds the case": (
        {"type": "pattern", "regex": r"^[A-Z]{3}$"},
        ["ABC", "ABC\n"],
        ["abc", "ABCD"],
    ),
    "json with a value": (
        {"type": "json", "value": {"name": "Ann", "tags": ["a", 1]}},
        [
            '{"name": "Ann", "tags": ["a", 1]}',
            ' {"tags":["a",1],\n"name":"Ann"} ',
            '```json\n{"name": "Ann", "tags": ["a", 1]}\n```',
            'Here it is:\n```\n{"name": "Ann", "tags": ["a", 1]}\n```\nI hope it helps.',
        ],
        [
            "",
            '{"name": "Ann", "tags": [1, "a"]}',
            '{"name": "ann", "tags": ["a", 1]}',
            "{'name': 'Ann', 'tags': ['a', 1]}",
            '{"name": "Ann", "tags": ["a", 1]} Done.',
            '{"name": "Ann", "tags": ["a", "1"]}',
        ],
    ),
    "json with a list": (
        {"type": "json", "value": []},
        ["[]", "```\n[]\n```"],
        ["{}", "[0]", "null"],
    ),
    "json that tells numbers and truth apart": (
        {"type": "json", "value": {"open": True, "count": 1}},
        ['{"open": true, "count": 1}', '{"open": true, "count": 1.0}'],
        ['{"open": 1, "count": 1}', '{"open": true, "count": true}', '{"open": "true"}'],
    ),
    "json with keys": (
        {"type": "json", "keys": ["name", "age"]},
        ['{"age": null, "name": []}', '```json\n{"name": 1, "age": 2}'],
        ['{"name": 1}', '{"name": 1, "age": 2, "more": 3}', '["name", "age"]', '"name"'],
    ),
    "constraints": (
        {"type": "constraints", "sentences": 1, "max_words": 4, "must": ["sea"]},
        ["The sea is blue.", "Sea!", "The sea is blue"],
        ["", "The sea. Is blue.", "The sea is so blue.", "The seal is blue.", "The sea. Blue"],
    ),
    "judged": (
        {"type": "judged", "min_words": 2},
        ["Anything goes", "1 2 3"],
        ["", " \n", "One"],
    ),
    "judged without constraints": (
        {"type": "judged"},
        ["Anything", "."],
        ["", " \n\t"],
    ),
}


def rows(outcome: int) -> list:
    return [
        pytest.param(settings[0], response, id=f"{name}: {response!a}")
        for name, settings in CHECKS.items()
        for response in settings[outcome]
    ]


@pytest.mark.parametrize(("check", "response"), rows(1))
def test_right_response_passes(check, response):
    assert check_response(check, response) is True


@pytest.mark.parametrize(("check", "response"), rows(2))
def test_wrong_response_does_not_pass(check, response):
    assert check_response(check, response) is False


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            {"type": "guess"},
            "unknown check type 'guess'; known types: equals, contains, choice, number, list",
        ),
        ({"any": ["a"]}, "unknown check type None"),
        ({}, "unknown check type None"),
        ({"type": "equals", "answer": ["a"]}, "has a wrong setting: "),
        ({"type": "equals"}, "has a wrong setting: "),
        ({"type": "contains", "any": ["a"], "some": ["b"]}, "has a wrong setting: "),
        ({"type": "number", "value": 1, "unit": "km"}, "has a wrong setting: "),
        ({"type": "constraints", "paragraphs": 2}, "has a wrong setting: "),
        ({"type": "judged", "maxwords": 2}, "has a wrong setting: "),
    ],
)
def test_unknown_types_and_settings_are_refused(check, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_response(check, "a")
    assert check_response({"type": "judged"}, "a")


def test_check_is_left_as_it_was():
    check = {"type": "number", "value": 1}
    check_response(check, "1")
    assert check == {"type": "number", "value": 1}


# Numbers


@pytest.mark.parametrize(
    ("text", "units", "expected"),
    [
        ("", [], []),
        ("none", ["km"], []),
        ("1, 2 and 3.5", [], [1, 2, 3.5]),
        ("1,2,3", [], [1, 2, 3]),
        ("1,000,000 or 1000000 or 1,00", [], [1_000_000, 1_000_000, 1, 0]),
        ("5,000 m are 5 km", ["km"], [5]),
        ("5 m and 6 m/s and 7 mm", ["m"], [5, 6]),
        ("$3 and 4 dollars and 5", ["$", "dollars"], [3, 4]),
        ("2 KM", ["km"], [2]),
        ("2 km", ["KM"], [2]),
    ],
)
def test_numbers_are_listed_in_order_with_only_those_that_a_unit_touches(text, units, expected):
    assert numbers(text, units) == expected


# Code


def python_check(*examples: tuple) -> dict:
    return {"type": "python", "examples": [list(example) for example in examples]}


DOUBLE = python_check(("double(2)", 4), ("double('a')", "aa"))


@pytest.mark.parametrize(
    "response",
    [
        "def double(x):\n    return 2 * x",
        "```python\ndef double(x):\n    return x + x\n```",
        "Here you are:\n```\ndouble = lambda x: x * 2\n```\nIt doubles x.",
        "print('hi', end='')\ndef double(x):\n    print(x)\n    return 2 * x",
        "def double(x):\n    return 2 * x\n\nif __name__ == '__main__':\n    double(input())",
    ],
)
def test_code_that_gives_every_result_passes(response):
    assert check_response(DOUBLE, response) is True


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Double the number.",
        "def double(x):\n    return 4",  # right for one example only
        "def twice(x):\n    return 2 * x",
        "def double(x):\nreturn 2 * x",
        "def double(x):\n    print(2 * x)",
        "def double(x):\n    return {2 * x}",  # a set is no JSON
        "x = int(input())\ndef double(x):\n    return 2 * x",  # there is nothing to read
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "print('all examples passed')",
    ],
)
def test_code_that_does_not_give_every_result_does_not_pass(response):
    assert check_response(DOUBLE, response) is False


@pytest.mark.parametrize("leave", ["raise SystemExit", "import os; os._exit(0)"])
def test_code_cannot_pass_by_printing_the_verdict_itself(leave):
    response = f"print('all examples passed', flush=True)\n{leave}"
    assert check_response(DOUBLE, response) is False


def test_results_are_compared_as_json_values():
    check = python_check(("f()", [1, [2, None]]))
    assert check_response(check, "def f():\n    return 1, (2, None)") is True
    assert check_response(check, "def f():\n    return [1, 2, None]") is False


def test_code_that_loops_for_ever_is_stopped(monkeypatch):
    monkeypatch.setattr(answer_key, "PYTHON_SECONDS", 0.5)
    start = time.monotonic()
    assert check_response(DOUBLE, "while True:\n    pass") is False
    assert 0.5 <= time.monotonic() - start < 5


def test_code_that_waits_for_ever_is_stopped(monkeypatch):
    monkeypatch.setattr(answer_key, "PYTHON_SECONDS", 0.5)
    assert check_response(DOUBLE, "import time\ntime.sleep(60)") is False


def test_code_that_prints_bytes_of_no_text_is_judged_by_its_results():
    response = "import sys\nsys.stdout.buffer.write(bytes([255]))\ndef double(x):\n    return 2 * x"
    assert check_response(DOUBLE, response) is True


def test_code_that_prints_letters_of_every_script_is_judged_by_its_results():
    response = "print('é 你好 🙂')\ndef double(x):\n    return 2 * x"
    assert check_response(DOUBLE, response) is True


def test_code_does_not_see_this_process_and_its_folder(tmp_path, monkeypatch):
    (tmp_path / "secret.py").write_text("def double(x):\n    return 2 * x", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert check_response(DOUBLE, "from secret import double") is False
    assert check_response(DOUBLE, "from double import double") is False


def test_code_runs_where_the_system_refuses_limits(monkeypatch):
    # macOS refuses a limit of the address space with this error.
    refuse = (
        "import resource\n"
        "def refuse(*limit):\n"
        "    raise ValueError('current limit exceeds maximum limit')\n"
        "resource.setrlimit = refuse\n"
    )
    pytest.importorskip("resource", reason="this system has no such limits")
    monkeypatch.setattr(answer_key, "_HARNESS", refuse + answer_key._HARNESS)
    assert check_response(DOUBLE, "def double(x):\n    return 2 * x") is True


# Fences and items


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("  x = 1\n", "x = 1"),
        ("```python\nx = 1\n```", "x = 1"),
        ("```\nx = 1\n```\n```\ny = 2\n```", "x = 1"),
        ("A snippet:\n```python \nx = 1\n```", "x = 1"),
        ("```c++\nint x;\n```", "int x;"),
        ("```python\nx = 1", "x = 1"),
        ("Write `x = 1`.", "Write `x = 1`."),
        ("", ""),
    ],
)
def test_what_stands_between_fences_is_taken(response, expected):
    assert strip_fence(response) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("apples, pears, and plums.", ["apples", "pears", "plums"]),
        ("apples and pears", ["apples", "pears"]),
        ("tea, coffee, or milk", ["tea", "coffee", "milk"]),
        ("Three fruits: apples; pears; plums", ["apples", "pears", "plums"]),
        ("1. Apples\n2. Pears\n\n3) Plums.", ["Apples", "Pears", "Plums"]),
        ("- red wine, dry\n* white wine\n\u2022 beer", ["red wine, dry", "white wine", "beer"]),
        ("sandwich", ["sandwich"]),
        ("", []),
    ],
)
def test_items_are_split_by_line_or_else_by_comma_and_and(response, expected):
    assert list_items(response) == expected


# Constraints


@pytest.mark.parametrize(
    ("setting", "kept", "broken"),
    [
        ({"items": 3}, ["a, b and c", "1. a\n2. b\n3. c"], ["a, b", "a, b, c, d", "a b c"]),
        ({"words": 3}, ["one two three", " a  b\nc "], ["one two", "one two three four"]),
        ({"max_words": 2}, ["one", "one two"], ["one two three"]),
        ({"min_words": 2}, ["one two", "one two three"], ["one", "one-two"]),
        (
            {"sentences": 2},
            [
                "It is. It was!",
                'He said: "No." She left?',
                "Really?! Yes...",
                "3.5 is a. 4 is b",
                "One. Two",
            ],
            ["It is.", "It is. It was. It will be.", "It is; it was", "One. Two! Three"],
        ),
        ({"lines": 2}, ["a\nb", "a\n\n  \nb\n"], ["a", "a\nb\nc"]),
        ({"case": "upper"}, ["ALL OF 3!", "É"], ["All", "ALL OF IT, yes"]),
        ({"case": "lower"}, ["all of 3!", "é"], ["All", "all of It"]),
        ({"must": ["sea", "blue sky"]}, ["The blue sky, the SEA."], ["sea", "Blue sky seas."]),
        ({"must_not": ["very"]}, ["Every day."], ["Very good.", "It is very."]),
        ({"starts_with": "Dear"}, ["Dear Ann", " dear all", "DEARLY"], ["Oh dear", "To"]),
        ({"ends_with": "regards"}, ["Best regards.", "Regards", 'my "Regards!"'], ["regards, A"]),
        ({"ends_with": "!"}, ["Go!", '"Go!"'], ["Go.", "Go! Now"]),
        ({"words": 2, "case": "lower"}, ["a b"], ["a B", "a b c"]),
    ],
)
def test_each_constraint_is_kept_or_broken_on_its_own(setting, kept, broken):
    assert [response for response in kept if not keeps_constraints(response, **setting)] == []
    assert [response for response in broken if keeps_constraints(response, **setting)] == []


@pytest.mark.parametrize(
    "setting", [{}, {"items": 0}, {"words": 0}, {"max_words": 5}, {"case": "upper"}]
)
def test_empty_response_keeps_no_constraints(setting):
    assert keeps_constraints("", **setting) is False
    assert keeps_constraints(" \n ", **setting) is False
