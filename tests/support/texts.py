"""Small documents, every one different."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = "the board of the harbour has agreed to repair the northern wall before the autumn storms".split()


def write_documents(folder: Path, count: int, seed: int = 7) -> None:
    """`count` text files of about 500 bytes, the same for the same seed."""
    words = random.Random(seed)
    folder.mkdir()
    for number in range(count):
        lines = [" ".join(words.choices(WORDS, k=12)).capitalize() + "." for _ in range(6)]
        (folder / f"{number:05}.txt").write_text(f"Report {number} of {seed}\n\n" + "\n".join(lines) + "\n")
