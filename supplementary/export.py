"""Taking the model home: a finished run as files for transformers, PEFT, llama.cpp and Ollama.

Every export is a new folder with a model card that says how the model was made, what it scored, and
how it wants to be asked.
"""

from pathlib import Path

from .adapters import BASE_KEY, find_adapter, load_adapter, load_base, load_run, save_adapter
from .cards import LIBRARIES, model_card
from .checkpoints import save_pretrained, save_tokenizer
from .files import read_json, whole_folder
from .gguf_files import export_gguf

FORMATS = tuple(LIBRARIES)


def export_run(run: Path, form: str, out: Path, quantization: str = "f16") -> None:
    """Write a finished run as a folder that other programs load, whole or not at all.

    Args:
        run: the folder of a finished run, or of an adapter with its `metrics.json`.
        form: "hf" for `transformers`; "peft" for the adapter alone; "gguf" for llama.cpp and
            Ollama (`model.gguf` and `Modelfile`).
        out: the folder to make; it must not exist.
        quantization: of a GGUF file, "f16" or "q8_0".

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if the run is not finished.
        OSError: if something cannot be written.
        ValueError: if the format is unknown, or the run has no adapter to export.
    """
    run, out = Path(run), Path(out)
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; choose one of {', '.join(FORMATS)}")
    if out.exists():
        raise FileExistsError(f"{out} exists already; move it away or give another --out")
    if not (run / "metrics.json").exists():
        raise FileNotFoundError(f"{run} has no metrics.json; it holds no finished run to export")
    metrics = read_json(run / "metrics.json")
    try:
        style, card = metrics["prompt_style"], model_card(metrics, form)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run / 'metrics.json'} lacks {error}; make the run anew") from error
    if form == "peft":
        adapter = find_adapter(run)
        if adapter is None:
            raise ValueError(
                f"the run in {run} trained all weights and has no adapter; export it as hf or gguf"
            )
        merged = run / "model"  # has the shapes and the tokenizer, if the base is out of reach
        model, tokenizer = load_run(run) if merged.exists() else load_base(adapter)
        load_adapter(model, adapter)
    else:
        model, tokenizer = load_run(run)
    with whole_folder(out) as beside:
        if form == "hf":
            save_pretrained(model, tokenizer, beside, style)
        elif form == "gguf":
            export_gguf(model, tokenizer, beside / "model.gguf", style, quantization)
        else:
            save_adapter(model, beside, read_json(adapter / "adapter_config.json").get(BASE_KEY))
            save_tokenizer(tokenizer, beside, style, model.config.max_position_embeddings)
        (beside / "README.md").write_text(card, encoding="utf-8")
