"""LoRA: train a low-rank update of each linear layer while its own weights stay fixed.

Source: Hu et al., 2021, https://arxiv.org/abs/2106.09685, section 4.1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import CausalLM

LEARNING_RATE = 1e-3  # the best of three on the validation data: tests/benchmarks/README.md
RANK = 16
ALPHA = 32.0  # the same for every rank, as in the paper
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class FrozenLinear(nn.Linear):
    """A linear layer `y = x W^T` whose weight is not trained; it is shared, not copied.

    Args:
        linear: the layer whose weight it takes.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.weight.requires_grad_(False)
        self._cast: tuple[tuple, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(x, self._cast_weight())

    def _cast_weight(self) -> Tensor:
        """Return the weight in autocast's precision; as it is frozen, it is cast only once."""
        device = self.weight.device
        if not torch.is_autocast_enabled(device.type):
            return self.weight
        dtype = torch.get_autocast_dtype(device.type)
        made_of = (device, dtype, self.weight._version)  # the version counts changes in place
        if self._cast is None or self._cast[0] != made_of:
            with torch.inference_mode(False):  # training may use it after generation
                self._cast = made_of, self.weight.detach().to(dtype)
        return self._cast[1]


class LoRALinear(FrozenLinear):
    """A linear layer `y = x W^T + (alpha / r) x A^T B^T` in which only A and B are trained.

    Args:
        linear: the layer to adapt; its weight is shared, not copied.
        rank: r, the rank of the update.
        alpha: the update is scaled by `alpha / rank`.

    B starts at zero, so that the layer's output is unchanged at first; A starts as `nn.Linear` and
    PEFT start theirs.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear)
        self.rank, self.scaling = rank, alpha / rank
        like = {"device": linear.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        update = F.linear(self.scaling * F.linear(x, self.lora_A), self.lora_B)
        return super().forward(x) + update

    def merged(self) -> nn.Linear:
        """Return a plain linear layer with the update added to its weight."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        update = self.scaling * self.lora_B @ self.lora_A
        linear.weight = nn.Parameter((self.weight + update).detach())
        return linear


def replace_layers(
    model: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]
) -> None:
    """Put `make(layer)` in the place of every layer of type `kind` with a name in `TARGETS`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in TARGETS and type(child) is kind:
                setattr(parent, name, make(child))


def add_lora(model: CausalLM, rank: int = RANK, alpha: float = ALPHA, seed: int = 0) -> None:
    """Freeze `model` and put LoRA around the linear layers of attention and feed-forward, in place.

    Raises:
        ValueError: if the rank is not positive, or the model has LoRA layers already.
    """
    if rank < 1:
        raise ValueError(f"LoRA needs a rank of at least 1, not {rank}")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has LoRA layers already; merge LoRA first")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        replace_layers(model, nn.Linear, lambda linear: LoRALinear(linear, rank, alpha))


def merge_lora(model: CausalLM) -> None:
    """Add every update to its weight and put plain linear layers back, in place."""
    replace_layers(model, LoRALinear, LoRALinear.merged)
    model.requires_grad_(True)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters; tied weights count once."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return trainable, sum(p.numel() for p in parameters)
