"""Hash what every command writes on tiny models; a change that should not alter behaviour leaves the hashes equal.

    python -m tests.goldens record /tmp/before.json     # before the change
    python -m tests.goldens compare /tmp/before.json    # after it, on the same machine

Hashes of weights and rewards hold for one machine and one set of libraries, so no record is kept in the repository. The
files themselves remain in the folder that is printed at the end, for inspection if hashes differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from hafrm.cli import COMMANDS, main
from hafrm.encoding import ConversationEncoder
from hafrm.models.tokenizers import load_tokenizer
from hafrm.paper.experiments import EXPERIMENTS
from hafrm.paper.world import WORLD_SETS, world_pairs
from hafrm.serving.app import build_app
from hafrm.serving.config import ServeConfig
from hafrm.serving.service import RewardService
from tests.faults.whole import outcome
from tests.serving.conftest import tiny_scorer
from tests.tiny import save_tiny, some_pairs

FOLDER = Path("/tmp/hafrm-goldens")
TRAINING = {"max_steps": 4, "per_device_train_batch_size": 4, "eval_steps": 2, "save_steps": 2, "learning_rate": 1e-3}
TRAIN = [
    *("train", "--model", "base", "--data", "pairs.jsonl", "--eval_data", "more.jsonl"),
    *(f"--training.{name}={value}" for name, value in TRAINING.items()),
    *("--training.use_cpu=true", "--training.report_to=[]", "--data_options.max_length=128"),
]
RLHF = [
    *("rlhf", "base", "--data", "pairs.jsonl", "--reward", "runs/baseline", "--steps", "2", "--batch_size", "4"),
    *("--sampling.max_new_tokens", "8", "--max_prompt_tokens", "100", "--score.device", "cpu"),
]
RUNS: dict[str, list[str]] = {
    "haf": [*TRAIN, "--method", "haf"],
    "baseline": [*TRAIN, "--method", "baseline"],
    "dpo": [*TRAIN, "--method", "dpo"],
    "haf-lora": [*TRAIN, "--method", "haf", "--lora.rank", "4"],
    "haf-padded": [*TRAIN, "--method", "haf", "--layout", "padded"],
    "haf-ipo": [*TRAIN, "--method", "haf", "--loss.policy_loss", "ipo"],
}
COMMAND_LINES: dict[str, list[str]] = {
    "export": ["export", "runs/haf", "--out", "made/export"],
    "score": ["score", "runs/haf", "--data", "pairs.jsonl", "--out", "made/score/rows.jsonl"],
    "score-policy": ["score", "runs/dpo", "--data", "pairs.jsonl", "--out", "made/score/policy.jsonl"],
    "evaluate": [
        *("evaluate", "runs/haf", "runs/baseline", "runs/dpo", "--data", "more.jsonl", "--out", "made/evaluate"),
    ],
    "check": ["data", "check", "pairs.jsonl", "--tokenizer", "base"],
    "show": ["data", "show", "pairs.jsonl"],
    "sample": [
        *("sample", "base", "--data", "pairs.jsonl", "--out", "made/sample", "--n", "2", "--prompts", "6"),
        *("--sampling.max_new_tokens", "8"),
    ],
    "judge": ["judge", "pairs.jsonl", "--judge.kind", "reward", "--judge.model", "runs/haf", "--out", "made/judge"],
    "judge-local": ["judge", "more.jsonl", "--judge.kind", "local", "--judge.model", "base", "--out", "made/local"],
    "best-of-n": ["best-of-n", "runs/haf", "runs/dpo", "--samples", "made/sample/samples.jsonl", "--out", "made/best"],
    "ppo": [*RLHF, "--algorithm", "ppo", "--out", "made/ppo"],
    "grpo": [*RLHF, "--algorithm", "grpo", "--group.generations", "2", "--out", "made/grpo"],
    **{f"dry-run {name}": ["reproduce", name, "--dry_run", "--out", "made/dry"] for name in EXPERIMENTS},
    **{f"help {name}": [name, "--help"] for name in COMMANDS},
}


def made() -> dict[str, str]:
    """Run everything; return hashes by command and file."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    (FOLDER / "made" / "score").mkdir(parents=True)
    save_tiny(FOLDER / "base", max_position_embeddings=4096)
    rows = [json.dumps(pair.as_row() | {"margin": pair.row / 10}) for pair in some_pairs(24)]
    (FOLDER / "pairs.jsonl").write_text("\n".join(rows))
    (FOLDER / "more.jsonl").write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs(40)[24:]))
    found = {"token ids": _digest(_token_ids()), "openapi.json": _digest(_openapi())}
    found |= {f"world/{name}": _digest(content) for name, content in _worlds()}
    with contextlib.chdir(FOLDER):
        for name, command in {
            **{f"runs/{run}": [*words, "--out", f"runs/{run}"] for run, words in RUNS.items()}
        }.items():
            found |= _outcome(name, command)
            found |= {f"{name}/{file}": _digest(content) for file, content in outcome(FOLDER / name).items()}
        for name, command in COMMAND_LINES.items():
            found |= _outcome(name, command)
        found |= {file: _digest(content) for file, content in outcome(FOLDER / "made").items()}
    return found


def _outcome(name: str, command: list[str]) -> dict[str, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            status = main(command)
        except SystemExit as end:
            status = int(end.code or 0)
    if status:
        print(f"{name}: status {status}: {errors.getvalue()[-300:]}", file=sys.stderr)
    return {f"{name} (status and output)": _digest([status, said.getvalue()])}


def _token_ids() -> Any:
    encoder = ConversationEncoder(load_tokenizer(str(FOLDER / "base")), 128)
    groups = encoder.encode_many((pair.prompt, (pair.chosen, pair.rejected)) for pair in some_pairs(24))
    return [(group.prompt, group.responses) if hasattr(group, "prompt") else str(group) for group in groups]


def _openapi() -> Any:
    config = ServeConfig(models=["tiny=none"])
    return build_app(RewardService({"tiny": tiny_scorer()}, config)).openapi()


def _worlds() -> Any:
    for name in WORLD_SETS:
        yield name, [pair.as_row() for pair in world_pairs(name, size=60)]


def _digest(content: Any) -> str:
    raw = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True, default=repr).encode()
    return hashlib.sha256(raw).hexdigest()[:16]


if __name__ == "__main__":
    _, action, path = sys.argv
    now = made()
    if action == "record":  # twice, to exclude what differs between two runs, such as times
        again = made()
        now = {name: digest for name, digest in now.items() if again.get(name) == digest}
        Path(path).write_text(json.dumps(now, indent=1))
    else:
        before = json.loads(Path(path).read_text())
        changed = [name for name, digest in before.items() if now.get(name) != digest]
        print("\n".join(changed) or f"all {len(before)} are equal")
    print(f"{len(now)} goldens of {FOLDER}", file=sys.stderr)
