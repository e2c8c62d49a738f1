"""How choices affect accuracy: those that save time, and other ways to use the policy loss.

    python -m benchmarks.choices --model FOLDER --data pku_safe arguments qa_eval --steps 200 --out FILE
    python -m benchmarks.choices --topic policy --model FOLDER --data pku_safe qa_eval --steps 200 --out FILE

Trains HAF in float32 and in other ways, with several seeds on the same pairs for the same number of steps, and compares
the accuracy on all test pairs and the tokens that went through the model. Runs that FILE already has stay in it.

The topic `time` compares batches by prompt and products in bfloat16. The topic `policy` compares no policy loss, DPO on
log-ratios averaged over tokens (with beta 2), the policy loss on a quarter of the pairs with four times the weight, a
weight that falls linearly from 0.4 to 0, and a learning rate ten times as high for the reward head.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from unittest.mock import patch

from torch import Tensor
from transformers import TrainerCallback, TrainerState

from benchmarks.measure import environment, print_table, save
from benchmarks.workload import SHARED
from hafrm.losses import PairLogProbs
from hafrm.training.objective import Objective

PolicyLoss = Callable[[Objective, PairLogProbs], Tensor]


class _Changes(TrainerCallback):
    """Changes to the training that no option makes; this class changes nothing."""

    def policy_loss(self, usual: PolicyLoss) -> PolicyLoss:
        return usual


class _OnAQuarter(_Changes):
    """Count the policy loss of a quarter of the pairs four times. Digits of the reference choose the pairs."""

    def policy_loss(self, usual: PolicyLoss) -> PolicyLoss:
        def loss(objective: Objective, log_probs: PairLogProbs) -> Tensor:
            assert log_probs.reference_chosen is not None
            chosen = (1000 * log_probs.reference_chosen.double()).remainder(1) < 0.25
            return 4 * chosen * usual(objective, log_probs)

        return loss


class _Annealed(_Changes):
    """Lower the weight of the policy loss linearly, from twice the usual one to 0."""

    factor = 2.0

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.factor = 2 * (1 - (state.global_step + 0.5) / state.max_steps)

    def policy_loss(self, usual: PolicyLoss) -> PolicyLoss:
        return lambda objective, log_probs: self.factor * usual(objective, log_probs)


class _FastHead(_Changes):
    """Train the reward head at ten times the learning rate."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, lr_scheduler: Any, **kwargs: Any
    ) -> None:
        head = set(model.reward_head.parameters())
        for group in list(optimizer.param_groups):
            found = [parameter for parameter in group["params"] if parameter in head]
            if found:
                group["params"] = [parameter for parameter in group["params"] if parameter not in head]
                optimizer.add_param_group({**group, "params": found})
                for values in (lr_scheduler.base_lrs, lr_scheduler.lr_lambdas):
                    values.append(values[0])
                lr_scheduler.base_lrs[-1] *= 10


class Way(NamedTuple):
    """Options in addition to the common ones, which include float32, and changes that no option makes."""

    options: dict[str, Any]
    changes: type[_Changes] = _Changes


WAYS: dict[str, dict[str, Way]] = {
    "time": {
        "default": Way({}),
        "by prompt": Way({"data_options": {"batch_by": "prompt"}}),
        "bfloat16": Way({"training": {"bf16": True}}),
    },
    "policy": {
        "default": Way({}),
        "no policy loss": Way({"method": "baseline"}),
        "averaged over tokens": Way({"loss": {"policy_loss": "sigmoid_norm", "beta": 2.0}}),
        "on a quarter of the pairs": Way({}, _OnAQuarter),
        "falling weight": Way({}, _Annealed),
        "faster reward head": Way({}, _FastHead),
    },
}
"""The ways of each topic; each other way is compared with the default."""


def main() -> None:
    """Train, evaluate, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--data", nargs="+", required=True, help="sets of ../shared/data")
    parser.add_argument("--topic", choices=WAYS, default="time")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--out", required=True, help="a file for the JSON")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("steps", "learning_rate", "max_length")}
    settings["model"] = Path(options.model).name
    result = _earlier(Path(options.out), settings)
    for data in options.data:
        for seed in options.seeds:
            for way in WAYS[options.topic]:
                name = f"{data} {way} {seed}"
                if name not in result["trained"]:
                    result["trained"][name] = _run(options, data, way, seed)
                    save(options.out, result)
    result["choices"] = list(_compare(options, result["trained"]))
    save(options.out, result)
    rows = [tuple(str(value) for value in each.values()) for each in result["choices"]]
    print_table("accuracy on test pairs", tuple(result["choices"][0]), rows)


def _earlier(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if out.exists():
        saved: dict[str, Any] = json.loads(out.read_text())
        if all(saved[name] == value for name, value in settings.items()):
            return saved
    return {"environment": environment(), **settings, "trained": {}}


def _run(options: argparse.Namespace, data: str, way: str, seed: int) -> dict[str, float]:
    import hafrm

    more, changes = WAYS[options.topic][way].options, WAYS[options.topic][way].changes()
    with (
        tempfile.TemporaryDirectory() as place,
        patch.object(Objective, "_policy_loss", changes.policy_loss(Objective._policy_loss)),
    ):
        out = Path(place)
        training = {
            "max_steps": options.steps,
            "learning_rate": options.learning_rate,
            "seed": seed,
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            **more.get("training", {}),
        }
        hafrm.train(
            {
                **more,
                "model": options.model,
                "data": [str(SHARED / "data" / f"{data}-train.jsonl.gz")],
                "out": str(out / "run"),
                "data_options": {"max_length": options.max_length, **more.get("data_options", {})},
                "training": training,
            },
            callbacks=[changes],
        )
        lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
        rates = [line["tokens_per_second"] / line["pairs_per_second"] for line in lines if "tokens_per_second" in line]
        results = hafrm.evaluate(
            {
                "models": [str(out / "run")],
                "data": [str(SHARED / "data" / f"{data}-test.jsonl.gz")],
                "out": str(out / "evaluated"),
                "token_log_ratios": 0,
            }
        )
        (cell,) = results.cells.values()
        accuracy = cell.measured.accuracy if cell.measured else float("nan")
    return {"accuracy": accuracy, "tokens_per_pair": round(fmean(rates), 1)}


def _compare(options: argparse.Namespace, trained: dict[str, dict[str, float]]) -> Iterator[dict[str, Any]]:
    """Yield each set's comparison of each way with the default, accuracies in percent and means over seeds."""
    ways = list(WAYS[options.topic])
    for data in options.data:
        found = {way: [trained[f"{data} {way} {seed}"] for seed in options.seeds] for way in ways}
        before = [100 * run["accuracy"] for run in found["default"]]
        tokens = {way: fmean(run["tokens_per_pair"] for run in runs) for way, runs in found.items()}
        for way in ways[1:]:
            after = [100 * run["accuracy"] for run in found[way]]
            gains = [b - a for a, b in zip(before, after, strict=True)]
            yield {
                "set": data,
                "way": way,
                "default": round(fmean(before), 1),
                "this way": round(fmean(after), 1),
                "gain": round(fmean(gains), 1) + 0.0,  # not -0.0
                "gain by seed": ", ".join(f"{gain:+.1f}" for gain in gains),
                "tokens, this way / default": round(tokens[way] / tokens["default"], 2),
            }


if __name__ == "__main__":
    main()
