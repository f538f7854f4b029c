"""The command line: `python -m supplementary finetune` and `python -m supplementary chat`."""

import argparse
import dataclasses
import platform
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from . import lora
from .checkpoints import load_pretrained, save_folder
from .data import (
    Example,
    Splits,
    encode_entries,
    encode_prompt,
    load_entries,
    split_entries,
)
from .evaluation import exact_matches, key_matches, summarize_scores
from .files import read_json, sha256, whole_file, write_json
from .generation import generate_steps, respond
from .hardware import describe_hardware, peak_memory_bytes, pick_device, pick_precision
from .model import CausalLM
from .plots import plot_losses
from .prompts import PROMPT_STYLES, Entry
from .runs import latest_checkpoint
from .tokenizer import Tokenizer
from .training import History, TrainSettings, mean_loss, train

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "instruction-data.json"
ANSWER_KEY = ROOT / "data" / "answer-key.json"
MAX_LENGTH = 1024  # tokens of an example, if the model's context allows
MAX_NEW_TOKENS = 64


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    settings = TrainSettings()
    parser = argparse.ArgumentParser(prog="python -m supplementary", description=__doc__)
    commands = parser.add_subparsers(required=True)

    tune = commands.add_parser("finetune", help="finetune a model on a file of entries")
    tune.set_defaults(run=finetune)
    tune.add_argument("--data", type=Path, default=DATA, help="JSON file of entries")
    tune.add_argument("--out", type=Path, default=Path("runs/finetune"), help="folder of the run")
    tune.add_argument("--model", help="folder, GGUF file or owner/name (the workshop's model)")
    tune.add_argument("--method", choices=["full", "lora"], default="full")
    tune.add_argument("--prompt-style", choices=list(PROMPT_STYLES), default="alpaca")
    tune.add_argument("--epochs", type=int, default=settings.epochs)
    tune.add_argument("--lr", type=float, help="largest learning rate (depends on the method)")
    tune.add_argument("--batch-size", type=int, default=settings.batch_size)
    tune.add_argument("--seed", type=int, default=settings.seed)
    again = tune.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out")
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")

    chat = commands.add_parser("chat", help="talk to a finetuned model")
    chat.set_defaults(run=chat_in_terminal)
    chat.add_argument("--model", type=Path, required=True, help="folder of a run")
    chat.add_argument("--prompt-style", choices=list(PROMPT_STYLES), help="if the run names none")
    chat.add_argument("--temperature", type=float, default=0.0)
    chat.add_argument("--max-new-tokens", type=int, default=200)
    return parser


def _claim_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless the options say what to do with it."""
    used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give another --out")
    finished = (folder / "metrics.json").exists()
    if resume and finished:
        raise ValueError(f"the run in {folder} is finished; use --overwrite to make it anew")
    if resume and not latest_checkpoint(folder):
        raise ValueError(f"{folder} has no checkpoint to resume; leave out --resume")
    if used and not (resume or overwrite):
        raise ValueError(
            f"{folder} already holds a run; use --resume to go on with it, --overwrite to replace "
            "it, or another --out"
        )
    if used and overwrite:
        known = {"settings.json", "responses.json", "metrics.json", "loss.png", "model"}
        if extra := [p.name for p in folder.iterdir() if not _is_ours(p.name, known)]:
            raise ValueError(f"{folder} holds files of no run ({', '.join(extra)}); move them")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _is_ours(name: str, known: set[str]) -> bool:
    return name in known or name.startswith(("checkpoint-", "."))


class _Clock:
    """Seconds spent in each phase of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str):
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def _settings(options: argparse.Namespace) -> TrainSettings:
    rate = options.lr if options.lr is not None else lora.LEARNING_RATE[options.method]
    for name, value in {
        "--epochs": options.epochs,
        "--batch-size": options.batch_size,
        "--lr": rate,
    }.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it has to be larger than 0")
    return TrainSettings(
        epochs=options.epochs,
        learning_rate=rate,
        batch_size=options.batch_size,
        seed=options.seed,
    )


def finetune(options: argparse.Namespace) -> int:
    """Run the command `finetune`: load, measure, train, measure again, write everything."""
    settings, style = _settings(options), options.prompt_style
    splits = split_entries(load_entries(options.data))
    out = options.out
    _claim_folder(out, options.resume, options.overwrite)
    clock, device = _Clock(), pick_device()
    print(describe_hardware(device, pick_precision(device)))
    with clock.phase("load the model"):
        model, tokenizer = load_pretrained(options.model, device)
    examples, left_out = _encode(splits, tokenizer, style, model.config.max_position_embeddings)
    test = [entry for i, entry in enumerate(splits.test) if i not in left_out["test"]]

    with clock.phase("measure before"):
        before = _measure(model, tokenizer, examples, test, style)
    if options.method == "lora":
        lora.add_lora(model, seed=settings.seed)
    trainable, total = lora.count_parameters(model)
    with clock.phase("train"):
        history = train(
            model, examples["train"], examples["validation"], settings, out, options.resume
        )
    if options.method == "lora":
        lora.merge_lora(model)
    with clock.phase("measure after"):
        after = _measure(model, tokenizer, examples, test, style)

    checks = _checks(options.data, splits, left_out["test"])
    scores = _scores(test, before["responses"], after["responses"], checks)
    metrics = {
        "data": str(options.data),
        "data_sha256": sha256(options.data),
        "model": options.model or "SmolLM2-135M-Instruct",
        "method": options.method,
        "prompt_style": style,
        "settings": dataclasses.asdict(settings),
        "entries": {name: len(part) for name, part in examples.items()},
        "left_out": left_out,
        "parameters": {"trainable": trainable, "all": total},
        "loss": {"before": before["loss"], "after": after["loss"]},
        "scores": scores,
        "seconds": clock.seconds,
        "tokens_per_second": _speed(history, examples["train"]),
        "peak_memory_bytes": peak_memory_bytes(device),
        "hardware": describe_hardware(device, pick_precision(device)),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    with clock.phase("write the model"):
        save_folder(model, tokenizer, out / "model")
    write_json(
        out / "responses.json",
        [
            {**entry, "response_before": first, "response_after": second}
            for entry, first, second in zip(
                test, before["responses"], after["responses"], strict=True
            )
        ],
    )
    with whole_file(out / "loss.png") as beside:
        plot_losses(history).savefig(beside, format="png", dpi=150)
    write_json(out / "metrics.json", metrics)
    _print_table(metrics, out)
    return 0


def _encode(splits: Splits, tokenizer: Tokenizer, style: str, context: int) -> tuple[dict, dict]:
    """Encode every part; name and count the entries that are left out."""
    examples, left_out = {}, {}
    for name, entries in splits._asdict().items():
        limit = min(MAX_LENGTH, context)
        examples[name], left_out[name] = encode_entries(entries, tokenizer, style, limit)
        for index, reason in left_out[name].items():
            print(f"left out: entry {index} of the {name} entries {reason}")
        if not examples[name]:
            raise ValueError(f"no {name} entry fits into {limit} tokens; shorten the entries")
    if count := sum(map(len, left_out.values())):
        print(f"{count} entries were left out")
    return examples, left_out


def _measure(
    model: CausalLM, tokenizer: Tokenizer, examples: dict, test: list[Entry], style: str
) -> dict:
    return {
        "loss": {
            "validation": mean_loss(model, examples["validation"]),
            "test": mean_loss(model, examples["test"]),
        },
        "responses": respond(model, tokenizer, test, style, MAX_NEW_TOKENS),
    }


def _checks(data: Path, splits: Splits, left_out: dict) -> list[dict] | None:
    """Return the answer key's checks of the test entries, if the data is the workshop's own."""
    if data.resolve() != DATA.resolve():
        return None
    start = len(splits.train)
    key = read_json(ANSWER_KEY)[start : start + len(splits.test)]
    return [row["check"] for i, row in enumerate(key) if i not in left_out]


def _scores(
    test: list[Entry], before: list[str], after: list[str], checks: list[dict] | None
) -> dict:
    references = [entry["output"] for entry in test]
    scores = {
        "exact match": summarize_scores(
            exact_matches(before, references), exact_matches(after, references)
        )
    }
    if checks is not None:
        scores["answer key"] = summarize_scores(
            key_matches(before, checks), key_matches(after, checks)
        )
    return scores


def _speed(history: History, examples: list[Example]) -> float | None:
    """Return the tokens of examples, prompts included, that a second of training took in."""
    seconds = sum(row["seconds"] for row in history.steps)
    if not seconds:
        return None
    tokens = sum(len(example.input_ids) for example in examples)
    return round(history.steps[-1]["epoch"] * tokens / seconds, 1)


def _print_table(metrics: dict, out: Path) -> None:
    print(f"\n{'':24}{'before':>10}{'after':>10}   95 % interval of the difference")
    for name in ("validation", "test"):
        first, second = (metrics["loss"][when][name] for when in ("before", "after"))
        print(f"{name + ' loss':24}{first:10.3f}{second:10.3f}   ({second / first:.0%} of before)")
    for name, row in metrics["scores"].items():
        low, high = row["difference_interval"]
        print(
            f"{name:24}{row['count_before']:>6}/{row['entries']}{row['count_after']:>6}"
            f"/{row['entries']}   {low:+.1%} to {high:+.1%}"
        )
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in metrics["seconds"].items())
    print(f"\n{phases}")
    print(f"peak memory {metrics['peak_memory_bytes'] / 2**30:.1f} GiB; written to {out}")


def chat_in_terminal(options: argparse.Namespace) -> int:
    """Run the command `chat`: each line is an instruction, answered on its own."""
    folder = options.model
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give the folder of a run of `finetune`")
    style = options.prompt_style or "alpaca"
    if (folder / "metrics.json").exists():
        style = options.prompt_style or read_json(folder / "metrics.json")["prompt_style"]
    inner = folder / "model"
    model, tokenizer = load_pretrained(inner if inner.is_dir() else folder, pick_device())
    print("Type an instruction; an empty line ends the chat.")
    while True:
        try:
            instruction = input("> ").strip()
        except EOFError:
            instruction = ""
        if not instruction:
            return 0
        entry = {"instruction": instruction, "input": "", "output": ""}
        print_stream(model, tokenizer, entry, style, options)


def print_stream(
    model: CausalLM, tokenizer: Tokenizer, entry: Entry, style: str, options: argparse.Namespace
) -> None:
    """Print a response while it is generated, whole characters only."""
    prompt = encode_prompt(entry, tokenizer, style)
    tokens, shown = [], ""
    for step in generate_steps(
        model, [prompt], options.max_new_tokens, tokenizer.eos_token_id, options.temperature
    ):
        tokens.append(step[0][1])
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()
