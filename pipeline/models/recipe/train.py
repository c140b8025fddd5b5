"""Trains a pair of translation models: a target from sentence pairs, then a draft from the target.

The draft learns the target's distribution on every batch, and on three of four batches it reads the target's own greedy
translations instead of the references: what matters for a draft is to agree with its target.
"""

import argparse
import math
import os
import random
import shutil
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from llama import BOS, EOS, PAD, SEP, TO_FIRST, TO_SECOND, Llama, Size
from pairs import read_pairs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Sequences are padded to the next of these lengths, and longer ones are left out.
LENGTHS = [25, 41, 57, 81, 129]
OWN_TEXT_SHARE = 0.75


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def autocast():
    return torch.autocast("cuda", torch.bfloat16, enabled=DEVICE.type == "cuda")


def prompts_of(tokenizer, texts, direction):
    """`<s> direction text <sep>` for each text."""
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [[BOS, direction] + e.ids + [SEP] for e in encoded]


class Sequences:
    """Prompts with their answers, sorted into tensors of equal length."""

    def __init__(self, prompts, answers):
        buckets = {length: [] for length in LENGTHS}
        for prompt, answer in zip(prompts, answers):
            sequence = prompt + answer + [EOS]
            fitting = next((length for length in LENGTHS if len(sequence) <= length), None)
            if answer and fitting:
                buckets[fitting].append((sequence, len(prompt)))
        self.buckets = []
        for length, found in buckets.items():
            if found:
                ids = torch.full((len(found), length), PAD, dtype=torch.int32)
                for row, (sequence, _) in enumerate(found):
                    ids[row, : len(sequence)] = torch.tensor(sequence)
                starts = torch.tensor([start for _, start in found])
                self.buckets.append((ids.to(DEVICE), starts.to(DEVICE)))
        if not self.buckets:
            raise SystemExit(f"no pair is short enough: at most {LENGTHS[-1]} tokens for both texts")
        self.weights = [ids.numel() for ids, _ in self.buckets]

    def batch(self, tokens):
        """About that many tokens of sequences of one length."""
        ids, starts = random.choices(self.buckets, self.weights)[0]
        chosen = torch.randint(len(ids), (max(1, tokens // ids.size(1)),), device=DEVICE)
        return ids[chosen].long(), starts[chosen]


def both_directions(tokenizer, pairs):
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    ids = lambda texts: [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    prompts = prompts_of(tokenizer, first, TO_SECOND) + prompts_of(tokenizer, second, TO_FIRST)
    return Sequences(prompts, ids(second) + ids(first))


def loss_of(model, teacher, batch, source_weight):
    """Cross-entropy against the text, or against the teacher's distribution; the prompt counts a little."""
    ids, starts = batch
    with autocast():
        logits = model(ids[:, :-1]).float()
    following = ids[:, 1:]
    if teacher is None:
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none", label_smoothing=0.05)
        loss = loss.view_as(following)
    else:
        with torch.no_grad(), autocast():
            wanted = teacher(ids[:, :-1]).float()
        loss = -(wanted.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    answer = torch.arange(1, ids.size(1), device=DEVICE) >= starts[:, None]
    weight = torch.where(answer, 1.0, source_weight) * (following != PAD)
    return (loss * weight).sum() / weight.sum()


def rate_at(done, step):
    """Share of the highest learning rate: a ramp over the first steps, then half a cosine down to a fiftieth."""
    return min(1.0, (step + 1) / 400) * max(0.02, 0.5 * (1 + math.cos(math.pi * done)))


def train(model, next_batch, seconds, rate, decay, teacher=None, source_weight=0.1):
    """Trains for that long and leaves a moving average of the weights in the model."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    compute = torch.compile(loss_of, dynamic=False) if DEVICE.type == "cuda" else loss_of
    average = [p.detach().clone() for p in model.parameters()]
    model.train()
    begun, step = time.time(), 0
    while (done := (time.time() - begun) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * rate_at(done, step)
        loss = compute(model, teacher, next_batch(), source_weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 1 - keep)
        if step % 200 == 0:
            say(f"step {step}, loss {loss.item():.3f}, {done:.0%} of the time")
        step += 1
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), average):
            parameter.copy_(value)
    model.eval()
    say(f"{step} steps")


@torch.no_grad()
def translate(model, prompts, rows=1024):
    """Greedy answers, without the token that ends them."""
    answers = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), rows):
        chosen = order[at : at + rows]
        longest = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), longest), PAD, device=DEVICE)
        for row, i in enumerate(chosen):
            ids[row, : len(prompts[i])] = torch.tensor(prompts[i], device=DEVICE)
        lengths = torch.tensor([len(prompts[i]) for i in chosen], device=DEVICE)
        with autocast():
            text = model.greedy(ids, lengths, min(150, int(longest * 1.6) + 8)).tolist()
        for i, tokens in zip(chosen, text):
            answers[i] = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
    return answers


def own_translations(target, tokenizer, pairs, seconds):
    """The target's translations of as many training texts as there is time for."""
    begun, prompts, answers = time.time(), [], []
    pairs = random.sample(pairs, len(pairs))
    for at in range(0, len(pairs), 4096):
        for side, direction in ((0, TO_SECOND), (1, TO_FIRST)):
            texts = [pair[side] for pair in pairs[at : at + 4096]]
            some = [p for p in prompts_of(tokenizer, texts, direction) if len(p) < 80]
            prompts, answers = prompts + some, answers + translate(target, some)
        if time.time() - begun > seconds:
            break
    say(f"the target translated {len(prompts)} texts for the draft")
    return Sequences(prompts, answers)


@torch.no_grad()
def agreement(target, draft, tokenizer, pairs):
    """Share of the target's own greedy tokens that are also the draft's most likely ones."""
    hits = total = 0
    for side, direction in ((0, TO_SECOND), (1, TO_FIRST)):
        prompts = prompts_of(tokenizer, [pair[side] for pair in pairs], direction)
        for prompt, answer in zip(prompts, translate(target, prompts)):
            ids = torch.tensor([prompt + answer + [EOS]], device=DEVICE)
            with autocast():
                guesses = draft(ids[:, :-1]).argmax(-1)
            matches = guesses[0, len(prompt) - 1 :] == ids[0, len(prompt) :]
            hits, total = hits + int(matches.sum()), total + matches.numel()
    return hits / total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="training file: first<TAB>second")
    parser.add_argument("held_out", help="pairs to measure on, none of them in the training file")
    parser.add_argument("--tokenizer", default="tokenizer.json")
    parser.add_argument("--out", default="checkpoints")
    parser.add_argument("--target", default="512,8,8,4,1536", help="width,layers,heads,kv_heads,ffn")
    parser.add_argument("--draft", default="256,3,4,2,704")
    parser.add_argument("--target-seconds", type=float, default=490)
    parser.add_argument("--draft-seconds", type=float, default=290)
    parser.add_argument("--batch-tokens", type=int, default=131072)
    parser.add_argument("--dropout", type=float, default=0.1)
    options = parser.parse_args()
    random.seed(1)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")

    tokenizer = Tokenizer.from_file(options.tokenizer)
    pairs, held_out = read_pairs(options.pairs), read_pairs(options.held_out)
    size = lambda text: Size.parse(tokenizer.get_vocab_size(), text)
    sequences = both_directions(tokenizer, pairs)
    say(f"{len(pairs)} pairs, {len(held_out)} held out, on {DEVICE}")

    target = Llama(size(options.target), options.dropout).to(DEVICE)
    say(f"target of {sum(p.numel() for p in target.parameters()) / 1e6:.1f} M parameters")
    train(target, lambda: sequences.batch(options.batch_tokens), options.target_seconds, 1.2e-3, 0.1)
    target.requires_grad_(False)

    own = own_translations(target, tokenizer, pairs, 0.4 * options.draft_seconds)
    draft = Llama(size(options.draft)).to(DEVICE)
    say(f"draft of {sum(p.numel() for p in draft.parameters()) / 1e6:.1f} M parameters")
    mixed = lambda: (own if random.random() < OWN_TEXT_SHARE else sequences).batch(options.batch_tokens)
    train(draft, mixed, options.draft_seconds, 2.5e-3, 0.05, teacher=target, source_weight=0.02)

    for role, model in (("target", target), ("draft", draft)):
        directory = os.path.join(options.out, role)
        model.save(directory)
        shutil.copy(options.tokenizer, os.path.join(directory, "tokenizer.json"))
        for side, direction in ((0, TO_SECOND), (1, TO_FIRST)):
            texts = [pair[side] for pair in held_out[:3]]
            for text, answer in zip(texts, translate(model, prompts_of(tokenizer, texts, direction))):
                say(f"{role}: {text} => {tokenizer.decode(answer)}")
    say(f"the draft agrees with {agreement(target, draft, tokenizer, held_out[:500]):.3f} of the target's tokens")


if __name__ == "__main__":
    main()
