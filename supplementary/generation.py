"""Generation: tokens one after the other, for many prompts at once, with a key-value cache."""

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .batching import pack, shared_prefix_length
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


def _read_prompts(
    model: CausalLM, prompts: list[list[int]], capacity: int
) -> tuple[Tensor, KVCache, Tensor]:
    """Run the prompts through the model, packed on one row: what all begin with is computed once.

    Returns:
        The logits after each prompt (B, V), the filled cache, and a boolean (B, S) that is False
        where the cache holds nothing: behind prompts that are shorter than the longest.
    """
    device = model.device
    batch = pack(prompts, shared_prefix_length(prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    last = batch["rows"].gather(1, lengths - 1)  # (B, 1), places in the packed row
    batch["keep"] = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
    batch["keep"][0, last[:, 0]] = True
    dtype = torch.get_default_dtype()
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    like = torch.empty(0, device=device, dtype=dtype)
    cache = KVCache(model.config, len(prompts), capacity, like)
    logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}, cache=cache)
    return logits, cache, (batch["rows"] >= 0).to(device)


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
    the model's context is full; it then leaves the batch. The precision is the caller's: within one
    `autocast` the weights are cast once (under `no_grad`; in inference mode at every step).
    """
    context, longest = model.config.max_position_embeddings, max(map(len, prompts))
    if longest >= context:
        raise ValueError(
            f"a prompt of {longest} tokens leaves no room in the model's context of {context}"
        )
    room = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
    limit = max(room)
    with torch.no_grad():
        logits, cache, real = _read_prompts(model, prompts, longest + limit)
    rows = list(range(len(prompts)))
    room = torch.tensor(room, device=model.device)
    for step in range(limit):
        with torch.no_grad():
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
        with torch.no_grad():
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
    batch_size: int = 56,
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
    with autocast(model.device, pick_precision(model.device)):
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
