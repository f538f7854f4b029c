"""The language model: a decoder of the Llama architecture, in readable parts.

Shapes in comments: B rows in a batch, T tokens in a row, S tokens seen (cache included), C hidden
size, H attention heads, D size of a head, V vocabulary. Parameters have the names of Hugging Face's
implementation, so its safetensors files load without a mapping.

Source: Touvron et al., 2023, https://arxiv.org/abs/2302.13971 (architecture); Ainslie et al., 2023,
https://arxiv.org/abs/2305.13245 (grouped-query attention).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model, under the names of Hugging Face's `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int  # tokens
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True


class KVCache:
    """The keys and values of the tokens seen so far, for every layer.

    Args:
        config: the model's configuration.
        rows: number of rows B.
        capacity: most tokens a row can hold.
        like: a tensor whose device and dtype are taken.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, like: Tensor) -> None:
        shape = (rows, config.num_key_value_heads, capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [like.new_empty(shape) for _ in layers]  # (B, H_kv, capacity, D) each
        self.values = [like.new_empty(shape) for _ in layers]
        self.length = 0  # tokens held

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append `k` and `v` (B, H_kv, T, D) of one layer; return all of that layer so far."""
        end, capacity = self.length + k.shape[2], self.keys[layer].shape[2]
        if end > capacity:  # an assignment to an empty slice would be silent
            raise ValueError(f"{end} tokens exceed the cache's capacity of {capacity}")
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep only the rows whose indices are given, in that order; an index may repeat."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale.

    Source: Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467, eq. 4.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension; computed in float32, returned in the dtype of `x`."""
        mean_square = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) ** 2 / x.shape[-1]
        return self.weight * (x.float() * torch.rsqrt(mean_square + self.eps)).to(x.dtype)


def rotary_angles(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines that encode positions.

    Args:
        position_ids: (B, T) integer positions.
        head_dim: D, even.
        theta: base of the wavelengths, in positions.

    Returns:
        Two float32 tensors (B, T, 1, D); the first half of the sines is negative, see `rotate`.

    Source: Su et al., 2021, https://arxiv.org/abs/2104.09864, eq. 15.
    """
    pairs = torch.arange(0, head_dim, 2, device=position_ids.device).float() / head_dim
    angles = position_ids[..., None].float() * theta**-pairs  # (B, T, D/2)
    cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]  # (B, T, 1, D/2)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of dimensions (i, i + D/2) of `x` (B, T, H, D) by the position's angle."""
    partner = x.roll(x.shape[-1] // 2, dims=-1)  # i and i + D/2 change places
    return (x * cos + partner * sin).to(x.dtype)


def spread(x: Tensor, rows: Tensor) -> Tensor:
    """Copy the tokens of one packed row to rows of their own.

    Args:
        x: (1, T, H, D).
        rows: (B, S), the place in the packed row that each token is copied from.

    Returns:
        (B, S, H, D)
    """
    # The look-up of an embedding: its gradient is summed faster than that of x[0, rows].
    return F.embedding(rows, x[0].flatten(1)).unflatten(-1, x.shape[2:])


def first_places(rows: Tensor, length: int) -> Tensor:
    """Return where each token of a packed row stands first in `rows`, counted row by row.

    Args:
        rows: (B, S) places in the packed row, -1 where there is no token.
        length: T, tokens of the packed row.

    Returns:
        (T,)
    """
    places = rows.flatten()
    here = (places >= 0).nonzero()[:, 0]
    last = torch.full((length,), len(places) - 1, device=rows.device)
    return last.scatter_reduce(0, places[here], here, "amin")


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, places: Tensor | None = None
) -> Tensor:
    """Mix the values of the tokens that each token may look at.

    Args:
        q: (B, H, T, D).
        k, v: (B, H_kv, S, D); each of their heads serves H / H_kv query heads.
        mask: see `Attention`.
        places: (N,), which of the B * T results to return, as one row; None for all.

    Returns:
        (B, T, H * D) or (1, N, H * D)
    """
    causal = mask is None and q.shape[2] > 1
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
    out = out.transpose(1, 2).flatten(2)
    return out if places is None else F.embedding(places, out.flatten(0, 1))[None]


class Attention(nn.Module):
    """Causal self-attention in which several query heads share one key and value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))  # (B, T, H, D)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        rows: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Attend from each of T tokens to those that `mask` allows.

        Args:
            x: (B, T, C).
            cos, sin: (B, T, 1, D), from `rotary_angles`.
            mask: boolean, broadcasts to (B, H, T, S); True where a query may look at a key. None
                means causal.
            cache: keys and values of earlier tokens.
            rows, places: of a packed row, where each attending row takes its tokens from (see
                `spread`), and where each token's result stands in these rows.

        Returns:
            (B, T, C)
        """
        q = rotate(self._heads(self.q_proj(x)), cos, sin)
        k = rotate(self._heads(self.k_proj(x)), cos, sin)
        v = self._heads(self.v_proj(x))
        if rows is not None:
            q, k, v = (spread(heads, rows) for heads in (q, k, v))
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        return self.o_proj(attend(q, k, v, mask, places))


class MLP(nn.Module):
    """The SwiGLU feed-forward layer. Source: Shazeer, 2020, https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then the feed-forward layer, each with a residual connection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, *context, keep: Tensor | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C), or to (N, C) for the N positions of `keep`.

        `context` is what `Attention` takes after `x`.
        """
        x = x + self.self_attn(self.input_layernorm(x), *context)
        x = x if keep is None else x[keep]
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and the last normalization."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class CausalLM(nn.Module):
    """A decoder with an output layer that scores every token of the vocabulary.

    Args:
        config: the sizes.

    New weights are random (normal, standard deviation 0.02).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self._initialize)
        self.tie_weights()

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def tie_weights(self) -> None:
        """Let the output layer share the embedding's weights, if the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return self.lm_head.weight.device

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rows: Tensor | None = None,
        keep: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Score the next token after each position.

        Args:
            input_ids: (B, T) token ids.
            position_ids: (B, T) or (1, T) positions; counted from the cache's length if None.
            attention_mask: boolean (B, T, S) or (1, T, S), True where a token may look at another;
                causal if None. Needed if the cache holds tokens and T > 1.
            rows: of several sequences packed on one row, (R, S): for each token of each sequence
                its place in the packed row, then -1. Tokens attend within their sequence only, and
                the cache gets a row for each. See `batching.pack`.
            keep: boolean (B, T); only these positions get logits.
            cache: keys and values of earlier tokens; the new ones are added.

        Returns:
            Logits (B, T, V), or (N, V) for the N positions of `keep`, row by row.
        """
        past = 0 if cache is None else cache.length
        T = input_ids.shape[1]
        if past and T > 1 and attention_mask is None:
            raise ValueError("several tokens after a filled cache need an attention_mask")
        if position_ids is None:
            position_ids = torch.arange(past, past + T, device=input_ids.device)[None]
        mask = None if attention_mask is None else attention_mask[:, None]  # (B, 1, T, S)
        layout = (None, None) if rows is None else (rows.clamp(min=0), first_places(rows, T))
        cos, sin = rotary_angles(position_ids, self.config.head_dim, self.config.rope_theta)
        x = self.model.embed_tokens(input_ids)  # (B, T, C)
        *blocks, last = self.model.layers
        for block in blocks:
            x = block(x, cos, sin, mask, cache, *layout)
        x = last(x, cos, sin, mask, cache, *layout, keep=keep)
        if cache is not None:
            cache.length += T if rows is None else rows.shape[1]
        return self.lm_head(self.model.norm(x))


def plain_weights(model: CausalLM) -> dict[str, Tensor]:
    """Return the weights by name, tied ones once.

    Raises:
        ValueError: if layers are wrapped, so that the weights alone are not the model.
    """
    weights = dict(model.state_dict())
    if any(".lora_" in name for name in weights):
        raise ValueError("the model has LoRA layers; merge_lora it, or save_adapter saves them")
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    return weights
