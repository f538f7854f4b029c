"""The exercises of notebook 05: rank and budget, other layers, an extracted adapter, other data."""

import math

import torch
from torch import Tensor, nn

from ..lora import TARGETS, LoRALinear
from ..model import CausalLM
from ..prompts import Entry
from .batching import TINY
from .check import Check

Shapes = list[tuple[int, int]]


def largest_rank(budget: int, shapes: Shapes) -> int:
    """Return the largest rank at which LoRA on these layers trains at most `budget` numbers."""
    return budget // sum(n_out + n_in for n_out, n_in in shapes)


def _fraction(budget: int, shapes: Shapes) -> float:
    return budget / sum(n_out + n_in for n_out, n_in in shapes)


check_largest_rank = Check(
    solution=largest_rank,
    cases=lambda: {
        "q_proj and v_proj of a block": (50_000, [(576, 576), (192, 576)]),
        "a budget that is used up exactly": (36, [(4, 8)]),
        "a budget that is too small": (5, [(4, 8)]),
        "a budget that is nearly enough for one rank more": (35, [(4, 8)]),
    },
    mistakes={
        "the numbers of W itself are counted; they are frozen": lambda budget, shapes: (
            budget // sum(n_out * n_in for n_out, n_in in shapes)
        ),
        "only A is counted; B has as many rows as the layer has outputs": lambda budget, shapes: (
            budget // sum(n_in for _, n_in in shapes)
        ),
        "only B is counted; A has as many columns as the layer has inputs": (
            lambda budget, shapes: budget // sum(n_out for n_out, _ in shapes)
        ),
        "the rank is rounded up, which is over the budget": lambda budget, shapes: math.ceil(
            _fraction(budget, shapes)
        ),
        "the rank is rounded to the nearest number, which can be over the budget": (
            lambda budget, shapes: round(_fraction(budget, shapes))
        ),
        "this is a fraction; a rank counts rows and columns, so it is a whole number": _fraction,
        "a rank of 1 is over this budget; nothing fits, so the answer is 0": lambda *given: max(
            1, largest_rank(*given)
        ),
        "each layer gets the whole budget; they share it": lambda budget, shapes: min(
            budget // (n_out + n_in) for n_out, n_in in shapes
        ),
    },
)


def extract_adapter(update: Tensor, rank: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Return A and B whose scaled product is the best part of `update` of that rank."""
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    return Vh[:rank], U[:, :rank] * S[:rank] * (rank / alpha)


def _spoiled(values: str):
    """Return an `extract_adapter` with another use of the singular values, or of the scaling."""

    def extract(update: Tensor, rank: int, alpha: float) -> tuple[Tensor, Tensor]:
        U, S, Vh = torch.linalg.svd(update, full_matrices=False)
        first = slice(-rank, None) if values == "last" else slice(rank)
        S = {"none": torch.ones_like(S), "twice": S**2}.get(values, S)
        scales = {"unscaled": 1.0, "inverse": alpha / rank, "in both": (rank / alpha) ** 2}
        scale = scales.get(values, rank / alpha)
        return Vh[first], U[:, first] * S[first] * scale

    return extract


def _columns(update: Tensor, rank: int, alpha: float) -> tuple[Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    return Vh.T[:rank], U[:, :rank] * S[:rank] * (rank / alpha)


def _update(n_out: int, n_in: int) -> Tensor:
    return torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(0))


def view_factors(factors: tuple[Tensor, Tensor]) -> dict:
    """Return the shapes of A and B, and their product; how it is split between them is free."""
    A, B = factors
    shapes = {"shape of A": tuple(A.shape), "shape of B": tuple(B.shape)}
    product = (B @ A).double() if B.shape[-1] == A.shape[0] else "their shapes do not fit"
    return shapes | {"B A": product}


check_extract_adapter = Check(
    solution=extract_adapter,
    cases=lambda: {
        "a matrix of 3 x 4, rank 2, alpha 8": (_update(3, 4), 2, 8.0),
        "a square matrix, rank 1, alpha 32": (_update(5, 5), 1, 32.0),
        "an update of exactly that rank": (_update(6, 1) @ _update(1, 4), 1, 1.0),
    },
    mistakes={
        "the scaling is forgotten: the layer multiplies B A by alpha / r": _spoiled("unscaled"),
        "the layer multiplies B A by alpha / r, so divide by it here": _spoiled("inverse"),
        "the scaling is made up for twice, in A and in B; the layer applies it once": (
            _spoiled("in both")
        ),
        "the singular values are missing; U and Vh are only directions": _spoiled("none"),
        "the singular values are in both factors, so the product has their squares": (
            _spoiled("twice")
        ),
        "these are the shortest pieces; the singular values fall": _spoiled("last"),
        "the rows of Vh are the directions, not its columns": _columns,
        "A and B are swapped: A (r x in) comes first": lambda *given: extract_adapter(*given)[::-1],
    },
    view=view_factors,
)


def add_lora_to(model: CausalLM, targets: list[str], rank: int, alpha: float) -> None:
    """Freeze the model and put LoRA around the linear layers with these names, in place."""
    _wrap(model, lambda name: name in targets, rank, alpha)


def _wrap(model: CausalLM, chosen, rank: int, alpha: float, freeze: str = "before") -> None:
    if freeze == "before":
        model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and chosen(name):
                setattr(parent, name, LoRALinear(child, rank, alpha))
    if freeze == "after":
        model.requires_grad_(False)


def _wrapping(matches, freeze: str = "before"):
    """Return an `add_lora_to` that wraps the layers with `matches(name, targets)`."""

    def add(model: CausalLM, targets: list[str], rank: int, alpha: float) -> None:
        _wrap(model, lambda name: matches(name, targets), rank, alpha, freeze)

    return add


def _swapped_numbers(model: CausalLM, targets: list[str], rank: int, alpha: float) -> None:
    add_lora_to(model, targets, alpha, rank)


def _at_the_root(model: CausalLM, targets: list[str], rank: int, alpha: float) -> None:
    model.requires_grad_(False)
    for name, child in list(model.named_modules()):
        if name.rpartition(".")[2] in targets:
            setattr(model, name, LoRALinear(child, rank, alpha))


def _only_frozen(model: CausalLM, targets: list[str], rank: int, alpha: float) -> None:
    model.requires_grad_(False)


def random_model() -> CausalLM:
    """Return a new small model, each time the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CausalLM(TINY)


@torch.no_grad()
def view_layers(model: CausalLM) -> dict:
    """Return which layers of a small model have LoRA, what is trained, and what LoRA changes."""
    modules = {name: model.get_submodule(name) for name, _ in model.named_modules()}
    lora = {n: m for n, m in modules.items() if type(m).__name__ == LoRALinear.__name__}
    input_ids = torch.arange(6)[None]
    before, at_first = random_model()(input_ids), model(input_ids)
    for module in lora.values():
        module.lora_B.fill_(1.0)
    return {
        "LoRA around": [name.removeprefix("model.layers.") for name in lora],
        "scaling": sorted({module.scaling for module in lora.values()}),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "output unchanged at first": torch.equal(at_first, before),
        "output changed by B": not torch.equal(model(input_ids), at_first),
    }


check_add_lora_to = Check(
    solution=add_lora_to,
    cases=lambda: {
        "q_proj and v_proj of a small model": (random_model(), ["q_proj", "v_proj"], 4, 8),
        "the feed-forward layers": (random_model(), ["up_proj", "down_proj"], 2, 32),
        "names that only resemble those of layers": (random_model(), ["proj", "old_q_proj"], 4, 8),
    },
    mistakes={
        "the model is not frozen: all other parameters are trained, too": _wrapping(
            lambda name, targets: name in targets, freeze="never"
        ),
        "the model is frozen after A and B are there, so nothing is trained": _wrapping(
            lambda name, targets: name in targets, freeze="after"
        ),
        "`targets` is not used: all linear layers are wrapped, the output layer, too": _wrapping(
            lambda name, targets: True
        ),
        "`targets` is not used: seven layers of each block are wrapped, whatever is asked for": (
            _wrapping(lambda name, targets: name in TARGETS)
        ),
        "a layer is wrapped if a target is part of its name; the names must match exactly": (
            _wrapping(lambda name, targets: any(target in name for target in targets))
        ),
        "a layer is wrapped if its name is part of a target; the names must match exactly": (
            _wrapping(lambda name, targets: any(name in target for target in targets))
        ),
        "rank and alpha are swapped": _swapped_numbers,
        "the model is frozen, but none of its layers is replaced": _only_frozen,
        "the new layers hang at the model itself under names with dots, where no forward pass "
        "looks; the old ones still do the work": _at_the_root,
        "the given model is as it was; it has to be changed in place": lambda *arguments: None,
    },
    view=view_layers,
    in_place=True,
)


def to_entries(conversations: list[dict]) -> list[Entry]:
    """Return an entry for the first question and answer of each conversation that has both."""
    entries = []
    for conversation in conversations:
        texts = {}
        for message in conversation["messages"]:
            texts.setdefault(message["role"], message["content"].strip())
        if texts.get("user") and texts.get("assistant"):
            system, user = texts.get("system", ""), texts["user"]
            instruction, text = (system, user) if system else (user, "")
            entries.append({"instruction": instruction, "input": text})
            entries[-1]["output"] = texts["assistant"]
    return entries


def _converted(conversations: list[dict], mistake: str) -> list[Entry]:
    entries = []
    for conversation in conversations:
        texts = {}
        for message in conversation["messages"]:
            if mistake == "last" or message["role"] not in texts:
                content = message["content"]
                texts[message["role"]] = content if mistake == "strip" else content.strip()
        system, user, output = (texts.get(role, "") for role in ("system", "user", "assistant"))
        wanted = {
            "all": True,
            "no question": output,
            "white space": {"user", "assistant"} <= texts.keys(),
        }
        if not wanted.get(mistake, user and output):
            continue
        first = {
            "lost": False,
            "always": True,
            "empty system": "system" in texts,
        }.get(mistake, system)
        instruction, text = (system, user) if first else (user, "")
        if mistake == "order":
            instruction, text = user, system
        entries.append({"instruction": instruction, "input": text, "output": output})
        if mistake == "no input" and not text:
            del entries[-1]["input"]
    return entries


def _mistaken(mistake: str):
    return lambda conversations: _converted(conversations, mistake)


def _talk(*messages: str) -> dict:
    """Write a conversation; each message is "role: content"."""
    pairs = [message.split(": ", 1) for message in messages]
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


check_to_entries = Check(
    solution=to_entries,
    cases=lambda: {
        "two conversations": (
            [
                _talk("user: Name a primary colour.", "assistant: Red"),
                _talk("system: Answer in capitals.", "user: Is ice cold?", "assistant: YES"),
            ],
        ),
        "a second turn, and white space": (
            [_talk("user: Say hi.\n", "assistant: Hi. ", "user: Again!", "assistant: Hi again.")],
        ),
        "a question without an answer, and an empty answer": (
            [_talk("user: Are you there?"), _talk("user: And now?", "assistant:  ")],
        ),
        "an answer without a question": ([_talk("system: Be kind.", "assistant: Hello!")],),
        "an empty system message": ([_talk("system:  ", "user: Is ice cold?", "assistant: Yes.")],),
    },
    mistakes={
        "the system message is lost; it is the instruction, and the question its input": (
            _mistaken("lost")
        ),
        "with a system message, that is the instruction and the question the input": (
            _mistaken("order")
        ),
        "without a system message, the question is the instruction, and the input is empty": (
            _mistaken("always")
        ),
        "an empty system message counts as none; the question is the instruction then": (
            _mistaken("empty system")
        ),
        "the last question is taken; without the turns before it, it cannot be understood": (
            _mistaken("last")
        ),
        "white space around the texts stays; the model would learn it": _mistaken("strip"),
        "nothing is left out; without a question or an answer there is nothing to learn": (
            _mistaken("all")
        ),
        "an answer of white space alone counts as an answer; it teaches silence": (
            _mistaken("white space")
        ),
        "a conversation without a question becomes an entry; its answer answers nothing": (
            _mistaken("no question")
        ),
        "an entry lacks the key `input`; it is empty, not absent": _mistaken("no input"),
    },
)
