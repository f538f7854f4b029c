import math

import pytest
import torch
from torch import nn

from supplementary.lora import TARGETS, LoRALinear, add_lora, count_parameters, merge_lora
from supplementary.model import CausalLM, ModelConfig

INPUT_IDS = torch.tensor([[5, 17, 17, 2, 96, 0, 41]])


def logits_of(model):
    with torch.no_grad():
        return model(INPUT_IDS)


def lora_layers(model):
    return [module for module in model.modules() if isinstance(module, LoRALinear)]


def disturb(model):
    """Give the updates the size that they have after training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in lora_layers(model):
            layer.lora_B.normal_(std=0.05, generator=generator)


def test_output_is_unchanged_bit_for_bit_at_first(tiny_model):
    before = logits_of(tiny_model)
    add_lora(tiny_model, rank=4)
    assert torch.equal(logits_of(tiny_model), before)
    disturb(tiny_model)
    assert not torch.equal(logits_of(tiny_model), before)


def test_every_linear_layer_but_the_output_layer_is_adapted(tiny_model):
    add_lora(tiny_model, rank=4)
    names = [name for name, m in tiny_model.named_modules() if isinstance(m, LoRALinear)]
    assert len(names) == 2 * 7
    assert {name.split(".")[-1] for name in names} == set(TARGETS)
    assert type(tiny_model.lm_head) is nn.Linear


def test_a_layer_computes_the_equation_of_the_paper():
    linear = nn.Linear(6, 5, bias=False)
    layer = LoRALinear(linear, rank=2, alpha=3.0)
    with torch.no_grad():
        layer.lora_B.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))
    expected = x @ linear.weight.T + (3.0 / 2) * x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight is linear.weight
    assert [layer.weight.requires_grad, layer.lora_A.requires_grad] == [False, True]


def test_a_starts_as_a_linear_layer_does_and_b_at_zero(tiny_model):
    add_lora(tiny_model, rank=4)
    for layer in lora_layers(tiny_model):
        limit = 1 / math.sqrt(layer.in_features)
        assert 0.7 * limit < layer.lora_A.abs().max() <= limit
        assert not layer.lora_B.any()


def test_merged_equals_unmerged(tiny_model):
    add_lora(tiny_model, rank=4, alpha=8.0)
    disturb(tiny_model)
    unmerged = logits_of(tiny_model)
    merge_lora(tiny_model)
    assert lora_layers(tiny_model) == []
    assert (logits_of(tiny_model) - unmerged).abs().max() <= 1e-5 * unmerged.abs().max()


def test_a_merged_model_has_the_parameters_of_a_plain_one(tiny_model, tiny_config):
    plain = CausalLM(tiny_config).state_dict()
    add_lora(tiny_model)
    merge_lora(tiny_model)
    merged = tiny_model.state_dict()
    assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in plain.items()}
    assert all(parameter.requires_grad for parameter in tiny_model.parameters())
    assert tiny_model.lm_head.weight is tiny_model.model.embed_tokens.weight


def test_a_merged_model_can_be_adapted_again(tiny_model):
    add_lora(tiny_model, rank=4)
    disturb(tiny_model)
    merge_lora(tiny_model)
    before = logits_of(tiny_model)
    add_lora(tiny_model, rank=2)
    assert torch.equal(logits_of(tiny_model), before)


def test_merging_leaves_the_shared_weight_of_the_original_layer_alone():
    linear = nn.Linear(6, 5, bias=False)
    before = linear.weight.clone()
    layer = LoRALinear(linear, rank=2, alpha=4.0)
    nn.init.ones_(layer.lora_B)
    merged = layer.merged()
    torch.testing.assert_close(merged.weight, before + 2 * layer.lora_B @ layer.lora_A)
    assert torch.equal(linear.weight, before)


def test_only_a_and_b_get_gradients_and_move(tiny_model):
    add_lora(tiny_model, rank=4)
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    trainable = [p for p in tiny_model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    for _ in range(2):  # in the first step B is zero, so A has no gradient yet
        optimizer.zero_grad()
        tiny_model(INPUT_IDS).pow(2).mean().backward()
        optimizer.step()
    for name, parameter in tiny_model.named_parameters():
        is_lora = name.endswith(("lora_A", "lora_B"))
        assert parameter.requires_grad == is_lora, name
        assert (parameter.grad is not None) == is_lora, name
        assert torch.equal(parameter, before[name]) != is_lora, name


@pytest.mark.parametrize("rank", [1, 4])
def test_the_numbers_of_parameters_are_those_computed_by_hand(tiny_model, rank):
    # Of each matrix (out, in), A has rank * in and B has out * rank numbers:
    # q and o 32 + 32, k and v 32 + 16, gate and up and down 32 + 64; two layers.
    lora = 2 * rank * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    plain = 97 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    assert count_parameters(tiny_model) == (plain, plain)  # the tied output layer counts once
    add_lora(tiny_model, rank=rank)
    assert count_parameters(tiny_model) == (lora, plain + lora)
    merge_lora(tiny_model)
    assert count_parameters(tiny_model) == (plain, plain)


def test_rank_16_gives_smollm2_135m_its_4_9_million_trainable_numbers():
    config = ModelConfig(49_152, 576, 1_536, 30, 9, 3, 64, 8_192)
    with torch.device("meta"):
        model = CausalLM(config)
        add_lora(model, rank=16)
    layer = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1_536)
    assert count_parameters(model)[0] == 30 * 16 * layer == 4_884_480


def test_a_second_add_lora_is_refused_and_changes_nothing(tiny_model):
    add_lora(tiny_model, rank=4)
    disturb(tiny_model)
    before, counts = logits_of(tiny_model), count_parameters(tiny_model)
    with pytest.raises(ValueError, match="merge LoRA first"):
        add_lora(tiny_model, rank=4)
    assert torch.equal(logits_of(tiny_model), before)
    assert count_parameters(tiny_model) == counts


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused_and_changes_nothing(tiny_model, rank):
    counts = count_parameters(tiny_model)
    with pytest.raises(ValueError, match=f"rank of at least 1, not {rank}"):
        add_lora(tiny_model, rank=rank)
    assert count_parameters(tiny_model) == counts


def test_a_seed_gives_the_same_start_again_and_another_seed_another(tiny_config):
    starts = []
    for seed in (7, 7, 8):
        model = CausalLM(tiny_config)
        add_lora(model, rank=4, seed=seed)
        starts.append(torch.cat([layer.lora_A.flatten() for layer in lora_layers(model)]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_adding_lora_leaves_the_global_random_state_alone(tiny_model):
    state = torch.get_rng_state()
    add_lora(tiny_model, rank=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_merging_a_model_without_lora_changes_nothing(tiny_model):
    before = logits_of(tiny_model)
    merge_lora(tiny_model)
    assert torch.equal(logits_of(tiny_model), before)
