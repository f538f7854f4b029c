"""Training speed and memory: the workshop's beside the textbook loop, TRL, Trainer, and the limit.

    pip install -r requirements.txt -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.training

In each round every peer learns the same examples of the training data, drawn anew for the round,
in batches of eight, in a process of its own. It takes some steps to warm up, the first of which
gives the loss to compare; then one pass is timed, from the start of training to the end of the last
step. Times are scaled by tokens to all training examples.
`--growth` measures instead how time and memory of ours grow with ten times the data.
"""

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from supplementary.checkpoints import load_pretrained, save_pretrained
from supplementary.data import DATA, Example, encode_entries, load_entries, split_entries
from supplementary.training import TrainSettings

from .peers import PEERS, Peer, measure_peer
from .rounds import (
    PRECISIONS,
    choose_peers,
    describe_machine,
    format_table,
    measure,
    median_ratio,
    native_precisions,
    run_rounds,
)

MODULE = "tests.benchmarks.training"
PACKAGES = ["torch", "transformers", "trl", "peft", "accelerate"]


def load_examples(
    folder: Path, count: int, draw: int = 0, repeat: int = 1
) -> tuple[list[Example], list[Example]]:
    """Return the first batch of the training data, and examples drawn from all of it.

    Args:
        folder: the pretrained model.
        count: how many to draw.
        draw: the seed.
        repeat: how often each of those drawn is to be there.
    """
    _, tokenizer = load_pretrained(folder)
    entries = split_entries(load_entries(DATA)).train
    examples, _ = encode_entries(entries, tokenizer)
    chance = random.Random(draw)
    drawn = chance.sample(examples, min(count, len(examples))) * repeat
    chance.shuffle(drawn)
    return examples[: TrainSettings.batch_size], drawn


def summarize(results: dict[str, list[dict]], epoch_tokens: int) -> str:
    """Return the table of all peers that were measured."""

    def against(name: str, other: Peer) -> str:
        if not results.get(other.name):
            return ""
        return f"{median_ratio(results[name], results[other.name]):.2f}"

    best, rows = native_precisions()[0], []
    for name, measured in results.items():
        peer, limit = PEERS[name], ""
        same = Peer("ours", peer.method, peer.precision)
        if below := results.get(replace(same, loop="limit").name):
            limit = f"{100 * median_ratio(below, measured):.0f} %"
        seconds = [row["seconds"] / row["tokens"] for row in measured]
        peak = max(row.get("peak", 0) for row in measured) / 2**30
        rows.append(
            [
                name,
                peer.precision,
                f"{median(seconds) * epoch_tokens:.0f}",
                against(name, same),
                against(name, replace(same, precision=best)),
                f"{1 / median(seconds):.0f}",
                f"{peak:.2f}" if peak else "",
                limit,
            ]
        )
    header = ["peer", "precision", "s an epoch", "/ ours, same precision", f"/ ours, {best}"]
    return format_table([*header, "tokens/s", "peak GiB", "limit's share"], rows)


def report_losses(results: dict[str, list[dict]]) -> str:
    """Return a line that tells whether all peers begin with the same loss, for each precision."""
    lines = []
    for precision in PRECISIONS:
        losses = {
            name: rows[0]["first_loss"]
            for name, rows in results.items()
            if "first_loss" in rows[0] and PEERS[name].precision == precision
        }
        if losses:
            low, high = min(losses.values()), max(losses.values())
            lines.append(f"loss of the first batch, {precision}: {low:.4f} to {high:.4f}")
    return "\n".join(lines)


def measure_growth(count: int, rounds: int, folder: str, peer: Peer) -> None:
    """Print how time and memory of ours grow from `count` examples to ten times as many."""
    small, large = [], []
    for number in range(rounds):
        sizes = ["--folder", folder, "--examples", str(count), "--round", str(number)]
        for repeat, rows in ((1, small), (10, large)):
            rows.append(measure(MODULE, peer.name, [*sizes, "--repeat", str(repeat)]))
            print(json.dumps(rows[-1]), flush=True)
    for key in ("seconds", "peak"):
        ratio = median_ratio(large, small, key)
        print(f"{key} of {10 * count} examples / {count} examples: {ratio:.2f}")


def main() -> None:
    """Measure as the command line says, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"peers, separated by commas, of: {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=120, help="in a round; 935 for an epoch")
    parser.add_argument("--growth", nargs="?", const=94, type=int, metavar="N")
    parser.add_argument("--worker", choices=["save", *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "save":
        save_pretrained(*load_pretrained(), options.folder)
        print("{}")
        return
    if options.worker:
        drawing = (options.examples, options.round, options.repeat)
        first, examples = load_examples(options.folder, *drawing)
        print(json.dumps(measure_peer(PEERS[options.worker], options.folder, first, examples)))
        return
    print(describe_machine(PACKAGES), flush=True)
    precisions = {name: peer.precision for name, peer in PEERS.items()}
    names = [] if options.growth else choose_peers(precisions, options.only)
    with tempfile.TemporaryDirectory() as folder:
        measure(MODULE, "save", ["--folder", folder])
        if options.growth:
            peer = Peer("ours", precision=native_precisions()[0])
            measure_growth(options.growth, options.rounds, folder, peer)
            return
        sizes = ["--folder", folder, "--examples", str(options.examples)]
        results = run_rounds(MODULE, names, options.rounds, sizes)
        _, whole = load_examples(Path(folder), 10**6)
    tokens = sum(len(example.input_ids) for example in whole)
    print(f"\n{options.rounds} rounds of {options.examples} examples; medians, scaled to the")
    print(f"{tokens} tokens of all {len(whole)}\n\n{summarize(results, tokens)}\n")
    print(report_losses(results))


if __name__ == "__main__":
    main()
