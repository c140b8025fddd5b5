"""Prints the logits of a checkpoint for a list of token ids, computed by transformers in float32.

usage: transformers_logits.py CHECKPOINT_DIR ID...
Prints one JSON list of lists: a row of logits for each id.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.tensor([[int(word) for word in sys.argv[2:]]])
with torch.no_grad():
    json.dump(model(ids).logits[0].tolist(), sys.stdout)
