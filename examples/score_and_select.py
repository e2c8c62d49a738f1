"""Score responses in Python and keep the best one per prompt.

    python examples/score_and_select.py runs/haf answers.jsonl best.jsonl

Each row has a `prompt` and `responses`. The model can be a run of hafrm, a stock reward model or a server's address.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hafrm


def main(model: str, source: str, target: str) -> None:
    """Score, select, write."""
    scorer = hafrm.load_scorer(model)
    rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    conversations = [hafrm.Conversation.of(row["prompt"], response) for row in rows for response in row["responses"]]
    rewards = iter(scorer.score(conversations))  # equal prompts are encoded once
    with Path(target).open("w", encoding="utf-8") as file:
        for row in rows:
            scored = [(next(rewards), response) for response in row["responses"]]
            fit = [(reward, response) for reward, response in scored if reward is not None]  # None: over the limit
            if fit:
                reward, best = max(fit)
                file.write(json.dumps({"prompt": row["prompt"], "response": best, "reward": reward}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
