"""Fixtures that several test modules share: tiny models, a tiny tokenizer, the real model."""

import copy
import json
import os
from pathlib import Path

import nbformat
import pytest
import torch

from supplementary.adapters import ADAPTER, load_adapter
from supplementary.checkpoints import load_pretrained
from supplementary.download import fetch_default_model
from supplementary.lora import merge_lora
from supplementary.model import CausalLM, ModelConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no unit test needs the network
torch.set_num_threads(1)  # tiny models lose time to threads, most of all on a busy machine

ROOT = Path(__file__).parent.parent
TRAINING_TEXT = (
    "Identify the correct spelling of the following word. The correct spelling is 'Occasion.'\n"
    "What is an antonym of 'complicated'? An antonym of 'complicated' is 'simple'.\n"
    "Convert 12 kilometers to meters: 12 kilometers is 12,000 meters.\n"
)


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw new weights, large enough that attention and normalization visibly matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def pytest_terminal_summary(terminalreporter):
    """Say, after every run, of which cells the outputs were not compared."""
    from .test_notebooks import NOTEBOOKS, SOLUTIONS, code_cells, excused

    ran = {report.nodeid.split("::")[0] for report in terminalreporter.getreports("passed")}
    paths = [p for p in NOTEBOOKS + SOLUTIONS if p.relative_to(ROOT).as_posix() in ran]
    if paths:
        terminalreporter.section("cells whose outputs are not compared")
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        numbers = ", ".join(map(str, excused(notebook))) or "none"
        name = path.relative_to(ROOT).as_posix()
        terminalreporter.line(f"{name}: {numbers} of {len(code_cells(notebook))}")


@pytest.fixture(scope="session")
def gguf_reader():
    """The workshop's GGUF file, parsed once for all tests (that takes seconds)."""
    from gguf import GGUFReader

    return GGUFReader(fetch_default_model())


@pytest.fixture(scope="session")
def pretrained(gguf_reader):
    """The workshop's model and tokenizer; no test may change them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("supplementary.gguf_files.open_gguf", lambda path: gguf_reader)
        return load_pretrained()


@pytest.fixture(scope="session")
def finetuned(pretrained):
    """The workshop's model with its adapter, and the tokenizer; no test may change them."""
    model, tokenizer = pretrained
    model = copy.deepcopy(model)
    load_adapter(model, ADAPTER)
    merge_lora(model)
    return model, tokenizer


@pytest.fixture(scope="session")
def entries():
    """The entries of the workshop's dataset, as they stand in the file."""
    return json.loads((ROOT / "data" / "instruction-data.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def answer_key() -> list[dict]:
    """The dataset's answer key: for each entry its kind and its check."""
    return json.loads((ROOT / "data" / "answer-key.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tiny_config():
    """Sizes of a model that computes in a millisecond, with grouped-query attention."""
    return ModelConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
    )


@pytest.fixture
def tiny_model(tiny_config):
    """A new tiny model with the same random weights for every test, in evaluation mode."""
    return randomize(CausalLM(tiny_config))


@pytest.fixture(scope="session")
def train_tokenizer():
    """Return a function that trains a byte-level BPE tokenizer with `tokenizers`.

    It takes the pre-tokenizer and gives a `tokenizers.Tokenizer` of 320 tokens, of which 0 is the
    end-of-text and 1 and 2 are control marks.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def train(pre_tokenizer=None):
        tokenizer = Tokenizer(models.BPE())
        default = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizer or default
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
        return tokenizer

    return train


@pytest.fixture(scope="session")
def make_llama():
    """Return a function that makes a random `LlamaForCausalLM` from settings of `LlamaConfig`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(**settings):
        sizes = {
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "eos_token_id": 0,
            "bos_token_id": None,
            "attn_implementation": "eager",
        }
        model = LlamaForCausalLM(LlamaConfig(**sizes | settings))
        return randomize(model.float())

    return make


@pytest.fixture(scope="session")
def llama_folder(make_llama, train_tokenizer, tmp_path_factory):
    """A folder that `transformers` and `tokenizers` wrote: a tiny Llama; no test may change it."""
    folder = tmp_path_factory.mktemp("llama")
    make_llama().save_pretrained(folder)
    train_tokenizer().save(str(folder / "tokenizer.json"))
    return folder
