"""Generation speed: the workshop's beside a loop without a cache and `transformers`.

    pip install -r requirements.txt -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.generation

The finetuned model answers the 110 test prompts greedily with at most 64 tokens each. In each round
every peer does so in a process of its own, after a few tokens to warm up. The loop without a cache
takes minutes, so it answers some prompts, spread evenly over the lengths, and its time is scaled by
the token positions that a whole run computes; `--whole` lets it answer all.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from supplementary.adapters import load_finetuned
from supplementary.checkpoints import load_pretrained, save_pretrained
from supplementary.data import DATA, encode_prompt, load_entries, split_entries
from supplementary.generation import generate
from supplementary.hardware import keep_freed_memory, peak_memory_bytes, pick_device
from supplementary.model import CausalLM

from .rounds import (
    PRECISIONS,
    choose_peers,
    describe_machine,
    format_table,
    measure,
    median_ratio,
    native_precisions,
    now,
    run_rounds,
    use_precision,
)

MODULE = "tests.benchmarks.generation"
PACKAGES = ["torch", "transformers"]
MAX_NEW_TOKENS = 64
SAMPLED = 10  # prompts that the loop without a cache answers, unless it is to answer all


@dataclass(frozen=True)
class Peer:
    """One way to generate.

    Args:
        loop: "ours", "no-cache" or "transformers".
        precision: of the weights of `transformers`, of the matrix products of ours.
        batch_size: prompts at once, for `transformers`.
    """

    loop: str
    precision: str = "float32"
    batch_size: int = 1

    @property
    def name(self) -> str:
        """The name on the command line and in the table."""
        size = f"-{self.batch_size}" if self.loop == "transformers" else ""
        return f"{self.loop}{size}-{self.precision}"


def make_peers() -> dict[str, Peer]:
    """Return all peers by name, in the order in which they take turns."""
    peers = [Peer("no-cache")]
    for precision in PRECISIONS:
        peers += [Peer("transformers", precision, size) for size in (1, 28, 110)]
        peers.append(Peer("ours", precision))
    return {peer.name: peer for peer in peers}


PEERS = make_peers()


@torch.no_grad()
def generate_without_cache(
    model: CausalLM, prompts: list[list[int]], limit: int, eos_token_id: int
) -> list[list[int]]:
    """Generate as textbooks begin: one prompt at a time, the whole text again for each token."""
    responses = []
    for prompt in prompts:
        tokens = torch.tensor([prompt], device=model.device)
        for _ in range(limit):
            following = model(tokens)[:, -1].argmax(-1, keepdim=True)  # (1, 1)
            if following.item() == eos_token_id:
                break
            tokens = torch.cat([tokens, following], dim=1)
        responses.append(tokens[0, len(prompt) :].tolist())
    return responses


@torch.no_grad()
def generate_with_transformers(
    model: torch.nn.Module,
    prompts: list[list[int]],
    limit: int,
    eos_token_id: int,
    batch_size: int,
) -> list[list[int]]:
    """Generate with `transformers`: batches in the order given, padded on the left."""
    responses = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[eos_token_id] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        generated = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id,
        )
        for row in generated[:, width:].tolist():
            end = row.index(eos_token_id) if eos_token_id in row else len(row)
            responses.append(row[:end])
    return responses


def measure_peer(peer: Peer, folder: Path, prompts: list[list[int]], chosen: list[int]) -> dict:
    """Warm up, answer the prompts, and return what was measured, the new tokens included.

    Args:
        peer: the way to generate.
        folder: the finetuned model in Hugging Face's form.
        prompts: token ids of all prompts.
        chosen: indices of those to answer.
    """
    keep_freed_memory()
    use_precision(peer.precision)
    device = pick_device()
    model, tokenizer = load_pretrained(folder, device)
    end, prompts = tokenizer.eos_token_id, [prompts[i] for i in chosen]
    if peer.loop == "transformers":
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=PRECISIONS[peer.precision])
        model = theirs.to(device).eval()

    def run(rows: list[list[int]], limit: int) -> list[list[int]]:
        if peer.loop == "ours":
            return generate(model, rows, limit, end)
        if peer.loop == "no-cache":
            return generate_without_cache(model, rows, limit, end)
        return generate_with_transformers(model, rows, limit, end, peer.batch_size)

    run(prompts[:2], 4)
    start = now(device)
    responses = run(prompts, MAX_NEW_TOKENS)
    seconds = now(device) - start
    row = {"seconds": seconds, "answered": len(prompts), "tokens": sum(map(len, responses))}
    peak = peak_memory_bytes(device)
    return row | {"peak": peak, "chosen": chosen, "responses": responses}


def load_prompts(folder: Path, count: int) -> list[list[int]]:
    """Return the first `count` test prompts as token ids."""
    _, tokenizer = load_pretrained(folder)
    entries = split_entries(load_entries(DATA)).test[:count]
    return [encode_prompt(entry, tokenizer) for entry in entries]


def spread(prompts: list[list[int]], count: int) -> list[int]:
    """Return the indices of `count` prompts, spread evenly over the lengths."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    count = min(count, len(order))
    return [order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)]


def scale_up(rows: list[dict], whole: dict, prompts: list[list[int]]) -> None:
    """Scale seconds and tokens of a run on some prompts to all of them, in place.

    Args:
        rows: the measurements.
        whole: a measurement of ours, which tells how long all responses are.
        prompts: token ids of all prompts.
    """

    def positions(index: int) -> int:
        length, steps = len(prompts[index]), min(MAX_NEW_TOKENS, len(lengths[index]) + 1)
        return steps * length + steps * (steps - 1) // 2

    lengths = whole["responses"]
    for row in rows:
        if row["answered"] < len(prompts):
            computed = sum(map(positions, row["chosen"]))
            row["seconds"] *= sum(map(positions, range(len(prompts)))) / computed
            row["tokens"] = whole["tokens"]


def summarize(results: dict[str, list[dict]]) -> str:
    """Return the table of all peers that were measured."""

    def against(name: str, other: Peer) -> str:
        if other.name not in results:
            return ""
        return f"{median_ratio(results[name], results[other.name]):.1f}"

    best, rows = native_precisions()[0], []
    for name, measured in results.items():
        precision, first = PEERS[name].precision, measured[0]
        ours = Peer("ours", precision)
        equal = ""
        if ours.name in results:
            own = [results[ours.name][0]["responses"][i] for i in first["chosen"]]
            same = [a == b for a, b in zip(own, first["responses"], strict=True)]
            equal = f"{sum(same)} of {len(same)}"
        rows.append(
            [
                name,
                precision,
                f"{median(row['seconds'] for row in measured):.1f}",
                against(name, ours),
                against(name, Peer("ours", best)),
                f"{median(row['tokens'] / row['seconds'] for row in measured):.0f}",
                f"{max(row['peak'] for row in measured) / 2**30:.2f}",
                equal,
            ]
        )
    header = ["peer", "precision", "seconds", "/ ours, same precision", f"/ ours, {best}"]
    return format_table([*header, "new tokens/s", "peak GiB", "equal to ours"], rows)


def main() -> None:
    """Measure as the command line says, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"peers, separated by commas, of: {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=110, help="only the first so many")
    parser.add_argument("--whole", action="store_true", help="all prompts without a cache, too")
    parser.add_argument("--worker", choices=["save", *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "save":
        save_pretrained(*load_finetuned(run=None), options.folder)
        print("{}")
        return
    if options.worker:
        peer, prompts = PEERS[options.worker], load_prompts(options.folder, options.prompts)
        some = peer.loop == "no-cache" and not options.whole
        chosen = spread(prompts, SAMPLED) if some else list(range(len(prompts)))
        print(json.dumps(measure_peer(peer, options.folder, prompts, chosen)))
        return
    print(describe_machine(PACKAGES), flush=True)
    names = choose_peers({name: peer.precision for name, peer in PEERS.items()}, options.only)
    with tempfile.TemporaryDirectory() as folder:
        measure(MODULE, "save", ["--folder", folder])
        arguments = ["--folder", folder, "--prompts", str(options.prompts)]
        results = run_rounds(MODULE, names, options.rounds, arguments + ["--whole"] * options.whole)
        prompts = load_prompts(Path(folder), options.prompts)
    whole = results.get("ours-float32")
    for name, rows in results.items():
        if rows[0]["answered"] == len(prompts):
            continue
        if whole:
            scale_up(rows, whole[0], prompts)
        note = "scaled to all" if whole else "NOT scaled, as ours-float32 did not run"
        print(f"\n{name} answered {rows[0]['answered']} of {len(prompts)} prompts; {note}")
    print(f"\n{options.rounds} rounds of {len(prompts)} prompts; medians\n\n{summarize(results)}")


if __name__ == "__main__":
    main()
