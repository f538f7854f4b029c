"""The data: entries from a JSON file, their checks, the split, and examples of token ids."""

import re
from collections import defaultdict
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from .files import read_json
from .prompts import Control, Entry, prompt_pieces
from .tokenizer import Tokenizer

IGNORE_INDEX = -100  # the label that the loss skips; PyTorch's cross_entropy has the same default
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "instruction-data.json"
ANSWER_KEY = ROOT / "data" / "answer-key.json"
KEYS = ("instruction", "input", "output")


def load_entries(path: str | Path) -> list[Entry]:
    """Read a JSON file that holds a list of entries, and check every entry.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not valid JSON or not a list of whole entries; the message names the
            first faulty entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}; give the path of a JSON file of entries")
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(
            f"{path} holds a {type(entries).__name__}, not a list; it has to be a JSON list of "
            f"objects with the keys {', '.join(KEYS)}"
        )
    if not entries:
        raise ValueError(f"{path} is an empty list; it needs at least one entry")
    for index, entry in enumerate(entries):
        if problem := find_problem(entry):
            raise ValueError(f"{path}: entry {index} {problem}")
    return entries


def find_problem(entry: object) -> str | None:
    """Say what is wrong with an entry, and what to do; None if nothing is.

    >>> find_problem({"instruction": "Say hi.", "input": ""})
    "has no 'output' (keys: instruction, input); every entry needs instruction, input and output"
    """
    if not isinstance(entry, dict):
        return f"is of type {type(entry).__name__}, not an object with the keys {', '.join(KEYS)}"
    for key in KEYS:
        if key not in entry:
            return (
                f"has no {key!r} (keys: {', '.join(entry)}); "
                "every entry needs instruction, input and output"
            )
        if not isinstance(entry[key], str):
            return f"has a value of type {type(entry[key]).__name__} as {key!r}; write a string"
        if key != "input" and not entry[key].strip():
            return f"has an empty {key!r}; fill it in or remove the entry"
        if entry[key] != entry[key].encode("utf-8", "ignore").decode("utf-8"):
            return f"has half a character (a lone surrogate) in {key!r}; type it anew"
    return None


class Splits(NamedTuple):
    """The three parts of a dataset, by name so that they cannot be swapped."""

    train: list[Entry]
    validation: list[Entry]
    test: list[Entry]


def split_entries(entries: list[Entry]) -> Splits:
    """Split by position: the first 85 % train, the next 10 % test, the rest validation.

    Raises:
        ValueError: if a part would be empty.
    """
    train_end = int(len(entries) * 0.85)
    test_end = train_end + int(len(entries) * 0.10)
    parts = Splits(entries[:train_end], entries[test_end:], entries[train_end:test_end])
    if not all(parts):
        raise ValueError(f"{len(entries)} entries are too few to split; give at least 10")
    return parts


def question(entry: Entry) -> str:
    """Return the words of instruction and input, lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", f"{entry['instruction']} {entry['input']}".casefold()))


def find_near_duplicates(
    entries: list[Entry], threshold: float = 0.8
) -> list[tuple[int, int, float]]:
    """Find pairs of entries whose instruction and input are almost the same.

    Pairs that share at least half of their three-letter pieces are compared letter by letter.

    Args:
        entries: the entries.
        threshold: smallest similarity to report, in [0, 1]; 1 means the same words.

    Returns:
        (index, larger index, similarity) for each pair, the most similar first.
    """
    texts = [question(entry) for entry in entries]
    pieces = [{text[i : i + 3] for i in range(max(1, len(text) - 2))} for text in texts]
    owners = defaultdict(list)
    found = []
    for i, own in enumerate(pieces):
        shared = defaultdict(int)
        for piece in own:
            for j in owners[piece]:
                shared[j] += 1
            owners[piece].append(i)
        for j, count in shared.items():
            if count * 2 >= min(len(own), len(pieces[j])):
                ratio = SequenceMatcher(None, texts[j], texts[i], autojunk=False).ratio()
                if ratio >= threshold:
                    found.append((j, i, ratio))
    return sorted(found, key=lambda pair: -pair[2])


@dataclass(frozen=True)
class Example:
    """One entry as token ids.

    Args:
        input_ids: prompt, response and one end-of-text token.
        prompt_length: tokens of the prompt.
    """

    input_ids: list[int]
    prompt_length: int

    def labels(self, mask_prompt: bool = True) -> list[int]:
        """Return the labels: `input_ids`, unshifted, with the prompt at `IGNORE_INDEX`."""
        hidden = self.prompt_length if mask_prompt else 0
        return [IGNORE_INDEX] * hidden + self.input_ids[hidden:]


def encode_prompt(entry: Entry, tokenizer: Tokenizer, style: str = "alpaca") -> list[int]:
    """Encode the prompt of an entry.

    Only the format's own marks become special tokens, and only if the tokenizer has them.
    """
    ids, text = [], ""
    for piece in prompt_pieces(entry, style):
        special = tokenizer.special_id(piece) if isinstance(piece, Control) else None
        if special is None:
            text += piece
        else:
            ids += [*tokenizer.encode(text), special]
            text = ""
    return ids + tokenizer.encode(text)


def encode_example(
    entry: Entry, tokenizer: Tokenizer, style: str = "alpaca", max_length: int | None = None
) -> Example:
    """Encode an entry; a response that is too long is cut, its end-of-text kept.

    Args:
        entry: the entry.
        tokenizer: the model's tokenizer.
        style: the prompt format.
        max_length: most tokens the example may have; unlimited if None.

    Raises:
        ValueError: if the prompt leaves no room for a response of one token and its end.
    """
    prompt = encode_prompt(entry, tokenizer, style)
    response = tokenizer.encode(entry["output"])
    if max_length is not None:
        room = max_length - len(prompt) - 1
        if room < 1:
            raise ValueError(
                f"has a prompt of {len(prompt)} tokens, which leaves no room for a response within "
                f"{max_length}; shorten it or allow a larger length"
            )
        response = response[:room]
    return Example([*prompt, *response, tokenizer.eos_token_id], len(prompt))


def encode_entries(
    entries: list[Entry], tokenizer: Tokenizer, style: str = "alpaca", max_length: int | None = None
) -> tuple[list[Example], dict[int, str]]:
    """Encode all entries that fit.

    Returns:
        The examples, and for each entry that was left out its index and the reason.
    """
    examples, left_out = [], {}
    for index, entry in enumerate(entries):
        try:
            examples.append(encode_example(entry, tokenizer, style, max_length))
        except ValueError as error:
            if max_length is None or "has a prompt of" not in str(error):
                raise
            left_out[index] = str(error)
    return examples, left_out
