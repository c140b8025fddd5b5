"""What a draft learns from: its target's own translations, and the target's most likely tokens along them."""

import math
import random
import time

import numpy as np
import torch

from device import DEVICE, autocast
from llama import EOS, TO_FIRST, TO_SECOND
from sequences import Sequences, padded, prompt, prompts_both_ways

# Longer prompts leave too little of the longest sequence to the answer.
LONGEST_PROMPT = 78
# The share of the time in which the training texts are translated; the rest is for the way back.
THERE = 0.55
# So many of the most likely tokens are kept for each position.
KEPT = 8


@torch.no_grad()
def translate(model, prompts, rows, seconds=math.inf):
    """Greedy answers with the EOS that ends them, if one does; None for those that there was no time for."""
    answers, begun = [None] * len(prompts), time.time()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [order[at : at + rows] for at in range(0, len(order), rows)]
    # When time is up, texts of all lengths have been translated.
    random.shuffle(batches)
    for batch in batches:
        if time.time() - begun > seconds:
            break
        lengths = torch.tensor([len(prompts[i]) for i in batch], device=DEVICE)
        longest = len(prompts[batch[-1]])
        ids = padded([prompts[i] for i in batch], longest).long()
        with autocast():
            texts = model.greedy(ids, lengths, min(150, int(longest * 1.6) + 8)).short().cpu().numpy()
        for i, text in zip(batch, texts):
            ends = np.flatnonzero(text == EOS)
            answers[i] = text[: ends[0] + 1].copy() if len(ends) else text
    return answers


def usable(prompts, answers):
    """The prompts that were answered to the end, with their answers; all of them if the target never found an end."""
    answered = [(text, answer) for text, answer in zip(prompts, answers) if answer is not None]
    return [(text, answer) for text, answer in answered if answer[-1] == EOS] or answered


def way_back(there):
    """The translations as texts to translate back, without those that have been translated already."""
    known = {text.tobytes() for text, _ in there}
    back = {}
    for text, answer in there:
        returning = prompt(TO_SECOND + TO_FIRST - int(text[1]), answer[:-1])
        if len(answer) > 1 and len(returning) <= LONGEST_PROMPT and returning.tobytes() not in known:
            back[returning.tobytes()] = returning
    return list(back.values())


def own_translations(target, tokenizer, pairs, rows, seconds):
    """The target's translations of the training texts, and of these translations: two lists of (prompt, answer)."""
    begun = time.time()
    texts = {text.tobytes(): text for text in prompts_both_ways(tokenizer, pairs) if len(text) <= LONGEST_PROMPT}
    prompts = list(texts.values())
    there = usable(prompts, translate(target, prompts, rows, THERE * seconds))
    prompts = way_back(there)
    back = usable(prompts, translate(target, prompts, rows, seconds - (time.time() - begun)))
    return there, back


@torch.no_grad()
def add_most_likely(target, bucket, at_once):
    """Adds the tokens the target finds most likely at each position but the first, and their probabilities."""
    ids, (count, length) = bucket[0], bucket[0].shape
    tokens = torch.empty(count, length - 1, KEPT, dtype=torch.int16, device=DEVICE)
    chances = torch.empty_like(tokens, dtype=torch.float16)
    rows = max(1, at_once // length)
    for at in range(0, count, rows):
        with autocast():
            logits = target(ids[at : at + rows, :-1].long())
        found = logits.float().softmax(-1).topk(KEPT, -1)
        tokens[at : at + rows], chances[at : at + rows] = found.indices, found.values
    bucket += [tokens, chances]


def lessons(target, translations, at_once):
    """Sequences with the target's most likely tokens: all that a draft needs to know of its target."""
    sequences = Sequences(*zip(*translations))
    for bucket in sequences.buckets:
        add_most_likely(target, bucket, at_once)
    return sequences
