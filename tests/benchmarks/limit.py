"""The least time that training needs on this machine: its matrix products and its optimizer.

The products are those of the linear layers, with every token that a packed step holds, computed by
PyTorch one after the other and nothing between them; the optimizer is PyTorch's fused AdamW.
Attention, normalizations and everything element-wise count as nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from supplementary.batching import shared_prefix_length
from supplementary.data import Example
from supplementary.model import CausalLM

from .rounds import now


@dataclass(frozen=True)
class Work:
    """What a number of steps has to compute.

    Args:
        steps: optimizer steps.
        tokens: unique ones: what all prompts begin with once a step, the rest of each example.
        labelled: tokens that carry a label.
    """

    steps: int
    tokens: int
    labelled: int


def count_work(examples: list[Example], batch_size: int) -> Work:
    """Count steps and tokens of one pass over the examples."""
    shared = shared_prefix_length([ex.input_ids[: ex.prompt_length] for ex in examples])
    steps = math.ceil(len(examples) / batch_size)
    rest = sum(len(example.input_ids) - shared for example in examples)
    labelled = sum(len(example.input_ids) - example.prompt_length for example in examples)
    return Work(steps, steps * shared + rest, labelled)


def _layers(model: CausalLM) -> list[Tensor]:
    """Return the weights of all linear layers but the output layer."""
    modules = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return [m.weight.detach() for name, m in modules.items() if name != "lm_head"]


def _median_seconds(function: Callable[[], None], device: torch.device, times: int) -> float:
    seconds = []
    for _ in range(times + 1):  # the first one warms up
        start = now(device)
        function()
        seconds.append(now(device) - start)
    return median(seconds[1:])


def measure_products(
    model: CausalLM, work: Work, full: bool, precision: torch.dtype, times: int = 3
) -> float:
    """Measure how fast the matrix products of an average step are.

    Forward through all layers, then backward, as in training, so that no weight stays in the cache.

    Args:
        model: gives the shapes and the device.
        work: gives the tokens of an average step.
        full: whether the gradients of the weights are computed, too.
        precision: of the products.
        times: passes, after one to warm up.

    Returns:
        Floating-point operations per second.
    """
    tokens, labelled = round(work.tokens / work.steps), round(work.labelled / work.steps)
    layers, head = _layers(model), model.lm_head.weight.detach()
    weights = [(weight.to(precision), tokens) for weight in layers]
    weights.append((head.to(precision), labelled))
    gradients = [torch.empty_like(weight) for weight, _ in weights] if full else []
    buffers = {}
    for weight, rows in weights:
        (outs, ins), like = weight.shape, {"dtype": precision, "device": model.device}
        if (weight.shape, rows) not in buffers:
            x, dy = torch.randn(rows, ins, **like), torch.randn(rows, outs, **like)
            buffers[weight.shape, rows] = x, torch.empty_like(dy), dy, torch.empty_like(x)

    def step() -> None:
        for weight, rows in weights:
            x, y, _, _ = buffers[weight.shape, rows]
            torch.mm(x, weight.T, out=y)
        for i in reversed(range(len(weights))):
            weight, rows = weights[i]
            x, _, dy, dx = buffers[weight.shape, rows]
            torch.mm(dy, weight, out=dx)
            if full:
                torch.mm(dy.T, x, out=gradients[i])

    operations = (6 if full else 4) * sum(weight.numel() * rows for weight, rows in weights)
    return operations / _median_seconds(step, model.device, times)


def measure_optimizer(model: CausalLM, times: int = 3) -> float:
    """Measure the seconds of one fused AdamW step over the trainable parameters."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = torch.optim.AdamW(trainable, lr=1e-6, fused=True)
    return _median_seconds(optimizer.step, model.device, times)


def least_seconds(
    model: CausalLM, examples: list[Example], batch_size: int, full: bool, precision: torch.dtype
) -> dict[str, float]:
    """Return the least seconds for one pass over the examples, and what they are made of.

    Args:
        model: the model; with LoRA layers already, if not `full`.
        examples: what is learnt.
        batch_size: examples in a step.
        full: whether all weights are trained.
        precision: of the matrix products.

    Returns:
        `seconds`, `gflops` (10^9 operations a second) and `optimizer` (seconds of a step).
    """
    work = count_work(examples, batch_size)
    rate = measure_products(model, work, full, precision)
    optimizer = measure_optimizer(model)
    weights = sum(weight.numel() for weight in _layers(model))
    products = weights * work.tokens + model.lm_head.weight.numel() * work.labelled
    seconds = (6 if full else 4) * products / rate + work.steps * optimizer
    return {"seconds": seconds, "gflops": rate / 1e9, "optimizer": optimizer}
