"""Comparisons of models that several test modules make."""

import torch


@torch.no_grad()
def logits_of(model, input_ids):
    output = model(input_ids)
    return getattr(output, "logits", output)


def difference(a, b):
    """Return the largest absolute difference of two tensors of the same shape."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def assert_same_model(ours, reference):
    """Compare the logits with those of a model of `transformers`."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(reference.config.vocab_size, (2, 30), generator=generator)
    expected = logits_of(reference, input_ids)
    assert expected.std() > 1  # large enough for the comparison to mean something
    assert difference(logits_of(ours, input_ids), expected) <= 1e-4
