"""Trains a pair of translation models: a target from sentence pairs, then a draft from the target.

What matters for a draft is to agree with its target. So it reads nothing but the target's own greedy translations, and
learns which tokens the target finds likely at each place. With --from-target, only a draft for a target that exists.
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
from torch.func import functional_call

from device import DEVICE, autocast, compiled
from llama import PAD, Llama, Size
from load import load_model
from measure import agreement, foreseen, tokens_per_round
from pairs import read_pairs
from rounding import check_fits, round_weights, rounded
from sequences import LARGEST_VOCABULARY, Sequences, answer_positions, prompts_both_ways, references
from teacher import lessons, own_translations, translate

# From this share of the time on, a draft for Q4_0 computes with rounded weights.
ROUNDED_FROM = 0.35
# From this share of the time on the target's first choice counts more, up to the most that much later.
HARDER_FROM, HARDER_FOR, HARDEST = 0.3, 0.5, 0.5


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def loss_of_text(model, ids, starts):
    """Cross-entropy against the text; the prompt counts a little."""
    ids = ids.long()
    with autocast():
        logits = model(ids[:, :-1]).float()
    following = ids[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none", label_smoothing=0.05)
    weight = torch.where(answer_positions(ids, starts), 1.0, 0.1) * (following != PAD)
    return (loss.view_as(following) * weight).sum() / weight.sum()


def chosen_positions(ids, starts):
    """Half of all positions, those of answers first, and which of them are of answers.

    Answers are about half of a batch, and one number of positions is one shape to compile for.
    """
    of_answers = answer_positions(ids, starts).flatten()
    chosen = of_answers.byte().argsort(descending=True, stable=True)[: len(of_answers) // 2]
    return chosen, of_answers[chosen]


def loss_of_lesson(draft, batch, chosen, counted, hardness, rounding):
    """Cross-entropy against the target's probabilities, blended with that against its most likely token.

    Tokens the target finds less likely count as one. Without `rounding` the draft's weights are taken as they are.
    """
    ids, _, tokens, chances = batch
    weights = {} if rounding is None else rounded(draft, rounding)
    with autocast():
        logits = functional_call(draft, weights, (ids[:, :-1].long(), chosen))
    tokens, chances = tokens.flatten(0, 1)[chosen].long(), chances.flatten(0, 1)[chosen].float()
    ours = logits.float().log_softmax(-1).gather(1, tokens)
    others, our_others = 1 - chances.sum(1), 1 - ours.exp().sum(1)
    soft = -(chances * ours).sum(1) - others.clamp_min(1e-4) * our_others.clamp_min(1e-6).log()
    loss = (1 - hardness) * soft - hardness * ours[:, 0]
    return (loss * counted).sum() / counted.sum()


def rate_at(done, step, lowest):
    """Share of the highest learning rate: a short ramp in steps or time, then half a cosine down to the lowest."""
    return min(1.0, max((step + 1) / 400, done / 0.05)) * max(lowest, 0.5 * (1 + math.cos(math.pi * done)))


def train(model, next_loss, seconds, rate, decay, lowest, memory):
    """Trains for that long and leaves a moving average of the weights in the model.

    `next_loss` takes the share of the time that is over; `memory` is the share of the average that a step keeps.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=DEVICE.type == "cuda")
    average = [p.detach().clone() for p in model.parameters()]
    model.train()
    begun, step = time.time(), 0
    while (done := (time.time() - begun) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * rate_at(done, step, lowest)
        loss = next_loss(done)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(memory, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 1 - keep)
        if step % 200 == 0:
            say(f"step {step}, loss {loss.item():.3f}, {done:.0%} of the time")
        step += 1
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), average):
            parameter.copy_(value)
    model.requires_grad_(False).eval()
    say(f"{step} steps")


def new_model(role, size, dropout=0.0):
    model = Llama(size, dropout).to(DEVICE)
    say(f"{role} of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    return model


def train_target(size, sequences, options):
    target, loss = new_model("target", size, options.dropout), compiled(loss_of_text)
    next_loss = lambda done: loss(target, *sequences.batch(options.batch_tokens))
    train(target, next_loss, options.target_seconds, 1.2e-3, 0.1, lowest=0.02, memory=0.999)
    return target


def train_draft(size, sequences, options):
    """Afterwards its weights have the values that --draft-format keeps, if it is Q4_0."""
    draft, loss = new_model("draft", size), compiled(loss_of_lesson)
    rounds = options.draft_format == "q4_0"
    hardness, rounding = (torch.zeros((), device=DEVICE) for _ in range(2))

    def next_loss(done):
        hardness.fill_(HARDEST * min(1.0, max(0.0, (done - HARDER_FROM) / HARDER_FOR)))
        rounding.fill_(done > ROUNDED_FROM)
        batch = sequences.batch(options.batch_tokens)
        return loss(draft, batch, *chosen_positions(*batch[:2]), hardness, rounding if rounds else None)

    train(draft, next_loss, options.draft_seconds, 2.5e-3, 0.05, lowest=0.004, memory=0.9995)
    if rounds:
        round_weights(draft)
    return draft


def save(model, role, options, dtype):
    """The directory of the checkpoint."""
    directory = os.path.join(options.out, role)
    model.save(directory, dtype)
    shutil.copy(options.tokenizer, os.path.join(directory, "tokenizer.json"))
    return directory


def show(role, model, tokenizer, pairs):
    texts = [pair[side] for side in (0, 1) for pair in pairs]
    answers = translate(model, prompts_both_ways(tokenizer, pairs), len(texts))
    for text, answer in zip(texts, answers):
        say(f"{role}: {text} => {tokenizer.decode(answer)}")


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="training file: first<TAB>second")
    parser.add_argument("held_out", help="pairs to measure on, none of them in the training file")
    parser.add_argument("--tokenizer", default="tokenizer.json")
    parser.add_argument("--out", default="checkpoints")
    parser.add_argument("--from-target", help="train only a draft, for this GGUF file or checkpoint of a target")
    parser.add_argument("--target", default="512,8,8,4,1536", help="width,layers,heads,kv_heads,ffn")
    parser.add_argument("--draft", default="256,3,4,2,704")
    parser.add_argument("--draft-format", choices=["q4_0", "q8_0"], default="q4_0", help="that it will be stored in")
    parser.add_argument("--target-seconds", type=float, default=490)
    parser.add_argument("--text-seconds", type=float, default=960, help="for the target to translate, at most")
    parser.add_argument("--draft-seconds", type=float, default=640)
    parser.add_argument("--batch-tokens", type=int, default=131072, help="less if memory runs out")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the target")
    return parser.parse_args()


def main():
    options = parsed()
    random.seed(1)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")

    tokenizer = Tokenizer.from_file(options.tokenizer)
    vocabulary, rows = tokenizer.get_vocab_size(), max(1, options.batch_tokens // 32)
    if vocabulary > LARGEST_VOCABULARY:
        raise SystemExit(f"{options.tokenizer}: {vocabulary} tokens, at most {LARGEST_VOCABULARY} fit in 16 bits")
    target_size, draft_size = (Size.parse(vocabulary, text) for text in (options.target, options.draft))
    if options.draft_format == "q4_0":
        check_fits(draft_size)
    pairs, held_out = read_pairs(options.pairs), read_pairs(options.held_out)
    say(f"{len(pairs)} pairs, {len(held_out)} held out, on {DEVICE}")

    stored = options.from_target
    if stored is None:
        sequences = Sequences(prompts_both_ways(tokenizer, pairs), references(tokenizer, pairs))
        stored = save(train_target(target_size, sequences, options), "target", options, torch.bfloat16)
        del sequences
    # The teacher is what was written, not what was trained.
    target = load_model(stored, tokenizer)
    show("target", target, tokenizer, held_out[:3])

    there, back = own_translations(target, tokenizer, pairs, rows, options.text_seconds)
    say(f"the target made {len(there)} translations for the draft, and {len(back)} of these translations")
    sequences = lessons(target, there + back, options.batch_tokens // 4)
    del there, back
    draft = train_draft(draft_size, sequences, options)
    # bf16 is too coarse for the values of Q4_0.
    save(draft, "draft", options, torch.float16)
    show("draft", draft, tokenizer, held_out[:3])

    hits = foreseen(target, draft, tokenizer, held_out[:500], rows)
    say(f"the draft agrees with {agreement(hits):.3f} of the target's tokens")
    say("tokens per round: " + ", ".join(f"{tokens_per_round(hits, k):.2f} at depth {k}" for k in (3, 4, 5)))


if __name__ == "__main__":
    main()
