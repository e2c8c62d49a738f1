"""Pairs per second of evaluation: hafrm's scorer and TRL's loop, on the same pairs and weights.

    python -m benchmarks.evaluation --out FILE

TRL's loop is its RewardTrainer's loss in evaluation mode, on batches of its own collator in the order of the file.
Both start from messages, so both render and tokenize. Rewards must agree, and therefore the accuracy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.contestants import trl_reward_trainer
from benchmarks.measure import environment, interleaved, median_ratio, print_table, save
from benchmarks.workload import SHAPES, SHARED, model_folder, real_tokenizer
from hafrm.data import load_pairs
from hafrm.evaluation.scoring import score_pairs
from hafrm.models.loading import load_scorer
from hafrm.models.options import ScoreOptions
from hafrm.numerics import cpu_tuned
from hafrm.pairs import PreferencePair

TOLERANCE = 1e-3  # allowed difference of margins, in float32


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--data", default="hh_harmless", choices=("hh_harmless", "pku_safe"))
    parser.add_argument("--pairs", type=int, default=128, help="pairs a round")
    parser.add_argument("--batch", type=int, default=8, help="pairs a batch of TRL's, whose default is 8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", help="a file for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with cpu_tuned(), model_folder(options.shape) as model:
        save(options.out, _measure(options, model))


def _measure(options: argparse.Namespace, model: str) -> dict[str, Any]:
    scorer = load_scorer(model, options=ScoreOptions(device="cpu"))
    found = load_pairs(str(SHARED / "data" / f"{options.data}-train.jsonl.gz")).pairs
    scored = score_pairs(scorer, found[: 2 * options.pairs * options.rounds], model="hafrm", data=options.data)
    fitting = [pair for pair, score in zip(found, scored, strict=False) if not score.unscored]
    rounds = [fitting[number * options.pairs :][: options.pairs] for number in range(options.rounds)]
    ways: dict[str, Callable[[Sequence[PreferencePair]], list[float]]] = {
        "hafrm": lambda pairs: [
            float(score.reward_chosen or 0) - float(score.reward_rejected or 0)
            for score in score_pairs(scorer, pairs, model="hafrm", data=options.data)
        ],
        "trl": _trl(model, options.batch),
    }
    margins = {name: [margin for pairs in rounds for margin in way(pairs)] for name, way in ways.items()}
    difference = max(abs(a - b) for a, b in zip(*margins.values(), strict=True))
    assert difference < TOLERANCE, difference
    actions = {name: [lambda way=way, pairs=pairs: way(pairs) for pairs in rounds] for name, way in ways.items()}
    seconds = interleaved(actions, clock=time.perf_counter)
    speeds = {name: options.pairs / sorted(values)[len(values) // 2] for name, values in seconds.items()}
    accuracies = {name: sum(margin > 0 for margin in values) / len(values) for name, values in margins.items()}
    rows = [(name, f"{speeds[name]:.1f}", f"{accuracies[name]:.3f}") for name in ways]
    print_table(f"{options.shape} on {options.data}", ("evaluation", "pairs a second", "accuracy"), rows)
    described = {name: getattr(options, name) for name in ("shape", "data", "pairs")}
    return {
        "environment": environment(),
        **described,
        "batch": options.batch,
        "seconds": seconds,
        "accuracy": accuracies,
        "largest_difference_of_a_margin": difference,
        "ratios": {"pairs a second, hafrm over TRL": median_ratio(seconds["trl"], seconds["hafrm"])},
    }


def _trl(folder: str, batch: int) -> Callable[[Sequence[PreferencePair]], list[float]]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = real_tokenizer()
    trainer = trl_reward_trainer(model)

    def ids(messages: Sequence[Any]) -> list[int]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"])

    @torch.no_grad()
    def margins(pairs: Sequence[PreferencePair]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(pairs), batch):
            examples = [
                {"chosen_ids": ids(pair.prompt + pair.chosen), "rejected_ids": ids(pair.prompt + pair.rejected)}
                for pair in pairs[start : start + batch]
            ]
            _, outputs = trainer.compute_loss(model, trainer.data_collator(examples), return_outputs=True)
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            found += (chosen - rejected).tolist()
        return found

    return margins


if __name__ == "__main__":
    main()
