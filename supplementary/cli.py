"""The command line: `python -m supplementary COMMAND`; `--help` lists the commands."""

import argparse
import sys
from pathlib import Path

from . import doctor
from .adapters import find_prompt_style, load_run
from .chat import stream_response
from .editions import write_recall_edition
from .export import FORMATS, export_run
from .files import write_json
from .finetune import METHODS, RunSettings, format_metrics, run_finetuning
from .gguf_files import QUANTIZATIONS
from .hardware import pick_device
from .lora import LEARNING_RATE as LORA_LEARNING_RATE
from .prompts import PROMPT_STYLES, Entry
from .reports import format_report, load_responses, score_responses
from .repository import set_repository
from .training import TrainSettings


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 1 after an error that is explained."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:  # of a package that this command alone needs
        print(f"error: {error}; `python -m supplementary doctor` names a remedy", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


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
    tune.add_argument("--rank", type=_positive(int), default=run.rank, help="of LoRA (%(default)s)")
    tune.add_argument("--train-entries", type=_positive(int), help="use only so many of them")
    tune.add_argument("--prompt-style", choices=PROMPT_STYLES, default=run.prompt_style)
    tune.add_argument("--epochs", type=_positive(int), default=settings.epochs)
    tune.add_argument("--lr", type=_positive(float), help=f"largest learning rate ({rates})")
    tune.add_argument("--batch-size", type=_positive(int), default=settings.batch_size)
    tune.add_argument("--seed", type=int, default=settings.seed, help="decides the order")
    tune.add_argument(
        "--before", type=Path, help="finished run whose responses before to take over"
    )
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

    out = commands.add_parser("export", help="write a finished run for other programs")
    out.set_defaults(command=_export)
    out.add_argument("--run", type=Path, default=run.out, help="folder of the run (%(default)s)")
    out.add_argument("--format", choices=FORMATS, required=True, dest="form")
    out.add_argument("--out", type=Path, required=True, help="folder to make")
    out.add_argument("--quantization", choices=QUANTIZATIONS, default="f16", help="of gguf")

    ready = commands.add_parser("doctor", help="check that this machine is ready for the workshop")
    ready.set_defaults(command=lambda options: doctor.main(["--fetch"] if options.fetch else []))
    ready.add_argument("--fetch", action="store_true", help="fetch the pretrained model first")

    recall = commands.add_parser("recall", help="write the notebooks without prose and outputs")
    recall.set_defaults(command=_recall)
    recall.add_argument("--out", type=Path, default=Path("recall"), help="folder (%(default)s)")

    fork = commands.add_parser("set-repository", help="let all badges point at a fork")
    fork.set_defaults(command=lambda options: print(f"{len(set_repository(options.name))} files"))
    fork.add_argument("name", metavar="OWNER/NAME")
    return parser


def _finetune(options: argparse.Namespace) -> None:
    run = RunSettings(
        data=options.data,
        out=options.out,
        model=options.model,
        method=options.method,
        rank=options.rank,
        train_entries=options.train_entries,
        prompt_style=options.prompt_style,
        before=options.before,
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
    style = options.prompt_style or find_prompt_style(folder) or "alpaca"
    model, tokenizer = load_run(folder, pick_device())
    print(f"Type an instruction ({style} format); an empty line ends the chat.")
    while instruction := _read_line():
        entry: Entry = {"instruction": instruction, "input": "", "output": ""}
        try:
            stream_response(
                model,
                tokenizer,
                entry,
                lambda text: print(text, end="", flush=True),
                style,
                options.max_new_tokens,
                options.temperature,
            )
            print()
        except ValueError as error:  # for instance an instruction longer than the context
            print(f"error: {error}", file=sys.stderr)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _export(options: argparse.Namespace) -> None:
    export_run(options.run, options.form, options.out, options.quantization)
    print(f"written to {options.out}")


def _recall(options: argparse.Namespace) -> None:
    paths = write_recall_edition(options.out)
    print(f"written to {options.out}: {', '.join(path.name for path in paths)}")
