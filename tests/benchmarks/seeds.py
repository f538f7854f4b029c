"""Losses and scores of the default run for several seeds: the textbook loop beside ours.

    python -m tests.benchmarks.seeds textbook 0 1 2
    python -m tests.benchmarks.seeds ours 0 1 2

Each finished seed is printed and added to `runs/seeds.json`.
"""

import sys
import time
from pathlib import Path

from supplementary.checkpoints import load_pretrained
from supplementary.data import DATA, encode_entries, load_entries, split_entries
from supplementary.files import read_json, write_json
from supplementary.generation import respond
from supplementary.reports import score_responses
from supplementary.training import TrainSettings, mean_loss, train

from .textbook import train_textbook

RESULTS = Path("runs/seeds.json")


def measure(loop: str, seed: int) -> dict:
    """Finetune with default settings, and return the losses and scores at the end."""
    settings = TrainSettings(seed=seed)
    model, tokenizer = load_pretrained()
    splits = split_entries(load_entries(DATA))
    parts = {name: encode_entries(part, tokenizer)[0] for name, part in splits._asdict().items()}
    start = time.perf_counter()
    if loop == "textbook":
        train_textbook(model, parts["train"], settings, tokenizer.eos_token_id)
    else:
        train(model, parts["train"], [], settings, on_step=lambda row: None)
    seconds = time.perf_counter() - start
    answers = respond(model, tokenizer, splits.test)
    rows = [
        {**entry, "response_before": "", "response_after": answer}
        for entry, answer in zip(splits.test, answers, strict=True)
    ]
    scores = score_responses(rows)["scores"]
    return {
        "loop": loop,
        "seed": seed,
        "validation_loss": mean_loss(model, parts["validation"]),
        "test_loss": mean_loss(model, parts["test"]),
        **{name: row["after"] for name, row in scores.items()},
        "seconds": round(seconds),
    }


def main(loop: str, *seeds: str) -> None:
    """Measure every seed and keep each result as soon as it is there."""
    for seed in seeds:
        results = read_json(RESULTS) if RESULTS.exists() else []
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        write_json(RESULTS, [*results, measure(loop, int(seed))])


if __name__ == "__main__":
    main(*sys.argv[1:])
