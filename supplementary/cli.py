"""The command line: `python -m supplementary finetune`, `evaluate` and `chat`."""

import argparse
import sys
from pathlib import Path

from .checkpoints import load_pretrained
from .data import encode_prompt
from .files import read_json, write_json
from .finetune import METHODS, RunSettings, format_metrics, run_finetuning
from .generation import generate_steps
from .hardware import autocast, pick_device, pick_precision
from .lora import LEARNING_RATE as LORA_LEARNING_RATE
from .model import CausalLM
from .prompts import PROMPT_STYLES, Entry
from .reports import format_report, load_responses, score_responses
from .tokenizer import Tokenizer
from .training import TrainSettings


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 1 after an error that is explained."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def _positive(kind: type) -> type:
    """Return a converter for argparse that accepts only numbers larger than 0."""

    def convert(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return convert


def _parser() -> argparse.ArgumentParser:
    run, settings = RunSettings(), TrainSettings()
    rates = f"{settings.learning_rate:g}, with LoRA {LORA_LEARNING_RATE:g}"
    parser = argparse.ArgumentParser(prog="python -m supplementary", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    tune = commands.add_parser("finetune", help="finetune a model on a file of entries")
    tune.set_defaults(command=_finetune)
    tune.add_argument("--data", type=Path, default=run.data, help="JSON file of entries")
    tune.add_argument("--out", type=Path, default=run.out, help="folder of the run (%(default)s)")
    tune.add_argument("--model", help="folder, GGUF file or owner/name; else the workshop's model")
    tune.add_argument("--method", choices=METHODS, default=run.method)
    tune.add_argument("--prompt-style", choices=PROMPT_STYLES, default=run.prompt_style)
    tune.add_argument("--epochs", type=_positive(int), default=settings.epochs)
    tune.add_argument("--lr", type=_positive(float), help=f"largest learning rate ({rates})")
    tune.add_argument("--batch-size", type=_positive(int), default=settings.batch_size)
    tune.add_argument("--seed", type=int, default=settings.seed, help="decides the order")
    again = tune.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out")
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")

    score = commands.add_parser("evaluate", help="score a file of responses")
    score.set_defaults(command=_evaluate)
    score.add_argument("--responses", type=Path, required=True, help="responses.json of a run")
    score.add_argument("--out", type=Path, help="where to write the scores (scores.json beside it)")

    chat = commands.add_parser("chat", help="talk to a finetuned model")
    chat.set_defaults(command=_chat)
    chat.add_argument("--model", type=Path, required=True, help="folder of a run, or of a model")
    chat.add_argument("--prompt-style", choices=PROMPT_STYLES, help="else the run's, or alpaca")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    chat.add_argument("--max-new-tokens", type=_positive(int), default=200)
    return parser


def _finetune(options: argparse.Namespace) -> None:
    run = RunSettings(
        data=options.data,
        out=options.out,
        model=options.model,
        method=options.method,
        prompt_style=options.prompt_style,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    rate = LORA_LEARNING_RATE if options.method == "lora" else TrainSettings.learning_rate
    settings = TrainSettings(
        epochs=options.epochs,
        learning_rate=options.lr or rate,
        batch_size=options.batch_size,
        micro_batch_size=min(options.batch_size, TrainSettings.micro_batch_size),
        seed=options.seed,
    )
    metrics = run_finetuning(run, settings)
    print(f"\n{format_metrics(metrics)}\nwritten to {run.out}")


def _evaluate(options: argparse.Namespace) -> None:
    out = options.out or options.responses.with_name("scores.json")
    if out.resolve() == options.responses.resolve():
        raise ValueError(f"{out} holds the responses; give another file as --out")
    report = score_responses(load_responses(options.responses))
    write_json(out, report)
    print(f"{format_report(report)}\nwritten to {out}")


def _chat(options: argparse.Namespace) -> None:
    folder = options.model
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give the folder that `finetune` wrote as --out")
    style = options.prompt_style
    if style is None:
        metrics = folder / "metrics.json"
        style = read_json(metrics)["prompt_style"] if metrics.exists() else "alpaca"
    inner = folder / "model"
    model, tokenizer = load_pretrained(inner if inner.is_dir() else folder, pick_device())
    print("Type an instruction; an empty line ends the chat.")
    while instruction := _read_line():
        try:
            entry: Entry = {"instruction": instruction, "input": "", "output": ""}
            _print_response(model, tokenizer, entry, style, options)
        except ValueError as error:  # for instance an instruction longer than the context
            print(f"error: {error}", file=sys.stderr)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _print_response(
    model: CausalLM, tokenizer: Tokenizer, entry: Entry, style: str, options: argparse.Namespace
) -> None:
    """Print a response while it is generated, whole characters only."""
    prompt = encode_prompt(entry, tokenizer, style)
    limit, eos = options.max_new_tokens, tokenizer.eos_token_id
    tokens, shown = [], 0
    with autocast(model.device, pick_precision(model.device)):
        for step in generate_steps(model, [prompt], limit, eos, options.temperature):
            tokens.append(step[0][1])
            text = tokenizer.decode(tokens)
            if not text.endswith("\ufffd"):
                print(text[shown:], end="", flush=True)
                shown = len(text)
    print()
