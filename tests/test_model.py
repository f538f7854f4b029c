from dataclasses import replace

import pytest
import torch

from supplementary.batching import pack
from supplementary.model import (
    CausalLM,
    KVCache,
    ModelConfig,
    RMSNorm,
    first_places,
    rotary_angles,
    rotate,
)


def tokens(*shape, seed=0):
    """Draw random token ids."""
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model, *arguments, **named):
    return model(*arguments, **named)


def difference(a, b):
    """Return the largest absolute difference of two tensors of the same shape."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.fixture
def reference(tiny_model, make_llama):
    """A `LlamaForCausalLM` with the weights of `tiny_model`."""
    llama = make_llama(vocab_size=97)
    llama.load_state_dict(tiny_model.state_dict())
    return llama


def test_logits_agree_with_transformers(tiny_model, reference):
    input_ids = tokens(3, 20)
    expected = logits_of(reference, input_ids).logits
    assert expected.std() > 1  # large enough for the comparison to mean something
    assert difference(logits_of(tiny_model, input_ids), expected) <= 1e-4


def test_logits_at_given_positions_agree_with_transformers(tiny_model, reference):
    input_ids = tokens(2, 6)
    position_ids = torch.tensor([[0, 1, 2, 7, 8, 9], [3, 4, 5, 3, 4, 5]])
    got = logits_of(tiny_model, input_ids, position_ids=position_ids)
    expected = logits_of(reference, input_ids, position_ids=position_ids).logits
    assert difference(got, expected) <= 1e-4
    assert difference(got, logits_of(tiny_model, input_ids)) > 0.01


def test_logits_of_the_workshops_model_agree_with_transformers(pretrained):
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model, tokenizer = pretrained
    config = LlamaConfig(**vars(model.config), attn_implementation="eager")
    with torch.device("meta"):
        reference = LlamaForCausalLM(config)
    reference.load_state_dict(model.state_dict(), assign=True)
    reference.model.rotary_emb = LlamaRotaryEmbedding(config)  # its buffers are no weights
    text = "### Instruction:\nWhat is an antonym of 'complicated'?\n\n### Response:\nSimple, 12."
    input_ids = torch.tensor([tokenizer.encode(text)])
    expected = logits_of(reference.eval(), input_ids).logits
    got = logits_of(model, input_ids)
    assert got.dtype == expected.dtype == torch.float32
    assert difference(got, expected) <= 1e-3


def test_the_workshops_model_knows_the_capital_of_france(pretrained):
    model, tokenizer = pretrained
    input_ids = torch.tensor([tokenizer.encode("The capital of France is")])
    assert tokenizer.decode([logits_of(model, input_ids)[0, -1].argmax().item()]) == " Paris"


def test_gradients_agree_with_transformers(tiny_model, reference):
    input_ids = tokens(2, 9)
    weights = torch.randn(2, 9, 97, generator=torch.Generator().manual_seed(1))
    (tiny_model(input_ids) * weights).sum().backward()
    (reference(input_ids).logits * weights).sum().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in tiny_model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (0, 5)])
def test_logits_have_a_score_for_every_token_of_the_vocabulary(tiny_model, shape):
    assert logits_of(tiny_model, tokens(*shape)).shape == (*shape, 97)


def test_a_later_token_changes_no_earlier_logits(tiny_model):
    first = tokens(1, 8)
    other = first.clone()
    other[0, 5] = (first[0, 5] + 1) % 97
    got, expected = logits_of(tiny_model, other), logits_of(tiny_model, first)
    assert difference(got[:, :5], expected[:, :5]) <= 1e-5
    assert difference(got[:, 5:], expected[:, 5:]) > 0.01


def test_padding_on_the_right_changes_no_logits_of_the_real_tokens(tiny_model):
    rows = [tokens(length, seed=length) for length in (1, 4, 9)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=2)
    got = logits_of(tiny_model, padded)
    for row, logits in zip(rows, got, strict=True):
        assert difference(logits[: len(row)], logits_of(tiny_model, row[None])[0]) <= 1e-5


def test_keep_gives_the_logits_of_the_chosen_positions_row_by_row(tiny_model):
    input_ids = tokens(2, 5)
    keep = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]]).bool()
    whole = logits_of(tiny_model, input_ids)
    expected = torch.stack([whole[0, 1], whole[0, 4], whole[1, 0]])
    assert difference(logits_of(tiny_model, input_ids, keep=keep), expected) <= 1e-5


def test_keeping_no_position_gives_no_logits(tiny_model):
    keep = torch.zeros(2, 5, dtype=torch.bool)
    assert logits_of(tiny_model, tokens(2, 5), keep=keep).shape == (0, 97)


def test_only_the_distance_between_positions_matters(tiny_model):
    input_ids, positions = tokens(2, 6), torch.arange(6)[None]
    plain = logits_of(tiny_model, input_ids)
    shifted = logits_of(tiny_model, input_ids, position_ids=positions + 40)
    spread = logits_of(tiny_model, input_ids, position_ids=positions * 3)
    assert difference(shifted, plain) <= 1e-3
    assert difference(spread, plain) > 0.01


def test_positions_of_one_row_serve_every_row(tiny_model):
    input_ids, positions = tokens(3, 4), torch.tensor([[2, 3, 5, 8]])
    got = logits_of(tiny_model, input_ids, position_ids=positions)
    expected = logits_of(tiny_model, input_ids, position_ids=positions.expand(3, 4))
    assert difference(got, expected) == 0
    assert difference(got, logits_of(tiny_model, input_ids)) > 0.01


def test_a_causal_mask_is_what_no_mask_means(tiny_model):
    input_ids, mask = tokens(2, 6), torch.ones(1, 6, 6, dtype=torch.bool)
    plain = logits_of(tiny_model, input_ids)
    assert difference(logits_of(tiny_model, input_ids, attention_mask=mask.tril()), plain) <= 1e-5
    assert difference(logits_of(tiny_model, input_ids, attention_mask=mask), plain) > 0.01


def test_each_row_obeys_its_own_mask(tiny_model):
    row = tokens(1, 6)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    apart = causal.clone()
    apart[3:, :3] = False
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2]])
    got = logits_of(
        tiny_model,
        row.expand(2, 6),
        position_ids=positions,
        attention_mask=torch.stack([causal, apart]),
    )
    assert difference(got[:1], logits_of(tiny_model, row)) <= 1e-5
    assert difference(got[1:, :3], logits_of(tiny_model, row[:, :3])) <= 1e-5
    assert difference(got[1:, 3:], logits_of(tiny_model, row[:, 3:])) <= 1e-5


def cache_for(model, rows, capacity):
    return KVCache(model.config, rows, capacity, like=model.lm_head.weight)


@pytest.mark.parametrize("prompt", [1, 5])
def test_logits_with_a_cache_equal_those_without(tiny_model, prompt):
    input_ids = tokens(2, 9)
    cache = cache_for(tiny_model, 2, 9)
    with torch.no_grad():
        parts = [tiny_model(input_ids[:, :prompt], cache=cache)]
        parts += [tiny_model(input_ids[:, t : t + 1], cache=cache) for t in range(prompt, 9)]
    assert cache.length == 9
    assert difference(torch.cat(parts, dim=1), logits_of(tiny_model, input_ids)) <= 1e-4


def test_several_tokens_after_a_filled_cache_are_scored_as_without_it(tiny_model):
    input_ids = tokens(2, 9)
    cache = cache_for(tiny_model, 2, 12)
    logits_of(tiny_model, input_ids[:, :4], cache=cache)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()[None, 4:]  # (1, 5, 9)
    got = logits_of(tiny_model, input_ids[:, 4:], attention_mask=mask, cache=cache)
    assert difference(got, logits_of(tiny_model, input_ids)[:, 4:]) <= 1e-4


def test_several_tokens_after_a_filled_cache_need_a_mask(tiny_model):
    cache = cache_for(tiny_model, 1, 8)
    logits_of(tiny_model, tokens(1, 3), cache=cache)
    with pytest.raises(ValueError, match="attention_mask"):
        tiny_model(tokens(1, 2), cache=cache)
    assert cache.length == 3


def test_a_cache_keeps_the_rows_that_are_selected_in_their_order(tiny_model):
    input_ids = tokens(3, 6)
    cache = cache_for(tiny_model, 3, 6)
    logits_of(tiny_model, input_ids[:, :5], cache=cache)
    rows = torch.tensor([2, 0, 2])
    cache.select(rows)
    got = logits_of(tiny_model, input_ids[rows, 5:], cache=cache)
    assert difference(got, logits_of(tiny_model, input_ids[rows])[:, 5:]) <= 1e-4


def test_a_full_cache_refuses_another_token(tiny_model):
    cache = cache_for(tiny_model, 1, 4)
    logits_of(tiny_model, tokens(1, 3), cache=cache)
    logits_of(tiny_model, tokens(1, 1), cache=cache)
    with pytest.raises(ValueError, match="capacity"):
        tiny_model(tokens(1, 1), cache=cache)


def test_tied_embeddings_are_one_tensor_and_untied_ones_are_two(tiny_config):
    tied = CausalLM(tiny_config)
    untied = CausalLM(replace(tiny_config, tie_word_embeddings=False))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    sizes = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    # 97 * 32 embedding; a layer has q, o 32 * 32; k, v 32 * 16; the feed-forward 3 * 32 * 64; norms
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert sizes == [97 * 32 + 2 * layer + 32, 2 * 97 * 32 + 2 * layer + 32]


def test_parameters_have_the_names_and_shapes_of_transformers(tiny_model, reference):
    ours = {name: tensor.shape for name, tensor in tiny_model.state_dict().items()}
    assert ours == {name: tensor.shape for name, tensor in reference.state_dict().items()}


def test_new_weights_depend_on_the_seed_alone(tiny_config):
    models = []
    for seed in (5, 5, 6):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            models.append(CausalLM(tiny_config).state_dict())
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(models[0][name], models[1][name])
    assert not torch.equal(models[0][name], models[2][name])
    assert models[0][name].std().item() == pytest.approx(0.02, rel=0.1)


def test_a_head_may_be_wider_than_its_share_of_the_hidden_size(make_llama):
    sizes = {
        "vocab_size": 97,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-2,
        "tie_word_embeddings": False,
    }
    reference = make_llama(**sizes)
    model = CausalLM(ModelConfig(**sizes))
    model.load_state_dict(reference.state_dict())
    input_ids = tokens(2, 30)
    expected = logits_of(reference, input_ids).logits
    assert difference(logits_of(model, input_ids), expected) <= 1e-4


def test_first_places_skip_padding_and_repeats():
    rows = torch.tensor([[0, 1, 2, -1], [0, 1, 3, 4], [0, 1, 5, -1]])
    assert first_places(rows, 6).tolist() == [0, 1, 2, 6, 7, 10]


def test_sequences_packed_on_one_row_get_the_logits_that_each_gets_alone(tiny_model):
    sequences = [[1, 2, 3, 4, 5], [1, 2, 6], [1, 2, 7, 8]]
    batch = pack(sequences, prefix_length=2)
    cache = KVCache(tiny_model.config, 3, 5, torch.zeros(0))
    logits = logits_of(tiny_model, **batch, cache=cache)[0]
    assert cache.length == 5
    for row, sequence in zip(batch["rows"], sequences, strict=True):
        alone = logits_of(tiny_model, torch.tensor([sequence]))[0]
        assert difference(logits[row[: len(sequence)]], alone) <= 1e-5


def test_normalization_is_computed_in_float32_under_autocast_too():
    norm = RMSNorm(64, 1e-5)
    x = 1000 * torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    expected = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(norm(x), expected)


def test_normalization_of_zeros_has_a_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    RMSNorm(8, 1e-5)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 8), 1e-5**-0.5))


def test_rotation_turns_each_pair_by_its_own_angle():
    cos, sin = rotary_angles(torch.tensor([[0, 3]]), head_dim=4, theta=100.0)
    assert cos.shape == sin.shape == (1, 2, 1, 4)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 2, 1, 4)
    first, second = rotate(x, cos, sin)[0, :, 0]
    assert first.tolist() == [1.0, 2.0, 3.0, 4.0]
    # The angles at position 3 are 3 * 100**0 for the pair (1, 3) and 3 * 100**-0.5 for (2, 4).
    a, b = torch.tensor(3.0), torch.tensor(0.3)
    expected = torch.stack(
        [
            1 * a.cos() - 3 * a.sin(),
            2 * b.cos() - 4 * b.sin(),
            3 * a.cos() + 1 * a.sin(),
            4 * b.cos() + 2 * b.sin(),
        ]
    )
    torch.testing.assert_close(second, expected)


def test_a_bfloat16_model_gives_bfloat16_logits_close_to_those_of_float32(tiny_model):
    input_ids = tokens(1, 6)
    expected = logits_of(tiny_model, input_ids)
    got = logits_of(tiny_model.bfloat16(), input_ids)
    assert got.dtype == torch.bfloat16
    assert difference(got.float(), expected) < 0.1 * expected.std()
