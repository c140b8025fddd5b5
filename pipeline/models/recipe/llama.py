"""A llama in PyTorch, small enough to read: for training, and for greedy decoding of whole batches."""

import json
import math
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

PAD, BOS, EOS, TO_SECOND, TO_FIRST, SEP = range(6)
POSITIONS = 512
THETA = 10_000.0
EPSILON = 1e-5


@dataclass
class Size:
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int

    @classmethod
    def parse(cls, vocabulary, text):
        """From `width,layers,heads,kv_heads,ffn`."""
        size = cls(vocabulary, *(int(number) for number in text.split(",")))
        if size.width % size.heads or size.heads % size.kv_heads or size.head_dim % 2:
            raise SystemExit(f"{text}: heads must divide the width evenly and kv_heads the heads")
        return size

    @property
    def head_dim(self):
        return self.width // self.heads

    def config(self, dtype=torch.bfloat16):
        """`config.json` as the transformers package and outrider read it."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": str(dtype).split(".")[1],
            "vocab_size": self.vocabulary, "hidden_size": self.width, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "intermediate_size": self.ffn, "hidden_act": "silu", "max_position_embeddings": POSITIONS,
            "rope_theta": THETA, "rms_norm_eps": EPSILON, "tie_word_embeddings": True, "attention_bias": False,
            "mlp_bias": False, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
        }


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), EPSILON).to(x.dtype)


def rotated(x, angles):
    """Turns the pairs (i, i + half) of each head by the angles of their positions."""
    cos, sin = angles
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
        inner, outer = size.heads * size.head_dim, size.kv_heads * size.head_dim
        self.q_proj = nn.Linear(size.width, inner, bias=False)
        self.k_proj = nn.Linear(size.width, outer, bias=False)
        self.v_proj = nn.Linear(size.width, outer, bias=False)
        self.o_proj = nn.Linear(inner, size.width, bias=False)

    def forward(self, x, angles, cache, positions):
        """Without a cache, causal attention within x; with one, x is stored at `positions` and looks at all before."""
        size, (batch, length, _) = self.size, x.shape
        split = lambda y, heads: y.view(batch, length, heads, size.head_dim).transpose(1, 2)
        q = rotated(split(self.q_proj(x), size.heads), angles)
        k = rotated(split(self.k_proj(x), size.kv_heads), angles)
        v = split(self.v_proj(x), size.kv_heads)
        mask = None
        if cache is not None:
            place = positions[:, None, :, None].expand_as(k)
            for stored, new in zip(cache, (k, v)):
                stored.scatter_(2, place, new.to(stored.dtype))
            k, v = (stored.to(q.dtype) for stored in cache)
            mask = torch.arange(k.size(2), device=x.device) <= positions[:, None, :, None]
        group = size.heads // size.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gate_proj = nn.Linear(size.width, size.ffn, bias=False)
        self.up_proj = nn.Linear(size.width, size.ffn, bias=False)
        self.down_proj = nn.Linear(size.ffn, size.width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, size, dropout):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(size.width), Norm(size.width)
        self.self_attn, self.mlp = Attention(size), FeedForward(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, angles, cache=None, positions=None):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), angles, cache, positions))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    def __init__(self, size, dropout=0.0):
        super().__init__()
        self.size = size
        self.embed_tokens = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(Block(size, dropout) for _ in range(size.layers))
        self.norm = Norm(size.width)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # What is added to the residual stream starts smaller, the more often it is added.
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * size.layers) if into_residual else 1))
        nn.init.normal_(self.embed_tokens.weight, std=size.width ** -0.5)
        frequencies = THETA ** (-torch.arange(0, size.head_dim, 2).float() / size.head_dim)
        angles = torch.outer(torch.arange(POSITIONS).float(), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def logits(self, x):
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def forward(self, ids, chosen=None):
        """Logits for all positions, or for those `chosen` of the flattened batch."""
        angles = self.cos[: ids.size(1)], self.sin[: ids.size(1)]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, angles)
        return self.logits(x if chosen is None else x.flatten(0, 1)[chosen])

    @torch.no_grad()
    def greedy(self, prompts, lengths, new):
        """Continues right-padded prompts `[batch, longest]` by at most `new` tokens; what follows EOS is EOS."""
        size, device, (batch, longest) = self.size, prompts.device, prompts.shape
        total = min(longest + new, POSITIONS)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        empty = lambda: torch.zeros(batch, size.kv_heads, total, size.head_dim, device=device, dtype=dtype)
        caches = [(empty(), empty()) for _ in self.layers]

        def run(ids, positions):
            x = self.embed_tokens(ids)
            angles = self.cos[positions][:, None], self.sin[positions][:, None]
            for layer, cache in zip(self.layers, caches):
                x = layer(x, angles, cache, positions)
            return x

        x = run(prompts, torch.arange(longest, device=device).expand(batch, longest))
        token = self.logits(x[torch.arange(batch, device=device), lengths - 1]).argmax(-1)
        ended = torch.zeros(batch, dtype=torch.bool, device=device)
        text = torch.full((batch, total - longest), EOS, device=device)
        for step in range(total - longest):
            token = token.masked_fill(ended, EOS)
            text[:, step] = token
            ended |= token == EOS
            if step % 8 == 7 and ended.all():
                break
            x = run(token[:, None], (lengths + step)[:, None])
            token = self.logits(x[:, 0]).argmax(-1)
        return text

    def save(self, directory, dtype):
        """Writes `model.safetensors` in bf16 or f16, and `config.json`."""
        os.makedirs(directory, exist_ok=True)
        tensors = {f"model.{name}": weight.detach().to(dtype).cpu().contiguous()
                   for name, weight in self.named_parameters()}
        save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
            json.dump(self.size.config(dtype), file, indent=1)
