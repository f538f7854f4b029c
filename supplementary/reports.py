"""The table of scores for a file of responses, before and after finetuning."""

from collections import Counter
from pathlib import Path

from .data import ANSWER_KEY, DATA, KEYS
from .evaluation import exact_matches, key_matches, rouge_l, summarize_scores, token_f1
from .files import read_json
from .prompts import Entry

RESPONSES = ("response_before", "response_after")


def load_responses(path: Path | str) -> list[dict]:
    """Read a JSON list of entries with `response_before` and `response_after`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a list, naming the first row that is not.
    """
    rows = read_json(Path(path))
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no list of responses; `finetune` writes responses.json")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {number} is of type {type(row).__name__}, no object")
        for key in (*KEYS, *RESPONSES):
            if not isinstance(row.get(key), str):
                raise ValueError(
                    f"{path}: row {number} has no text as {key!r} (keys: {', '.join(row)}); "
                    f"every row needs {', '.join((*KEYS, *RESPONSES))}"
                )
    return rows


def find_key_rows(entries: list[Entry]) -> list[dict | None]:
    """Return each entry's row of the answer key, or None if the workshop has no such entry.

    Entries are found by their instruction and input.
    """
    pairs = zip(read_json(DATA), read_json(ANSWER_KEY), strict=True)
    known = {(entry["instruction"], entry["input"]): row for entry, row in pairs}
    return [known.get((entry["instruction"], entry["input"])) for entry in entries]


def score_responses(rows: list[dict]) -> dict:
    """Score responses by all that can be computed without judgement.

    Args:
        rows: entries with `response_before` and `response_after`.

    Returns:
        `scores`: for each score what `summarize_scores` returns; `kinds`: for each kind of task the
        numbers of entries and of right responses; `note`: why the accuracy by the answer key is
        missing, or None.
    """
    references = [row["output"] for row in rows]
    texts = [[row[name] for row in rows] for name in RESPONSES]
    keys = find_key_rows(rows)
    unknown = keys.count(None)
    if unknown == 0:
        checks = [row["check"] for row in keys]
        right = [key_matches(responses, checks) for responses in texts]
        scores = {"answer key": summarize_scores(*right)}
        kinds, note = _count_by_kind([row["kind"] for row in keys], *right), None
    else:
        scores, kinds = {}, {}
        note = (
            f"no accuracy: the answer key knows {len(rows) - unknown} of these {len(rows)} entries;"
            " it belongs to the workshop's own data, so here are only the overlap scores"
        )
    exact = [exact_matches(responses, references) for responses in texts]
    scores["exact match"] = summarize_scores(*exact)
    for name, score in (("token F1", token_f1), ("ROUGE-L", rouge_l)):
        values = [[score(*pair) for pair in zip(t, references, strict=True)] for t in texts]
        scores[name] = summarize_scores(*values)
    return {"scores": scores, "kinds": kinds, "note": note}


def _count_by_kind(kinds: list[str], before: list[bool], after: list[bool]) -> dict[str, dict]:
    entries = Counter(kinds)
    right = [
        Counter(kind for kind, ok in zip(kinds, row, strict=True) if ok) for row in (before, after)
    ]
    return {
        kind: {"entries": entries[kind], "before": right[0][kind], "after": right[1][kind]}
        for kind in sorted(entries)
    }


def format_report(report: dict) -> str:
    """Write what `score_responses` returned as a table for a terminal."""
    lines = [f"{'':14}{'before':>24}{'after':>24}   difference (95 % intervals)"]
    for name, row in report["scores"].items():
        cells = [_with_interval(row, when) for when in ("before", "after")]
        low, high = row["difference_interval"]
        change = f"{row['difference']:+.1%} ({low:+.1%} to {high:+.1%})"
        p_value = f", McNemar p = {row['p_value']:.2g}" if "p_value" in row else ""
        lines.append(f"{name:14}{cells[0]:>24}{cells[1]:>24}   {change}{p_value}")
    if report["note"]:
        lines.append(report["note"])
    return "\n".join(lines)


def _with_interval(row: dict, when: str) -> str:
    low, high = row[f"{when}_interval"]
    return f"{row[when]:.1%} ({low:.1%} to {high:.1%})"
