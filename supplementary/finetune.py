"""One whole finetuning run: load, measure, train, measure again, write everything."""

import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import lora
from .adapters import BASE, save_adapter
from .checkpoints import load_pretrained, save_pretrained
from .data import DATA, KEYS, Example, Splits, encode_entries, load_entries, split_entries
from .files import read_json, sha256, whole_file, write_json
from .generation import respond
from .hardware import describe_hardware, peak_memory_bytes, pick_device, pick_precision
from .model import CausalLM
from .plots import plot_losses
from .prompts import Entry
from .reports import format_report, load_responses, score_responses
from .runs import latest_checkpoint
from .tokenizer import Tokenizer
from .training import History, TrainSettings, mean_loss, train

METHODS = ("full", "lora")
MAX_LENGTH = 1024  # tokens of an example, if the model's context allows
MAX_NEW_TOKENS = 64  # tokens of a response
_FILES = {"model", "adapter", "responses.json", "metrics.json", "loss.png"}


@dataclass(frozen=True)
class RunSettings:
    """What a run is made of, besides `TrainSettings`.

    Args:
        data: JSON file of entries.
        out: folder of the run.
        model: what `load_pretrained` takes; None for the workshop's model.
        method: "full" or "lora".
        rank: the rank of LoRA.
        train_entries: how many of the training entries to use, from the first on; None for all.
        prompt_style: a name in `PROMPT_STYLES`.
        before: folder of a finished run of the same model, data and format; what was measured there
            before finetuning is taken over, not measured anew.
        resume: go on with the run in `out`.
        overwrite: replace the run in `out`.
    """

    data: Path = DATA
    out: Path = Path("runs/finetune")
    model: str | None = None
    method: str = "full"
    rank: int = lora.RANK
    train_entries: int | None = None
    prompt_style: str = "alpaca"
    before: Path | None = None
    resume: bool = False
    overwrite: bool = False


def check_folder(run: RunSettings) -> None:
    """Refuse a folder that holds something, unless the settings say what to do with it.

    Raises:
        ValueError: saying what the folder holds and which option helps.
        OSError: if nothing can be written there.
    """
    out = run.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give another folder as --out")
    held = [path.name for path in out.iterdir()] if out.exists() else []
    if run.resume:
        if "metrics.json" in held:
            raise ValueError(f"the run in {out} is finished; --overwrite makes it anew")
        if not latest_checkpoint(out):
            raise ValueError(f"{out} has no checkpoint to resume; leave out --resume")
    elif held and not run.overwrite:
        raise ValueError(
            f"{out} already holds {', '.join(sorted(held))}; use --resume to go on with a run, "
            "--overwrite to replace it, or another --out"
        )
    elif strange := [n for n in held if n not in _FILES and not n.startswith("checkpoint-")]:
        raise ValueError(
            f"{out} holds {', '.join(strange)}, which no run wrote; move it away first"
        )
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:  # better now than at the first checkpoint
        raise OSError(f"{there} cannot be written ({error}); give another --out") from error


class _Clock:
    """Seconds spent in each phase of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def run_finetuning(run: RunSettings, settings: TrainSettings) -> dict:
    """Finetune a model on a file of entries and write the results to `run.out`.

    Writes `model/` (Hugging Face's form), with LoRA also `adapter/` (PEFT's form), `responses.json`
    (the test entries with `response_before` and `response_after`), `metrics.json` and `loss.png`;
    prints the phases and what was left out.

    Returns:
        The contents of `metrics.json`.

    Raises:
        OSError: if a file or the model cannot be had.
        ValueError: if data, model, folder or settings are not as they should be; what was on disk
            stays as it was.
        FloatingPointError: if the loss becomes infinite or not a number.
    """
    splits = split_entries(load_entries(run.data))
    check_folder(run)
    clock, device = _Clock(), pick_device()
    hardware = describe_hardware(device, pick_precision(device))
    print(hardware)
    with clock.phase("loading the model"):
        model, tokenizer = load_pretrained(run.model, device)
    examples, left_out = _encode(splits, tokenizer, run, model.config.max_position_embeddings)
    numbered = enumerate(splits.test, start=len(splits.train))
    test = [entry for index, entry in numbered if index not in left_out]
    local = run.model and Path(run.model).exists()
    source = str(Path(run.model).absolute()) if local else run.model
    basis = {
        "data_sha256": sha256(run.data),
        "model": source or Path(BASE).name,
        "prompt_style": run.prompt_style,
        "hardware": hardware,
    }
    with clock.phase("measuring before"):
        if run.before:
            loss_before, before = _read_before(run.before, basis, test)
        else:
            loss_before, before = _measure(model, tokenizer, examples, test, run.prompt_style)
    if run.method == "lora":
        lora.add_lora(model, run.rank, seed=settings.seed)
    trainable, total = lora.count_parameters(model)
    if run.overwrite and run.out.exists():
        shutil.rmtree(run.out)
    with clock.phase("training"):
        history = train(
            model, examples["train"], examples["validation"], settings, run.out, run.resume
        )
    if run.method == "lora":
        save_adapter(model, run.out / "adapter", source or BASE)
        lora.merge_lora(model)
    with clock.phase("measuring after"):
        loss_after, after = _measure(model, tokenizer, examples, test, run.prompt_style)
    rows = [
        {**entry, "response_before": first, "response_after": second}
        for entry, first, second in zip(test, before, after, strict=True)
    ]
    with clock.phase("writing"):
        save_pretrained(model, tokenizer, run.out / "model", run.prompt_style)
        write_json(run.out / "responses.json", rows)
        with whole_file(run.out / "loss.png") as beside:
            plot_losses(history).savefig(beside, format="png", dpi=150)
    metrics = {
        "data": str(run.data),
        **basis,
        "before": str(run.before) if run.before else None,
        "method": run.method,
        "lora": {"rank": run.rank, "alpha": lora.ALPHA} if run.method == "lora" else None,
        "settings": asdict(settings),
        "entries": {name: len(part) for name, part in examples.items()},
        "left_out": left_out,
        "parameters": {"trainable": trainable, "all": total},
        "loss": {"before": loss_before, "after": loss_after},
        **score_responses(rows),
        "seconds": clock.seconds,
        "tokens_per_second": _speed(history, examples["train"]),
        "peak_memory_bytes": peak_memory_bytes(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    write_json(run.out / "metrics.json", metrics)
    return metrics


def _encode(
    splits: Splits, tokenizer: Tokenizer, run: RunSettings, context: int
) -> tuple[dict[str, list[Example]], dict[int, str]]:
    """Encode every part; name and count the entries, by their index in the file, left out."""
    examples, left_out = {}, {}
    limit = min(MAX_LENGTH, context)
    starts = {"train": 0, "test": len(splits.train)}
    starts["validation"] = starts["test"] + len(splits.test)
    splits = splits._replace(train=splits.train[: run.train_entries])
    for name, start in starts.items():
        entries = getattr(splits, name)
        examples[name], reasons = encode_entries(entries, tokenizer, run.prompt_style, limit)
        left_out |= {start + index: reason for index, reason in reasons.items()}
        if not examples[name]:
            raise ValueError(f"{run.data}: no {name} entry fits into {limit} tokens; shorten them")
    for index, reason in left_out.items():
        print(f"left out: entry {index} {reason}")
    if left_out:
        print(f"entries left out: {len(left_out)}")
    return examples, left_out


def _measure(
    model: CausalLM, tokenizer: Tokenizer, examples: dict, test: list[Entry], style: str
) -> tuple[dict, list[str]]:
    loss = {name: mean_loss(model, examples[name]) for name in ("validation", "test")}
    return loss, respond(model, tokenizer, test, style, MAX_NEW_TOKENS, progress=True)


def _read_before(folder: Path, basis: dict, test: list[Entry]) -> tuple[dict, list[str]]:
    """Return what a finished run measured before finetuning.

    Raises:
        ValueError: if that run was made of something else, naming it.
    """
    metrics, rows = read_json(folder / "metrics.json"), load_responses(folder / "responses.json")
    for name, value in basis.items():
        if metrics.get(name) != value:
            raise ValueError(
                f"--before {folder} has {name} {metrics.get(name)!r}, this run {value!r}; "
                "leave out --before, and the model is measured anew"
            )
    if [{key: row[key] for key in KEYS} for row in rows] != [
        {key: entry[key] for key in KEYS} for entry in test
    ]:
        raise ValueError(f"--before {folder} answered other test entries; leave out --before")
    return metrics["loss"]["before"], [row["response_before"] for row in rows]


def _speed(history: History, examples: list[Example]) -> float:
    """Return the tokens of examples, prompts included, that a second of training took in."""
    seconds = sum(row["seconds"] for row in history.steps)
    tokens = history.steps[-1]["epoch"] * sum(len(example.input_ids) for example in examples)
    return round(tokens / seconds, 1)


def format_metrics(metrics: dict) -> str:
    """Write the losses and scores of a run as a table for a terminal."""
    lines = [f"{'':18}{'before':>10}{'after':>10}"]
    for name in ("validation", "test"):
        before, after = (metrics["loss"][when][name] for when in ("before", "after"))
        share = f"{after / before:.0%} of before"
        lines.append(f"{name + ' loss':18}{before:10.3f}{after:10.3f}   {share}")
    lines += ["", format_report(metrics), ""]
    phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in metrics["seconds"].items())
    lines.append(f"seconds: {phases}")
    memory = metrics["peak_memory_bytes"] / 2**30
    lines.append(f"tokens/s in training: {metrics['tokens_per_second']:.0f}; peak {memory:.1f} GiB")
    return "\n".join(lines)
