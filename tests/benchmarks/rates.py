"""Choose learning rates on the validation data: full finetuning and LoRA at several ranks.

    python -m tests.benchmarks.rates notebook   # what notebook 05 runs
    python -m tests.benchmarks.rates default    # LoRA with the settings of the command line

Each finished run is printed and added to `runs/rates.json`; what is there already is not run again.
"""

import sys
from dataclasses import replace
from pathlib import Path

from supplementary.checkpoints import load_pretrained
from supplementary.data import DATA, encode_entries, load_entries, split_entries
from supplementary.files import read_json, write_json
from supplementary.lora import add_lora
from supplementary.training import TrainSettings, mean_loss, train

from .rounds import format_table

RESULTS = Path("runs/rates.json")
FULL, LORA = (3e-5, 1e-4, 3e-4), (3e-4, 1e-3, 3e-3)
PLANS = {  # rank (0: full), training entries, epochs, rates
    "notebook": [(0, 320, 1, FULL), (4, 320, 1, LORA), (16, 320, 1, LORA)],
    "default": [(16, 935, 2, LORA)],
}


def measure(rank: int, entries: int, epochs: int, rate: float) -> float:
    """Finetune from the pretrained weights and return the validation loss at the end."""
    model, tokenizer = load_pretrained()
    splits = split_entries(load_entries(DATA))
    if rank:
        add_lora(model, rank)
    settings = replace(TrainSettings(), epochs=epochs, learning_rate=rate)
    examples, _ = encode_entries(splits.train[:entries], tokenizer)
    train(model, examples, [], settings, on_step=lambda row: None)
    return mean_loss(model, encode_entries(splits.validation, tokenizer)[0])


def main(plan: str) -> None:
    """Measure all rates of a plan and print the table of all that was ever measured."""
    results = read_json(RESULTS) if RESULTS.exists() else []
    done = {tuple(row[:4]) for row in results}
    for rank, entries, epochs, rates in PLANS[plan]:
        for rate in rates:
            if (rank, entries, epochs, rate) not in done:
                loss = measure(rank, entries, epochs, rate)
                results.append([rank, entries, epochs, rate, loss])
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                write_json(RESULTS, results)
                print(results[-1], flush=True)
    rows = [
        [f"LoRA, rank {rank}" if rank else "full", str(n), str(e), f"{rate:g}", f"{loss:.4f}"]
        for rank, n, e, rate, loss in sorted(results)
    ]
    print(format_table(["method", "entries", "epochs", "rate", "validation loss"], rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
