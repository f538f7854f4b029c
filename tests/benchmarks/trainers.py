"""The peers built on Hugging Face's `Trainer`: TRL's `SFTTrainer`, and the `Trainer` itself.

They get the token ids that ours gets, so all learn the same tokens, and what makes them fast:
no gradient checkpointing (TRL's default), the fused AdamW, no checkpoints, logs or evaluation.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from supplementary.checkpoints import read_folder
from supplementary.data import Example
from supplementary.hardware import pick_device
from supplementary.lora import TARGETS
from supplementary.training import TrainSettings


class _Steps(TrainerCallback):
    """Tells when training begins and when a step has ended."""

    def __init__(self, on_begin: Callable[[], None], on_step: Callable[[], None]) -> None:
        self.on_begin, self.on_step = on_begin, on_step

    def on_train_begin(self, *args, **kwargs) -> None:
        self.on_begin()

    def on_step_end(self, *args, **kwargs) -> None:
        self.on_step()


def _load(folder: Path, weights: str) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    _, _, tokenizer = read_folder(folder)
    end = tokenizer.decode([tokenizer.eos_token_id])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=end, pad_token=end
    )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, weights)), wrapped


def _arguments(folder: Path, settings: TrainSettings, precision: str) -> dict:
    """Return the arguments that both trainers take."""
    return {
        "output_dir": str(folder / "runs"),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "weight_decay": settings.weight_decay,
        "adam_beta2": 0.95,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "optim": "adamw_torch_fused",
        "bf16": precision == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": pick_device().type == "cpu",
        "dataloader_pin_memory": pick_device().type == "cuda",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def make_sft_trainer(
    folder: Path,
    examples: list[Example],
    settings: TrainSettings,
    method: str,
    precision: str,
    batches: str,
    weights: str,
) -> SFTTrainer:
    """Return TRL's trainer on examples that are token ids already.

    Args:
        folder: the pretrained model in Hugging Face's form.
        examples: what it learns.
        settings: how to train.
        method: "full", or "lora" for PEFT's, rank 16 on all linear layers.
        precision: of the matrix products.
        batches: "padded"; "padding-free", the examples of a batch on one row; or "packed", rows
            filled by length up to what the examples of a batch have on average.
        weights: precision in which the model is loaded.
    """
    model, tokenizer = _load(folder, weights)
    columns = {
        "input_ids": [example.input_ids for example in examples],
        "completion_mask": [[int(label >= 0) for label in ex.labels()] for ex in examples],
    }
    lora = None
    if method == "lora":
        from peft import LoraConfig

        lora = LoraConfig(r=16, lora_alpha=32, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    arguments = _arguments(folder, settings, precision)
    arguments |= {"max_length": None, "padding_free": batches == "padding-free"}
    if batches == "packed":
        tokens = sum(len(example.input_ids) for example in examples)
        room = -(-tokens * settings.batch_size // len(examples))
        arguments |= {"packing": True, "max_length": room, "per_device_train_batch_size": 1}
    return SFTTrainer(
        model=model,
        args=SFTConfig(completion_only_loss=True, **arguments),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=lora,
    )


def make_plain_trainer(
    folder: Path, examples: list[Example], settings: TrainSettings, precision: str
) -> Trainer:
    """Return Hugging Face's trainer with batches of examples of similar length."""
    model, tokenizer = _load(folder, "float32")
    columns = {
        "input_ids": [example.input_ids for example in examples],
        "attention_mask": [[1] * len(example.input_ids) for example in examples],
        "labels": [example.labels() for example in examples],
    }
    arguments = _arguments(folder, settings, precision)
    return Trainer(
        model=model,
        args=TrainingArguments(train_sampling_strategy="group_by_length", **arguments),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=Dataset.from_dict(columns),
    )


def run_trainer(
    trainer: Trainer, on_begin: Callable[[], None], on_step: Callable[[], None], steps: int = -1
) -> float:
    """Train one epoch, or `steps` steps, with a new optimizer; the model goes on from where it is.

    Returns:
        The loss of the first step, in nats per labelled token.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(_Steps)
    trainer.add_callback(_Steps(on_begin, on_step))
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.args.max_steps = steps
    trainer.train()
    return trainer.state.log_history[0]["loss"]
