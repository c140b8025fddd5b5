"""Reads files of sentence pairs: `first<TAB>second` a line, UTF-8, plain or compressed with xz."""

import lzma


def read_pairs(path):
    """All pairs of a file; lines without two texts are left out, further columns are ignored."""
    opener = lzma.open if str(path).endswith(".xz") else open
    pairs = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            columns = line.rstrip("\n").split("\t")
            if len(columns) >= 2 and columns[0].strip() and columns[1].strip():
                pairs.append((columns[0].strip(), columns[1].strip()))
    if not pairs:
        raise SystemExit(f"{path}: no line has two texts with a tab between")
    return pairs
