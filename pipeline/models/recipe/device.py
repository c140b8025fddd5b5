"""The device that everything runs on, and the precision it computes in."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast():
    """bf16 on a GPU, f32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16, enabled=DEVICE.type == "cuda")


def compiled(function):
    """For tensors of a few fixed shapes; as it is without a GPU, where compiling takes longer than a trial."""
    return torch.compile(function, dynamic=False) if DEVICE.type == "cuda" else function
