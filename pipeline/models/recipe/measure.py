"""How well a draft foresees its target's greedy text."""

import torch

from device import autocast
from sequences import padded, prompts_both_ways
from teacher import translate


@torch.no_grad()
def foreseen(target, draft, tokenizer, pairs, rows):
    """For each text, which tokens of the target's translation are the draft's most likely ones at their places."""
    prompts = prompts_both_ways(tokenizer, pairs)
    answers = translate(target, prompts, rows)
    hits = []
    for at in range(0, len(prompts), rows):
        some = list(zip(prompts[at : at + rows], answers[at : at + rows]))
        texts = [[*text, *answer] for text, answer in some]
        ids = padded(texts, max(map(len, texts))).long()
        with autocast():
            guesses = draft(ids[:, :-1]).argmax(-1)
        for row, (text, answer) in zip((guesses == ids[:, 1:]).tolist(), some):
            hits.append(row[len(text) - 1 : len(text) + len(answer) - 1])
    return hits


def agreement(hits):
    """Share of the target's tokens that the draft foresees."""
    return sum(map(sum, hits)) / sum(map(len, hits))


def rounds(hits, depth):
    """How often the target runs for a text: it keeps of `depth` drafted tokens those before a miss, and adds one."""
    count = at = 0
    while at < len(hits):
        drafted = hits[at : at + depth]
        at += (drafted.index(False) if False in drafted else len(drafted)) + 1
        count += 1
    return count


def tokens_per_round(hits, depth):
    return sum(map(len, hits)) / sum(rounds(text, depth) for text in hits)
