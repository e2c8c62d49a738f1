"""Convert data of your own: forum answers with votes become preference pairs with margins.

    python examples/own_data.py posts.jsonl pairs.jsonl

Each row has a `question` and `answers` with `text` and `votes`. Every two answers whose votes differ become a pair; the
margin is the difference of the votes' logarithms. Check the result with `hafrm data check pairs.jsonl`.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def pairs_of(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pairs of one question, the answer with more votes first."""
    answers = sorted(row["answers"], key=lambda answer: -answer["votes"])
    for better, worse in itertools.combinations(answers, 2):
        if better["votes"] > worse["votes"]:
            margin = math.log1p(better["votes"]) - math.log1p(worse["votes"])
            yield {"prompt": row["question"], "chosen": better["text"], "rejected": worse["text"], "margin": margin}


def main(source: str, target: str) -> None:
    """Convert a file."""
    rows = map(json.loads, Path(source).read_text(encoding="utf-8").splitlines())
    lines = [json.dumps(pair) for row in rows for pair in pairs_of(row)]
    Path(target).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
