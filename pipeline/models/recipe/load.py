"""Reads a target that exists: a checkpoint of train.py, or a GGUF file of to_gguf.py."""

import json
import math
import os

import gguf
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from device import DEVICE
from llama import Llama, Size
from to_gguf import BLOCK_TENSORS

# The names that config.json has for what a GGUF file says of a llama.
GGUF_NAMES = {
    "hidden_size": "llama.embedding_length", "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count", "num_key_value_heads": "llama.attention.head_count_kv",
    "intermediate_size": "llama.feed_forward_length", "rope_theta": "llama.rope.freq_base",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon", "head_dim": "llama.rope.dimension_count",
    "model_type": "general.architecture",
}
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
)
# What llama.py has no choice in.
FIXED = ("model_type", "head_dim", "rope_theta", "rms_norm_eps", "tie_word_embeddings")


def tokens_of(tokenizer):
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def halves(weight, heads):
    """The inverse of `adjacent` in to_gguf.py."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_checkpoint(directory):
    """What config.json says, the weights by their names in llama.py, and the tokens."""
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    stored = load_file(os.path.join(directory, "model.safetensors"))
    weights = {name.removeprefix("model."): weight.float() for name, weight in stored.items()}
    return config, weights, tokens_of(Tokenizer.from_file(os.path.join(directory, "tokenizer.json")))


def read_gguf(path):
    """The same of a GGUF file with weights in any format that the gguf package reads, such as Q8_0, F16 and F32."""
    reader = gguf.GGUFReader(path)

    def value(name):
        if (field := reader.get_field(name)) is None:
            raise SystemExit(f"{path}: {name} is missing, is it a file of to_gguf.py?")
        return field.contents()

    config = {name: value(source) for name, source in GGUF_NAMES.items()}
    tokens = value("tokenizer.ggml.tokens")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    config |= {"vocab_size": len(tokens), "tie_word_embeddings": "output.weight" not in stored}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def weight(name):
        tensor = stored[f"{name}.weight"]
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())

    weights = {"embed_tokens.weight": weight("token_embd"), "norm.weight": weight("output_norm")}
    for layer in range(config["num_hidden_layers"]):
        for name, target in BLOCK_TENSORS.items():
            found = weight(f"blk.{layer}.{name}")
            weights[f"layers.{layer}.{target}.weight"] = halves(found, heads[name]) if name in heads else found
    return config, weights, tokens


def agrees(found, expected):
    return math.isclose(found, expected, rel_tol=1e-6) if isinstance(expected, float) else found == expected


def load_model(path, tokenizer):
    """A model to compute with, not to train. Its vocabulary must be the tokenizer's."""
    config, weights, tokens = read_checkpoint(path) if os.path.isdir(path) else read_gguf(path)
    size = Size(*(config[name] for name in SIZES))
    expected = size.config()
    for name in FIXED:
        if not agrees(config[name], expected[name]):
            raise SystemExit(f"{path}: {name} is {config[name]}, only {expected[name]} can be read")
    if tokens != tokens_of(tokenizer):
        raise SystemExit(f"{path}: its vocabulary is not that of the tokenizer, give its own with --tokenizer")
    model = Llama(size)
    model.load_state_dict(weights)
    return model.to(DEVICE).requires_grad_(False).eval()
