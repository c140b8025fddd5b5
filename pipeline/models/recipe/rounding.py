"""Rounding to Q4_0, so that a draft can learn with the weights that it will be stored with."""

import torch

BLOCK = 32


def q4_0(weight):
    """What Q4_0 keeps: in each block of 32, whole steps from -8 to 7, of which the largest value is -8."""
    blocks = weight.float().reshape(-1, BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    step = largest / -8
    steps = (blocks * torch.where(step == 0, 0.0, 1 / step) + 8.5).trunc().clamp(0, 15) - 8
    return (steps * step.half().float()).view_as(weight)


def matrices(model):
    """The weights that are stored rounded; vectors are kept as they are."""
    return {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}


def check_fits(size):
    if size.width % BLOCK or size.ffn % BLOCK:
        raise SystemExit(f"width {size.width}, ffn {size.ffn}: Q4_0 needs multiples of {BLOCK}")


def rounded(model, strength):
    """Weights to compute with: rounded where strength is 1, as they are where it is 0. Gradients pass unchanged."""
    return {name: weight + strength * (q4_0(weight.detach()) - weight.detach())
            for name, weight in matrices(model).items()}


@torch.no_grad()
def round_weights(model):
    """Rounds in place. In F16, what is left of a weight is exact enough for to_gguf.py to find the same steps again."""
    for weight in matrices(model).values():
        weight.copy_(q4_0(weight))
