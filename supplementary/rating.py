"""Blind rating by people: two responses in random order, a click, a running win rate."""

import hashlib
import html
import json
import random
from pathlib import Path

import ipywidgets as widgets

from .evaluation import wilson_interval
from .files import read_json, write_json
from .prompts import user_text

CHOICES = ("left", "same", "right")


class BlindRating:
    """A widget that shows the responses before and after finetuning without saying which is which.

    Every click is on disk before the next pair is shown; made anew with the same file, the widget
    goes on where it stopped.

    Args:
        rows: entries with `response_before` and `response_after`.
        path: JSON file of the ratings.
        seed: decides the order of the pairs, and which response stands left.

    Raises:
        ValueError: if the file holds no ratings, or those of other rows or another seed.
    """

    def __init__(self, rows: list[dict], path: Path | str, seed: int = 0) -> None:
        self.rows, self.path = rows, Path(path)
        self.mark = hashlib.sha256(json.dumps([seed, rows]).encode()).hexdigest()[:16]
        generator = random.Random(seed)
        self.order = generator.sample(range(len(rows)), len(rows))
        self.after_is_left = [generator.random() < 0.5 for _ in rows]
        self.ratings: list[str] = []  # "before", "after" or "same", in the order of `order`
        if self.path.exists():
            self.ratings = self._read()
        self.text, self.tally = widgets.HTML(), widgets.HTML()
        self.buttons = [widgets.Button(description=choice) for choice in CHOICES]
        for button in self.buttons:
            button.on_click(lambda button: self.choose(button.description))
        self.widget = widgets.VBox([self.text, widgets.HBox(self.buttons), self.tally])
        self._show()

    def choose(self, choice: str) -> None:
        """Rate the pair that is shown, as a click does.

        Args:
            choice: "left", "same" or "right".

        Raises:
            ValueError: if the choice is another, or all pairs are rated.
        """
        if choice not in CHOICES or len(self.ratings) == len(self.order):
            raise ValueError(f"no choice {choice!r} now; choices: {', '.join(CHOICES)}")
        left, right = self._names()
        rating = {"left": left, "same": "same", "right": right}[choice]
        kept = [*self.ratings, rating]
        write_json(self.path, {"pairs": self.mark, "ratings": kept})
        self.ratings = kept
        self._show()

    def win_rate(self) -> tuple[float, tuple[float, float]] | None:
        """Return how often "after" won, of the pairs that were not the same, with its interval."""
        won, lost = self.ratings.count("after"), self.ratings.count("before")
        return (won / (won + lost), wilson_interval(won, won + lost)) if won + lost else None

    def _read(self) -> list[str]:
        kept = read_json(self.path)
        if not isinstance(kept, dict) or set(kept) != {"pairs", "ratings"}:
            raise ValueError(f"{self.path} holds no ratings; give another file")
        if kept["pairs"] != self.mark:
            raise ValueError(f"{self.path} holds ratings of other pairs; give another file")
        return kept["ratings"]

    def _names(self) -> tuple[str, str]:
        row = self.order[len(self.ratings)]
        return ("after", "before") if self.after_is_left[row] else ("before", "after")

    def _show(self) -> None:
        rated, count = len(self.ratings), len(self.order)
        if rated == count:
            self.text.value = "<p>All pairs are rated. Thank you.</p>"
            for button in self.buttons:
                button.disabled = True
        else:
            row = self.rows[self.order[rated]]
            left, right = (row[f"response_{name}"] for name in self._names())
            cells = "".join(f"<td style='{_CELL}'>{show_text(text)}</td>" for text in (left, right))
            self.text.value = (
                f"<p><b>{show_text(user_text(row))}</b></p>"
                f"<p>Reference: {show_text(row['output'])}</p>"
                f"<table><tr><th>left</th><th>right</th></tr><tr>{cells}</tr></table>"
            )
        rate = self.win_rate()
        shown = "no winner yet"
        if rate:
            low, high = rate[1]
            shown = f"finetuned model wins {rate[0]:.0%} (95 % interval {low:.0%} to {high:.0%})"
        self.tally.value = f"<p>{rated} of {count} rated; {shown}</p>"


_CELL = "vertical-align: top; width: 28em; padding: 0.5em; text-align: left"


def show_text(text: str) -> str:
    """Return generated text as HTML that shows it as text; it may itself hold HTML."""
    return html.escape(text).replace("\n", "<br>")
