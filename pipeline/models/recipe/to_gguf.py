"""Writes a GGUF file from a checkpoint of train.py: weights, tokenizer and chat template in one."""

import argparse
import json
import os

import gguf
import numpy as np

BLOCK_TENSORS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def read_weights(path):
    """A function from the name of a tensor to its values as f32. The file: a length, a JSON header, the data."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int(data[:8].view(np.uint64)[0])
    header = json.loads(bytes(data[8:start]))

    def weights(name):
        tensor = header[name]
        begin, end = tensor["data_offsets"]
        stored = bytes(data[start + begin : start + end])
        if tensor["dtype"] == "F16":
            values = np.frombuffer(stored, dtype=np.float16).astype(np.float32)
        elif tensor["dtype"] == "BF16":
            # bf16 is the upper half of f32.
            values = (np.frombuffer(stored, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            raise SystemExit(f"{path}: {name} is {tensor['dtype']}, expected BF16 or F16 as train.py writes them")
        return values.reshape(tensor["shape"])

    return weights


def adjacent(weight, heads):
    """GGUF rotates neighbours (2i, 2i + 1) where the checkpoint rotates (i, i + half): reorders the rows of each head."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def chat_template(first, second):
    """Translates the last message to the second language, unless it or the system message asks for the first."""
    first_code, first_name = first
    second_code, _ = second
    to_first, to_second = f">>{first_code}<<", f">>{second_code}<<"
    n = len(to_first)
    assert n == len(to_second), "codes of one length, such as en and de"
    return (
        "{%- set text = messages[-1]['content'] | trim -%}{{ bos_token }}"
        f"{{%- if text[:{n}] in ['{to_second}', '{to_first}'] -%}}{{{{ text[:{n}] }}}}{{{{ text[{n}:] | trim }}}}"
        f"{{%- elif messages[0]['role'] == 'system' and '{first_name}' in messages[0]['content'] -%}}{to_first}{{{{ text }}}}"
        f"{{%- else -%}}{to_second}{{{{ text }}}}{{%- endif -%}}<sep>"
    )


def add_model(writer, config):
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokenizer(writer, tokenizer, config):
    vocabulary = tokenizer["model"]["vocab"]
    control = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    if len(tokens) != config["vocab_size"]:
        raise SystemExit(f"the tokenizer has {len(tokens)} tokens, config.json says {config['vocab_size']}")
    kinds = [gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for i in range(len(tokens))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(True)


FORMATS = {
    "q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
    "q4_0": (gguf.LlamaFileType.MOSTLY_Q4_0, gguf.GGMLQuantizationType.Q4_0),
    "f16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
}


def add_tensors(writer, weights, config, kind):
    def add(name, weight):
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    add("token_embd.weight", weights("model.embed_tokens.weight"))
    add("output_norm.weight", weights("model.norm.weight"))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for layer in range(config["num_hidden_layers"]):
        for name, source in BLOCK_TENSORS.items():
            weight = weights(f"model.layers.{layer}.{source}.weight")
            if name in heads:
                weight = adjacent(weight, heads[name])
            add(f"blk.{layer}.{name}.weight", weight)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="directory with model.safetensors, config.json and tokenizer.json")
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("--name", default="translator")
    parser.add_argument("--languages", default="en:English,de:German", help="code:Name of the first and the second language")
    parser.add_argument("--format", choices=list(FORMATS), default="q8_0")
    parser.add_argument("--licence", help="of the weights, such as cc-by-4.0")
    options = parser.parse_args()
    first, second = (language.split(":") for language in options.languages.split(","))

    def parsed(name):
        with open(os.path.join(options.checkpoint, name), encoding="utf-8") as file:
            return json.load(file)

    config, tokenizer = parsed("config.json"), parsed("tokenizer.json")
    writer = gguf.GGUFWriter(options.out, "llama")
    writer.add_name(options.name)
    if options.licence:
        writer.add_license(options.licence)
    file_type, kind = FORMATS[options.format]
    writer.add_file_type(file_type)
    add_model(writer, config)
    add_tokenizer(writer, tokenizer, config)
    writer.add_chat_template(chat_template(first, second))
    weights = read_weights(os.path.join(options.checkpoint, "model.safetensors"))
    add_tensors(writer, weights, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{options.out}: {os.path.getsize(options.out) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
