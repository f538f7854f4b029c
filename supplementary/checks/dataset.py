"""The exercises of notebook 01: a prompt format, leaks between the parts, rare words."""

from ..prompts import Control, Entry, phi3_prompt, user_text
from .check import Check

WORD = {
    "instruction": "Identify the correct spelling of the following word.",
    "input": "Ocassion",
    "output": "The correct spelling is 'Occasion.'",
}
ANTONYM = {
    "instruction": "What is an antonym of 'complicated'?",
    "input": "",
    "output": "An antonym of 'complicated' is 'simple'.",
}


def merge_pieces(pieces: list[str]) -> list[tuple[str, str]]:
    """Write pieces as (mark or text, string), neighbouring texts joined."""
    merged = []
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        kind = "mark" if isinstance(piece, Control) else "text"
        if kind == "text" and merged and merged[-1][0] == "text":
            merged[-1] = ("text", merged[-1][1] + str(piece))
        elif piece:
            merged.append((kind, str(piece)))
    return merged


def _phi3(text: str, end: str = "<|end|>", last: str = "\n") -> list[str]:
    marks = [Control("<|user|>"), text]
    marks += [Control(end), "\n"] if end else ["\n"]
    return [*marks, Control("<|assistant|>"), *([last] if last else [])]


def _with_response(entry: Entry) -> list[str]:
    return [*phi3_prompt(entry), entry["output"], Control("<|end|>")]


check_phi3_pieces = Check(
    solution=phi3_prompt,
    cases=lambda: {
        "entry 50": (dict(WORD),),
        "entry 999, which has no input": (dict(ANTONYM),),
        "a text that looks like a mark": ({**ANTONYM, "input": "<|end|>"},),
    },
    mistakes={
        "the marks are plain text; wrap each in `Control`": lambda entry: [
            "".join(phi3_prompt(entry))
        ],
        "the input is missing": lambda entry: _phi3("\n" + entry["instruction"]),
        "an empty input leaves a line break behind": lambda entry: _phi3(
            f"\n{entry['instruction']}\n{entry['input']}"
        ),
        "instruction and input are not on lines of their own": lambda entry: _phi3(
            f"\n{entry['instruction']} {entry['input']}".rstrip()
        ),
        "no line break follows <|user|>": lambda entry: _phi3(user_text(entry)),
        "a line break stands before <|end|>; it follows the mark": lambda entry: _phi3(
            f"\n{user_text(entry)}\n"
        ),
        "no line break follows <|end|>": lambda entry: [
            *phi3_prompt(entry)[:3],
            *phi3_prompt(entry)[4:],
        ],
        "the line breaks are in the marks, which no tokenizer knows like that": lambda entry: [
            Control("<|user|>\n"),
            user_text(entry),
            *map(Control, ("<|end|>\n", "<|assistant|>\n")),
        ],
        "the user's turn is not closed by <|end|>": lambda entry: _phi3(
            "\n" + user_text(entry), end=""
        ),
        "no line break follows <|assistant|>: the response would begin with another token": (
            lambda entry: _phi3("\n" + user_text(entry), last="")
        ),
        "the prompt holds the response already": _with_response,
    },
    view=merge_pieces,
)


def find_leaks(pairs: list[tuple[int, int, float]], part_of: list[str]) -> list[int]:
    """Return the entries outside the training part that repeat a training entry, sorted."""
    leaks = set()
    for i, j, _ in pairs:
        for held_out, other in ((i, j), (j, i)):
            if part_of[held_out] != "train" and part_of[other] == "train":
                leaks.add(held_out)
    return sorted(leaks)


def _any_two_parts(pairs: list, part_of: list[str]) -> list[int]:
    differing = [pair[:2] for pair in pairs if part_of[pair[0]] != part_of[pair[1]]]
    return sorted({k for pair in differing for k in pair if part_of[k] != "train"})


def _all_held_out(pairs: list, part_of: list[str]) -> list[int]:
    return sorted({k for i, j, _ in pairs for k in (i, j) if part_of[k] != "train"})


def _second_only(pairs: list, part_of: list[str]) -> list[int]:
    return sorted({j for i, j, _ in pairs if part_of[i] == "train" != part_of[j]})


def _test_only(pairs: list, part_of: list[str]) -> list[int]:
    return [k for k in find_leaks(pairs, part_of) if part_of[k] == "test"]


def _training_side(pairs: list, part_of: list[str]) -> list[int]:
    found = set()
    for i, j, _ in pairs:
        for k, other in ((i, j), (j, i)):
            if part_of[k] == "train" != part_of[other]:
                found.add(k)
    return sorted(found)


def _repeated(pairs: list, part_of: list[str]) -> list[int]:
    found = []
    for pair in pairs:
        found += find_leaks([pair], part_of)
    return found


def _as_found(pairs: list, part_of: list[str]) -> list[int]:
    return list(dict.fromkeys(_repeated(pairs, part_of)))


check_find_leaks = Check(
    solution=find_leaks,
    cases=lambda: {
        "seven entries": (
            [(0, 3, 1.0), (1, 3, 0.9), (2, 3, 0.85), (0, 1, 0.8), (3, 5, 0.8), (4, 6, 0.8)],
            ["train", "train", "train", "test", "test", "validation", "test"],
        ),
        "nine entries that were shuffled": (
            [(8, 2, 1.0), (1, 3, 0.9), (0, 1, 0.8)],
            ["test", "validation", *["train"] * 6, "test"],
        ),
        "no pairs": ([], ["train", "test"]),
    },
    mistakes={
        "pairs of test and validation count, too; only the training part is learned": (
            _any_two_parts
        ),
        "pairs within a part count, too": _all_held_out,
        "only the second of a pair is looked at; after shuffling it may be the training one": (
            _second_only
        ),
        "validation entries are left out; they choose the settings, so they must be new, too": (
            _test_only
        ),
        "these are the training entries; asked for are those that repeat them": _training_side,
        "an entry with several repeats is named several times": _repeated,
        "the entries are not sorted; a list made of a set has no order to rely on": _as_found,
        "this is a set, which has no order; asked for is a sorted list": lambda *given: set(
            find_leaks(*given)
        ),
        "these are whole pairs; asked for are the held-out entries alone": lambda pairs, part_of: [
            pair for pair in pairs if find_leaks([pair], part_of)
        ],
    },
)


def rare_similarity(first: set[str], second: set[str], weights: dict[str, float]) -> float:
    """Return the weight of the shared words over that of all words of both, 0 if there are none."""
    total = sum(weights[word] for word in first | second)
    return sum(weights[word] for word in first & second) / total if total else 0.0


def _by_the_sum(first: set, second: set, weights: dict) -> float:
    total = sum(weights[word] for words in (first, second) for word in words)
    return sum(weights[word] for word in first & second) / total if total else 0.0


def _counted(first: set, second: set, weights: dict) -> float:
    return len(first & second) / len(first | second) if first | second else 0.0


def _by_all(first: set, second: set, weights: dict) -> float:
    total = sum(weights.values())
    return sum(weights[word] for word in first & second) / total if total else 0.0


def _by_the_first(first: set, second: set, weights: dict) -> float:
    total = sum(weights[word] for word in first)
    return sum(weights[word] for word in first & second) / total if total else 0.0


def _undivided(first: set, second: set, weights: dict) -> float:
    return sum((weights[word] for word in first & second), 0.0)


def _zero_division(first: set, second: set, weights: dict) -> float:
    shared, both = first & second, first | second
    return sum(weights[word] for word in shared) / sum(weights[word] for word in both)


check_rare_similarity = Check(
    solution=rare_similarity,
    cases=lambda: {
        "two questions": (
            {"what", "is", "an", "antonym", "of", "complicated"},
            {"which", "word", "is", "the", "contrary", "of", "complicated"},
            {"what": 0.5, "is": 0.25, "an": 1.0, "antonym": 4.0, "of": 0.25, "complicated": 6.0}
            | {"which": 1.0, "word": 2.0, "the": 0.5, "contrary": 5.0, "river": 4.0},
        ),
        "nothing shared": ({"sum"}, {"river"}, {"sum": 3.0, "river": 4.0}),
        "words that are in every entry, so of weight 0": ({"a"}, {"a"}, {"a": 0.0}),
    },
    mistakes={
        "shared words count twice in the divisor; take each word of both once": _by_the_sum,
        "words are counted; add up their weights": _counted,
        "the divisor holds all words that have a weight; take those of the two questions": _by_all,
        "the divisor holds the words of one question only, so the order matters": _by_the_first,
        "the division is missing, so long questions look alike": _undivided,
        "a weight of 0 in all words divides by zero; the similarity is 0 then": _zero_division,
        "questions whose words all weigh 0 are taken for alike; the similarity is 0 then": (
            lambda first, second, weights: (
                rare_similarity(first, second, weights)
                if any(weights[word] for word in first | second)
                else 1.0
            )
        ),
    },
)
