"""Prompts with their answers as tensors. Token ids are kept in 16 bits: a training set has millions of texts."""

import random

import numpy as np
import torch

from device import DEVICE
from llama import BOS, EOS, PAD, SEP, TO_FIRST, TO_SECOND

# Sequences are padded to the next of these lengths, and longer ones are left out.
LENGTHS = [25, 41, 57, 81, 129]
LARGEST_VOCABULARY = 2**15


def encoded(tokenizer, texts, at_once=16384):
    """The ids of each text."""
    for at in range(0, len(texts), at_once):
        for found in tokenizer.encode_batch(texts[at : at + at_once], add_special_tokens=False):
            yield np.array(found.ids, dtype=np.int16)


def prompt(direction, ids):
    """`<s> direction text <sep>`"""
    return np.array([BOS, direction, *ids, SEP], dtype=np.int16)


def prompts_of(tokenizer, texts, direction):
    return [prompt(direction, ids) for ids in encoded(tokenizer, texts)]


def prompts_both_ways(tokenizer, pairs):
    """The first texts as prompts to translate to the second language, then the second texts to the first."""
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    return prompts_of(tokenizer, first, TO_SECOND) + prompts_of(tokenizer, second, TO_FIRST)


def references(tokenizer, pairs):
    """The answer that each of `prompts_both_ways` has in the file."""
    texts = [pair[side] for side in (1, 0) for pair in pairs]
    return [np.append(ids, np.int16(EOS)) for ids in encoded(tokenizer, texts)]


def padded(rows, length):
    """One tensor of texts that are no longer than `length`."""
    ids = np.full((len(rows), length), PAD, dtype=np.int16)
    for row, text in zip(ids, rows):
        row[: len(text)] = text
    return torch.from_numpy(ids).to(DEVICE)


def answer_positions(ids, starts):
    """Which tokens after the first belong to an answer; `starts` are the lengths of the prompts."""
    return (torch.arange(1, ids.size(1), device=ids.device) >= starts[:, None]) & (ids[:, 1:] != PAD)


class Sequences:
    """Prompts with their answers, sorted into buckets of one length: tensors with a row for each sequence."""

    def __init__(self, prompts, answers):
        sorted_in = {length: [] for length in LENGTHS}
        for text, answer in zip(prompts, answers):
            fitting = next((length for length in LENGTHS if len(text) + len(answer) <= length), None)
            if fitting:
                sorted_in[fitting].append((text, answer))
        self.buckets = []
        for length, found in sorted_in.items():
            if found:
                starts = torch.tensor([len(text) for text, _ in found], dtype=torch.int16, device=DEVICE)
                self.buckets.append([padded([np.concatenate(both) for both in found], length), starts])
        if not self.buckets:
            raise SystemExit(f"no text is short enough: at most {LENGTHS[-1]} tokens with its translation")
        self.weights = [bucket[0].numel() for bucket in self.buckets]

    def __len__(self):
        return sum(len(bucket[0]) for bucket in self.buckets)

    def batch(self, tokens):
        """About that many tokens of sequences of one length: ids, starts and what else the bucket holds."""
        bucket = random.choices(self.buckets, self.weights)[0]
        count, length = bucket[0].shape
        chosen = torch.randint(count, (max(1, tokens // length),), device=DEVICE)
        return [tensor[chosen] for tensor in bucket]
