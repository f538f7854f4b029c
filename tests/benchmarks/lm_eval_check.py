"""Score the multiple-choice questions with EleutherAI's lm-eval and with ours, on the same model.

    pip install -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.lm_eval_check

The model is written as a Hugging Face folder, which lm-eval loads with transformers. The numbers
have to be the same; the output stands in `README.md` beside this file.
"""

import json
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

from supplementary.adapters import load_finetuned
from supplementary.checkpoints import load_pretrained, save_pretrained
from supplementary.data import ROOT
from supplementary.hardware import pick_device
from supplementary.multiple_choice import (
    letter_prompt,
    load_questions,
    right_choices,
    score_options,
    text_prompt,
)

QUESTIONS = ROOT / "data" / "multiple-choice.json"
LETTERED = "\n".join(f"{letter}. {{{{options[{i}]}}}}" for i, letter in enumerate("ABCD"))
TASKS = {
    "text": {"text": "Question: {{question}}\nAnswer:", "choices": "{{options}}"},
    "letter": {
        "text": f"Question: {{{{question}}}}\n{LETTERED}\nAnswer:",
        "choices": list("ABCD"),
    },
}


def main() -> None:
    """Print both accuracies of the pretrained and the finetuned model."""
    questions = load_questions(QUESTIONS)
    for name, load in {"pretrained": load_pretrained, "finetuned": load_finetuned}.items():
        model, tokenizer = load(None)
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(model, tokenizer, Path(folder) / "model")
            theirs = _run_harness(Path(folder))
        for task, make_prompt in {"text": text_prompt, "letter": letter_prompt}.items():
            scores = score_options(model, tokenizer, questions, make_prompt)
            ours = {"acc": right_choices(questions, scores)}
            if task == "text":
                ours["acc_norm"] = right_choices(questions, scores, per_character=True)
            for metric, right in ours.items():
                share, other = sum(right) / len(right), theirs[task][f"{metric},none"]
                print(f"{name:11} {task:7} {metric:9} ours {share:.4f}  lm-eval {other:.4f}")


def _run_harness(folder: Path) -> dict[str, dict]:
    for name, task in TASKS.items():
        settings = {
            "task": f"workshop_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": str(QUESTIONS)},
            "test_split": "train",
            "output_type": "multiple_choice",
            "doc_to_text": task["text"],
            "doc_to_choice": task["choices"],
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        # JSON is YAML, too
        (folder / f"{name}.yaml").write_text(json.dumps(settings), encoding="utf-8")
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "model"), "dtype": "float32"},
        tasks=[f"workshop_{name}" for name in TASKS],
        task_manager=TaskManager(include_path=str(folder)),
        batch_size=8,
        device=str(pick_device()),
    )
    return {name: results["results"][f"workshop_{name}"] for name in TASKS}


if __name__ == "__main__":
    main()
