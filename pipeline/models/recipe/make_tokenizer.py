"""Makes one byte-level BPE vocabulary for both languages of a file of sentence pairs."""

import argparse

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pairs import read_pairs


def special_tokens(first, second):
    """Control tokens in the order of their ids; the rest of the recipe counts on this order."""
    return ["<pad>", "<s>", "</s>", f">>{second}<<", f">>{first}<<", "<sep>"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", help="file of sentence pairs")
    parser.add_argument("--languages", default="en,de", help="codes of the first and the second language")
    parser.add_argument("--size", type=int, default=8192, help="number of tokens")
    parser.add_argument("--out", default="tokenizer.json")
    options = parser.parse_args()
    first, second = options.languages.split(",")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.size,
        special_tokens=special_tokens(first, second),
        # Every byte has a token, so that there is no text without tokens.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = (text for pair in read_pairs(options.pairs) for text in pair)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != options.size:
        print(f"the texts are too few for {options.size} tokens")
    tokenizer.save(options.out)
    print(f"{options.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
