"""Generation: tokens one after the other, for many prompts at once, with a key-value cache."""

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .data import encode_prompt
from .hardware import autocast, pick_precision
from .model import CausalLM, KVCache
from .prompts import Entry
from .tokenizer import Tokenizer


def sample(
    logits: Tensor,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose the next token of each row.

    Args:
        logits: (B, V).
        temperature: 0 takes the most likely token; larger values flatten the distribution.
        top_p: sample among the most likely tokens that together have at least this probability.
        generator: source of randomness.

    Returns:
        Token ids (B,).

    Source: Holtzman et al., 2020, https://arxiv.org/abs/1904.09751 (top-p).
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        ordered, tokens = probabilities.sort(descending=True)  # (B, V)
        before = ordered.cumsum(-1) - ordered  # probability of everything more likely
        ordered[before >= top_p] = 0
        probabilities = torch.zeros_like(ordered).scatter(-1, tokens, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _common_prefix(prompts: list[list[int]]) -> int:
    """Return how many tokens all prompts begin with, leaving each at least one."""
    limit = min(len(prompt) for prompt in prompts) - 1
    for i in range(limit):
        if any(prompt[i] != prompts[0][i] for prompt in prompts):
            return i
    return limit


def _read_prompts(
    model: CausalLM, prompts: list[list[int]], capacity: int
) -> tuple[Tensor, KVCache, Tensor]:
    """Run the prompts through the model: the common beginning once, the rest padded on the left.

    Returns:
        The logits after each prompt (B, V), the filled cache, and a boolean (B, S) that is False
        where the cache holds padding.
    """
    device, rows = model.device, len(prompts)
    prefix = _common_prefix(prompts)
    dtype = torch.empty(0, device=device, dtype=torch.get_default_dtype())
    if torch.is_autocast_enabled(device.type):
        dtype = dtype.to(torch.get_autocast_dtype(device.type))
    cache = KVCache(model.config, 1 if prefix else rows, capacity, like=dtype)
    if prefix:
        nothing = torch.zeros(1, prefix, dtype=torch.bool, device=device)
        model(torch.tensor([prompts[0][:prefix]], device=device), keep=nothing, cache=cache)
        cache.select(torch.zeros(rows, dtype=torch.long, device=device))
    width = max(len(prompt) for prompt in prompts) - prefix
    input_ids = torch.zeros(rows, width, dtype=torch.long)
    real = torch.zeros(rows, prefix + width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        rest = prompt[prefix:]
        input_ids[row, width - len(rest) :] = torch.tensor(rest)
        real[row, :prefix] = real[row, prefix + width - len(rest) :] = True
    positions = (real.cumsum(1) - 1).clamp(min=0)[:, prefix:]
    visible = real[:, None] & torch.ones(width, prefix + width, dtype=torch.bool).tril(prefix)
    # Padding sees itself: a row of attention that sees nothing would be nan.
    visible |= torch.eye(prefix + width, dtype=torch.bool)[prefix:]
    last = torch.zeros(rows, width, dtype=torch.bool)
    last[:, -1] = True
    inputs = (tensor.to(device) for tensor in (input_ids, positions, visible, last))
    return model(*inputs, cache=cache), cache, real.to(device)


def generate_steps(
    model: CausalLM,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos_token_id: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Generate for all prompts at once and yield, step by step, (row, token) for each live row.

    A row ends with the end-of-text token, which is not yielded, after `max_new_tokens`, or where
    the model's context is full; it then leaves the batch.
    """
    context, longest = model.config.max_position_embeddings, max(map(len, prompts))
    if longest >= context:
        raise ValueError(
            f"a prompt of {longest} tokens leaves no room in the model's context of {context}"
        )
    room = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
    limit = max(room)
    precision = pick_precision(model.device)
    with torch.inference_mode(), autocast(model.device, precision):
        logits, cache, real = _read_prompts(model, prompts, longest + limit)
    rows = list(range(len(prompts)))
    room = torch.tensor(room, device=model.device)
    for step in range(limit):
        with torch.inference_mode(), autocast(model.device, precision):
            tokens = sample(logits, temperature, top_p, generator)
            live = ((tokens != eos_token_id) & (step < room)).nonzero()[:, 0]
            if len(live) < len(rows):
                rows = [rows[i] for i in live.tolist()]
                tokens, real, room = tokens[live], real[live], room[live]
                cache.select(live)
        if not rows:
            return
        yield list(zip(rows, tokens.tolist(), strict=True))
        if step + 1 == limit:
            return
        with torch.inference_mode(), autocast(model.device, precision):
            real = torch.cat([real, real.new_ones(len(rows), 1)], dim=1)
            positions = real.sum(1, keepdim=True) - 1
            mask = None if bool(real.all()) else real[:, None]
            logits = model(tokens[:, None], positions, mask, cache=cache)[:, -1]


def generate(
    model: CausalLM,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos_token_id: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    batch_size: int = 28,
    progress: bool = False,
) -> list[list[int]]:
    """Generate a continuation of each prompt.

    Args:
        model: the model; it should be in evaluation mode.
        prompts: token ids of each prompt, at least one token each.
        max_new_tokens: most tokens to generate for a prompt.
        eos_token_id: the token that ends a response; it is not part of the result.
        temperature, top_p, generator: see `sample`.
        batch_size: prompts computed at once, those of similar length together.
        progress: whether to show a bar.

    Returns:
        The new token ids for each prompt, in the order of `prompts`.

    Raises:
        ValueError: if a prompt is empty or leaves no room in the model's context.
    """
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt is empty; give at least one token")
    responses = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    bar = tqdm(total=len(order), desc="responses", disable=not progress)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        steps = generate_steps(
            model,
            [prompts[i] for i in indices],
            max_new_tokens,
            eos_token_id,
            temperature,
            top_p,
            generator,
        )
        for step in steps:
            for row, token in step:
                responses[indices[row]].append(token)
        bar.update(len(indices))
    bar.close()
    return responses


def respond(
    model: CausalLM,
    tokenizer: Tokenizer,
    entries: list[Entry],
    style: str = "alpaca",
    max_new_tokens: int = 64,
    progress: bool = False,
) -> list[str]:
    """Let the model answer the entries' instructions, greedily.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        entries: only their instructions and inputs are read.
        style: the prompt format.
        max_new_tokens: most tokens of a response.
        progress: whether to show a bar.

    Returns:
        The text of each response, without white space around it.
    """
    prompts = [encode_prompt(entry, tokenizer, style) for entry in entries]
    eos = tokenizer.eos_token_id
    responses = generate(model, prompts, max_new_tokens, eos, progress=progress)
    return [tokenizer.decode(tokens).strip() for tokens in responses]
