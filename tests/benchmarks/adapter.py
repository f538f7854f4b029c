"""Make the adapter in `data/` and the stored test responses from a finished LoRA run.

    python -m supplementary finetune --method lora --out runs/lora
    python -m tests.benchmarks.adapter runs/lora

The matrices are stored in bfloat16; responses and metrics are those of the stored adapter.
"""

import sys
from pathlib import Path

import torch

from supplementary.adapters import ADAPTER, load_adapter, load_finetuned, save_adapter
from supplementary.checkpoints import load_pretrained
from supplementary.data import DATA, ROOT, encode_entries, load_entries, split_entries
from supplementary.files import read_json, sha256, write_json
from supplementary.generation import respond
from supplementary.reports import format_report, load_responses, score_responses
from supplementary.training import mean_loss

RESPONSES = ROOT / "data" / "test-responses.json"
KEPT = (
    "model",
    "method",
    "lora",
    "prompt_style",
    "settings",
    "entries",
    "parameters",
    "seconds",
    "hardware",
    "versions",
    "data_sha256",
)


def main(run: Path) -> None:
    """Store the adapter of `run`, answer the test entries with it, and write its metrics."""
    made = read_json(run / "metrics.json")
    if made["data_sha256"] != sha256(DATA):
        raise SystemExit(f"{run} was trained on other data than {DATA}; run it again")
    model, _ = load_pretrained()
    load_adapter(model, run / "adapter")
    save_adapter(model, ADAPTER, dtype=torch.bfloat16)
    model, tokenizer = load_finetuned(run=None)
    splits = split_entries(load_entries(DATA))
    rows = load_responses(run / "responses.json")
    after = respond(model, tokenizer, splits.test, progress=True)
    rows = [row | {"response_after": text} for row, text in zip(rows, after, strict=True)]
    write_json(RESPONSES, rows)
    report = score_responses(rows)
    losses = {
        name: mean_loss(model, encode_entries(getattr(splits, name), tokenizer)[0])
        for name in ("validation", "test")
    }
    metrics = {
        "command": "python -m supplementary finetune --method lora",
        "data": "data/instruction-data.json",
        **{key: made[key] for key in KEPT},
        "loss": {"before": made["loss"]["before"], "after": losses},
        **report,
    }
    write_json(ADAPTER / "metrics.json", metrics)
    print(format_report(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
