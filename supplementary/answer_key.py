"""The answer key: is a response right, by a rule that was written down before any model answered?

A check is a dictionary with a `type`; `check_response(check, response)` applies it. The types:

=============  ==========================================================================
equals         the normalized response is one of `answers`
contains       it holds one of `any` and all of `all`, as whole words, and none of `none`
choice         of the options it names, the first is one of `right`, not of `wrong`
number         its first or last number is `value` within `tolerance`, next to one of `units`
list           the `items` it names are exactly these, in this order if `ordered`
pattern        the regular expression `regex` is found in it
json           it is valid JSON and equals `value`, or is an object with `keys`
python         it is Python code that gives the result of each of `examples`
constraints    it keeps every limit that is given (see `keeps_constraints`)
judged         only judgement can tell; the constraints that are given must hold
=============  ==========================================================================

A phrase that ends in `*` stands for every word that begins so. In `all` and `must`, a list of
phrases stands where one of several will do.
"""

import json
import re
import secrets
import subprocess
import sys
import tempfile
import unicodedata

PYTHON_SECONDS = 10  # wall-clock limit for one snippet
_LAYOUTS = {
    "commas": r"[^\n,]+(?:,[^\n,]+)+",
    "lines": r".+(?:\n.+)+",
    "dashes": r"[-*\u2022\u2013] .+(?:\n[-*\u2022\u2013] .+)+",
    "numbers": r"\d+[.)] .+(?:\n\d+[.)] .+)+",
}
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "`": "'"})
_TO_19 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER = r"[-\u2212]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[-\u2212]?\d+(?:\.\d+)?|[-\u2212]?\.\d+"


def _spelled_numbers() -> dict[str, str]:
    ones, tens = _TO_19.split(), _TENS.split()
    words = ones + [ten + one for ten in tens for one in ("", *(f"-{one}" for one in ones[1:10]))]
    return {word: str(number) for number, word in enumerate(words)}


_SPELLED = _spelled_numbers()
_SPELLED_NUMBER = r"\b(?:" + "|".join(sorted(_SPELLED, key=len, reverse=True)) + r")\b"


def normalize(text: str) -> str:
    """Fold case, quotation marks, bold marks and white space; drop quotes and stops at the ends.

    >>> normalize(' It is   **"Paris."** ')
    'it is "paris'
    """
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold()
    return " ".join(text.replace("**", "").split()).strip(" .,:;!?\"'")


def holds(text: str, phrase: str | list[str]) -> bool:
    """Tell whether `phrase`, or one of several, occurs in `text` as whole words, normalized.

    >>> holds("Two kittens slept.", ["cat*", "kitten*"])
    True
    """
    phrases = [phrase] if isinstance(phrase, str) else phrase
    return bool(re.search("|".join(map(_whole, phrases)), normalize(text)))


def _whole(phrase: str) -> str:
    stem = phrase[:-1] if phrase[1:].endswith("*") else phrase
    return rf"(?<!\w){re.escape(normalize(stem) or stem)}" + (r"(?!\w)" if stem == phrase else "")


def _equals(response: str, answers: list[str]) -> bool:
    return normalize(response) in {normalize(answer) for answer in answers}


def _contains(response: str, any: list = (), all: list = (), none: list = ()) -> bool:
    wanted = [*all, list(any)] if any else all
    return _holds_every(response, wanted) and not (none and holds(response, none))


def _holds_every(response: str, phrases: list) -> bool:
    return not [phrase for phrase in phrases if not holds(response, phrase)]


def _choice(response: str, right: list, wrong: list, all: list = (), none: list = ()) -> bool:
    text = normalize(response)
    chosen = re.search("|".join(map(_whole, right)), text)
    rejected = re.search("|".join(map(_whole, wrong)), text)
    first = chosen and not (rejected and rejected.start() <= chosen.start())
    return bool(first) and _contains(response, all=all, none=none)


def numbers(text: str, units: list[str] = ()) -> list[float]:
    """List the numbers in `text`, also those up to 99 that are spelled out.

    With `units`, only those that one of the units touches; the unit "" stands for the end
    of the text.

    >>> numbers("5,000 m are five km", ["km"])
    [5.0]
    """
    text = re.sub(_SPELLED_NUMBER, lambda match: _SPELLED[match.group()], text.casefold())
    text = text.replace("**", "")
    names = "|".join(re.escape(unit.casefold()) for unit in units if unit) or r"(?!)"
    found = []
    for match in re.finditer(_NUMBER, text):
        before, after = text[: match.start()], text[match.end() :]
        beside = (
            not units
            or re.match(rf"[\s-]*(?:{names})(?!\w)", after)
            or re.search(rf"(?<!\w)(?:{names})\s*$", before)
            or ("" in units and not after.strip(" .!'\"\n"))
        )
        if beside:
            found.append(float(match.group().replace(",", "").replace("\u2212", "-")))
    return found


def _number(response: str, value: float, tolerance: float = 1e-9, units: list = ()) -> bool:
    found = numbers(response, units)
    return any(abs(number - value) <= tolerance for number in found[:1] + found[-1:])


def _list(response: str, items: list[str], ordered: bool = False) -> bool:
    wanted = [normalize(item) for item in items]
    either = "|".join(_whole(item) for item in sorted(wanted, key=len, reverse=True))
    found = re.findall(either, normalize(response))
    return found[-len(wanted) :] == wanted if ordered else set(found) == set(wanted)


def _pattern(response: str, regex: str) -> bool:
    return bool(re.search(regex, response.strip()))


def strip_fence(response: str) -> str:
    """Return what stands between the first pair of Markdown code fences, or all of it."""
    fenced = re.search(r"```[^\n`]*\n(.*?)(?:```|\Z)", response, re.DOTALL)
    return (fenced.group(1) if fenced else response).strip()


def _same_json(left, right) -> bool:
    """Compare as JSON does: 1 equals 1.0, but neither is true."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = left.keys() | right.keys()
        return left.keys() == right.keys() and all(_same_json(left[k], right[k]) for k in keys)
    if isinstance(left, list) and isinstance(right, list):
        pairs = zip(left, right, strict=False)
        return len(left) == len(right) and all(_same_json(a, b) for a, b in pairs)
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _json(response: str, value=None, keys: list[str] = ()) -> bool:
    try:
        parsed = json.loads(strip_fence(response))
    except ValueError:
        return False
    if value is not None:
        return _same_json(parsed, value)
    return isinstance(parsed, dict) and set(parsed) == set(keys)


# The child sets its own limits, where the system has them, and speaks to the parent only through a
# word that the code under test cannot know; what that code prints goes nowhere.
_HARNESS = """
import json, os, sys
for name, limit in (("CPU", 5), ("AS", 1 << 30), ("FSIZE", 0)):
    try:
        import resource
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
    except (ImportError, OSError, ValueError):
        pass
code, examples, word = json.loads(sys.stdin.read())
report, sys.stdout = sys.stdout, open(os.devnull, "w")
space = {}
exec(code, space)
for expression, expected in examples:
    got = eval(expression, space)
    if json.loads(json.dumps(got)) != expected:
        sys.exit(f"{expression} gave {got!r}, expected {expected!r}")
print(word, file=report, flush=True)
"""


def _python(response: str, examples: list) -> bool:
    """Run the code and its `[expression, result]` pairs in a process of its own, with limits."""
    word = secrets.token_hex()
    work = json.dumps([strip_fence(response), examples, word])
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _HARNESS],
                input=work,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=PYTHON_SECONDS,
                cwd=folder,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.split() == [word]


def list_items(response: str) -> list[str]:
    """Split a response into its items: one a line if it has lines, else at commas and 'and'."""
    text = response.strip().rstrip(".")
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        lines = re.split(r"\s*[,;]\s*(?:and\s+|or\s+)?|\s+and\s+", text.split(":")[-1])
    return [re.sub(r"^\s*(?:[-*\u2022]|\d+[.)])\s+", "", line).strip() for line in lines]


def keeps_constraints(
    response: str,
    items: int | None = None,
    among: list[str] | None = None,
    layout: str | None = None,
    words: int | None = None,
    max_words: int | None = None,
    min_words: int | None = None,
    sentences: int | None = None,
    lines: int | None = None,
    case: str | None = None,
    must: list[str | list[str]] = (),
    must_not: list[str] = (),
    starts_with: str | None = None,
    ends_with: str | None = None,
) -> bool:
    """Tell whether a response keeps every constraint that is given.

    Args:
        response: the text of the response.
        items: how many items, by `list_items`.
        among: what every item has to be one of, in the singular or plural; none comes twice.
        layout: "commas" (on one line), "lines" (one item a line), "dashes" or "numbers" (lists).
        words, max_words, min_words: how many words, split at white space.
        sentences: how many sentences, counted by their final stops; the last may lack its own.
        lines: how many lines that are not empty.
        case: "upper" or "lower", of every letter.
        must, must_not: phrases to hold, and not to hold, as whole words.
        starts_with, ends_with: how the response begins and ends, whatever its case.
    """
    text = response.strip()
    count = len(text.split())
    stops = len(re.findall(r"[.!?]+[\"')\u201d\u2019]*(?=\s)|.$", text))
    ends = [text.casefold().rstrip(marks) for marks in ("\"'\u2019\u201d", " .!?\"'\u2019\u201d")]
    rules = [
        items is None or len(list_items(text)) == items,
        among is None or _distinct_members(list_items(text), among),
        layout is None or bool(re.fullmatch(_LAYOUTS[layout], text)),
        words is None or count == words,
        max_words is None or count <= max_words,
        min_words is None or count >= min_words,
        sentences is None or stops == sentences,
        lines is None or len([line for line in text.splitlines() if line.strip()]) == lines,
        case is None or text == (text.upper() if case == "upper" else text.lower()),
        _holds_every(text, must),
        not (must_not and holds(text, must_not)),
        starts_with is None or text.casefold().startswith(starts_with.casefold()),
        ends_with is None or any(end.endswith(ends_with.casefold()) for end in ends),
    ]
    return bool(text) and all(rules)


def _distinct_members(items: list[str], among: list[str]) -> bool:
    """Tell whether each item is in `among`, whatever its article or plural s, and none twice."""
    bare = [re.sub(r"^(?:an?|the) ", "", normalize(item)) for item in items]
    names = [normalize(name) for name in among]
    found = [
        next((name for name in names if item in (name, name + "s", name + "es")), None)
        for item in bare
    ]
    return None not in found and len(set(found)) == len(found)


CHECKS = {
    "equals": _equals,
    "contains": _contains,
    "choice": _choice,
    "number": _number,
    "list": _list,
    "pattern": _pattern,
    "json": _json,
    "python": _python,
    "constraints": keeps_constraints,
    "judged": keeps_constraints,
}


def check_response(check: dict, response: str) -> bool:
    """Tell whether `response` passes `check`, a dictionary with a `type` and its settings.

    Raises:
        ValueError: if the type is unknown or a setting does not belong to it.

    >>> check_response({"type": "number", "value": 12, "units": ["km"]}, "That is 12 km.")
    True
    """
    settings = dict(check)
    kind = settings.pop("type", None)
    if kind not in CHECKS:
        raise ValueError(f"unknown check type {kind!r}; known types: {', '.join(CHECKS)}")
    try:
        return CHECKS[kind](response, **settings)
    except TypeError as error:
        raise ValueError(f"check {check} has a wrong setting: {error}") from error
