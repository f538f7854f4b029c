"""Model cards: what a reader has to know who finds the weights without the workshop."""

from pathlib import Path

from .adapters import BASE
from .reports import format_report
from .templates import around_message

LIBRARIES = {"hf": "transformers", "peft": "peft", "gguf": "gguf"}

_CARD = """---
{head}
---
# {name}, finetuned to follow instructions

{use}

## The prompt

The model was trained on single questions in this format ({style}), and answers well only to it.
The chat template that comes with the weights writes it:

```
{before}YOUR INSTRUCTION{after}
```

The response ends with the end-of-text token. Give no system message: the model has never seen one.

## How it was made

- data: `{data}` (SHA-256 `{data_sha256}`); {train} entries to train,
  {test} to test, {validation} to choose settings
- method: {method}, {trainable:,} of {all:,} parameters
- settings: {settings}
- machine: {hardware}; {versions}

## What it scored

Loss in nats per response token, before finetuning: {loss_before}; after: {loss_after}.
Scores on the {test} test entries, with 95 % bootstrap intervals:

```
{report}
```

## Limits

The scores hold for questions like those of the data, each asked once, answered greedily. Finetuning
on so few entries teaches the form of an answer and little knowledge: a short, confident answer can
be wrong. Nothing was done, or measured, about harmful or biased output.
"""

_BASE = """
Training began from the weights of the 4-bit file SmolLM2-135M-Instruct.Q4_1.
"""

_ORIGINAL = """On the original weights the adapter gives slightly other logits, and may give other
responses, than those measured here.
"""

_USE = {
    "hf": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
messages = [{"role": "user", "content": "What is an antonym of 'complicated'?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```""",
    "peft": """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoPeftModelForCausalLM.from_pretrained(".")
```""",
    "gguf": """```
ollama create my-model -f Modelfile && ollama run my-model
llama-cli -m model.gguf --jinja --temp 0
```""",
}


def model_card(metrics: dict, form: str) -> str:
    """Return the model card of a run in Markdown, with the metadata that model hubs read.

    Args:
        metrics: the contents of the run's `metrics.json`.
        form: the format of the files beside it, a key of `LIBRARIES`.
    """
    workshop = metrics["model"] == Path(BASE).name
    head = {
        "library_name": LIBRARIES[form],
        "pipeline_tag": "text-generation",
        "tags": "[instruction-finetuning]",
    }
    if workshop:
        head |= {"base_model": BASE, "language": "en", "license": "apache-2.0"}
    elif not Path(metrics["model"]).is_absolute():  # a name on the Hub
        head["base_model"] = metrics["model"]
    before, after = around_message(metrics["prompt_style"])
    card = _CARD.format(
        head="\n".join(f"{key}: {value}" for key, value in head.items()),
        name=Path(metrics["model"]).name,
        use=_USE[form],
        style=metrics["prompt_style"],
        before=before,
        after=after.rstrip("\n"),
        data=Path(metrics["data"]).name,
        data_sha256=metrics["data_sha256"],
        **metrics["entries"],
        method=_method(metrics),
        **metrics["parameters"],
        settings=_pairs(metrics["settings"]),
        hardware=metrics["hardware"],
        versions=_pairs(metrics["versions"]),
        loss_before=_losses(metrics["loss"]["before"]),
        loss_after=_losses(metrics["loss"]["after"]),
        report=format_report(metrics),
    )
    card += _BASE if workshop else ""
    return card + (_ORIGINAL if workshop and form == "peft" else "")


def _method(metrics: dict) -> str:
    if metrics["method"] == "full":
        return "all weights"
    return f"low-rank updates (LoRA, {_pairs(metrics['lora'])})"


def _pairs(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _losses(values: dict[str, float]) -> str:
    return ", ".join(f"{part} {loss:.3f}" for part, loss in values.items())
