"""Print the numbers of `data/README.md`: `python -m tests.datasheet`."""

import re
from collections import Counter

from supplementary.checkpoints import load_pretrained
from supplementary.data import ANSWER_KEY, DATA, encode_example, load_entries, split_entries
from supplementary.files import read_json

LANGUAGES = "French|German|Italian|Latin|Portuguese|Spanish"


def main() -> None:
    """Print counts of entries, kinds, check types and lengths."""
    entries, key = load_entries(DATA), read_json(ANSWER_KEY)
    _, tokenizer = load_pretrained()
    examples = [encode_example(entry, tokenizer) for entry in entries]
    responses = sorted(len(e.input_ids) - e.prompt_length - 1 for e in examples)
    beginnings = {tuple(e["instruction"].casefold().split()[:3]) for e in entries}
    parts = {name: len(part) for name, part in split_entries(entries)._asdict().items()}
    print("entries:", len(entries), parts)
    print(f"with an input: {sum(bool(e['input']) for e in entries) / len(entries):.0%}")
    print("different first three words:", len(beginnings))
    mean = sum(len(e.input_ids) for e in examples) / len(examples)
    print(f"tokens of an example: {mean:.1f} on average")
    translations = [e for e, row in zip(entries, key, strict=True) if "translate" in row["kind"]]
    named = Counter(name for e in translations for name in set(re.findall(LANGUAGES, str(e))))
    print("languages named in", len(translations), "translations:", dict(named.most_common()))
    print("tokens of a response: median", responses[len(responses) // 2], "longest", responses[-1])
    print("check types:", dict(Counter(row["check"]["type"] for row in key).most_common()))
    kinds = Counter(row["kind"] for row in key)
    print("kinds:", len(kinds))
    for count in sorted(set(kinds.values()), reverse=True):
        names = sorted(kind for kind in kinds if kinds[kind] == count)
        print(f"{count} entries each:", ", ".join(names))
    questions = read_json(DATA.with_name("multiple-choice.json"))
    subjects = Counter(question["subject"] for question in questions)
    print("multiple-choice questions:", len(questions), dict(sorted(subjects.items())))


if __name__ == "__main__":
    main()
