"""A run from its options to its folder: its files, and that a stopped run resumes as if it had not stopped."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
)

from hafrm.cli import main
from hafrm.cli.rlhf import write_curves
from hafrm.errors import (
    ConfigError,
    DamagedError,
    DataError,
    ModelError,
    NonFiniteLossError,
    TrainingError,
    UnwritableError,
)
from hafrm.models.hybrid import HybridModel
from hafrm.models.options import LoraOptions, ScoreOptions, ScorerChoice
from hafrm.packing import SequenceBatch
from hafrm.pairs import Prompt
from hafrm.rlhf import groups, ppo, run
from hafrm.rlhf.checkpoints import STATE_FILE, checkpoint_answers
from hafrm.rlhf.groups import GroupReward
from hafrm.rlhf.job import RlhfJob, deal
from hafrm.rlhf.options import GroupOptions, KlOptions, PpoOptions, RlhfConfig, SamplingOptions
from hafrm.rlhf.run import rlhf
from hafrm.training.manifest import is_finished, read_manifest
from tests.rlhf.conftest import Scripted, reward_by, tiny_inputs
from tests.tiny import save_tiny, tiny_tokenizer

Config = Callable[..., RlhfConfig]
Rewarded = Callable[[Callable[[str], float | None]], None]

CLOCKS = {"seconds/sampling", "seconds/learning"}


def metrics(folder: Path | str) -> list[dict[str, float]]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in CLOCKS} for line in lines]


def length(text: str) -> float:
    return float(len(text))


def interrupt(*args: object, **more: object) -> None:
    raise KeyboardInterrupt


def kill_at(step: int) -> Callable[[int, Mapping[str, float]], None]:
    """Receives a run's progress, and stops it after this step."""

    def kill(done: int, told: Mapping[str, float]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return kill


def group_of_two(algorithm: str, iterations: int = 1) -> dict[str, Any]:
    """Return options for TRL's algorithms with two answers per prompt; none for PPO."""
    return {} if algorithm == "ppo" else {"group": GroupOptions(generations=2, iterations=iterations)}


@pytest.mark.parametrize("rank", [0, 4])
def test_what_a_run_leaves(rank: int, tiny: Config, rewarded: Rewarded) -> None:
    """Stock transformers loads the policy and its evenly spaced checkpoints; metrics have one line per step."""
    rewarded(length)
    config = tiny(lora=LoraOptions(rank=rank))
    before = torch.random.get_rng_state()
    result = rlhf(config)
    assert torch.equal(torch.random.get_rng_state(), before)
    folder = Path(config.out)
    assert [row["step"] for row in metrics(folder)] == [1, 2, 3, 4]
    assert result.last["reward"] == metrics(folder)[-1]["reward"]
    assert {p.name for p in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert [p.parent.name for p in folder.glob(f"*/{STATE_FILE}")] == ["checkpoint-4"]
    assert is_finished(folder)
    ids = torch.tensor([[1, 40, 50]])
    last, final = (
        AutoModelForCausalLM.from_pretrained(place)(ids).logits for place in (folder / "checkpoint-4", folder)
    )
    torch.testing.assert_close(last, final, atol=1e-4, rtol=1e-4)
    start = AutoModelForCausalLM.from_pretrained(config.model)(ids).logits
    assert (final - start).abs().max() > 1e-4
    assert not any("score" in name for name in load_file(folder / "model.safetensors"))
    assert AutoTokenizer.from_pretrained(folder / "checkpoint-2").chat_template


def test_at_the_start_the_policy_is_its_reference(tiny: Config, rewarded: Rewarded) -> None:
    rewarded(length)
    rlhf(tiny(steps=2))
    first, second = metrics(tiny().out)
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert second["kl"] != pytest.approx(0, abs=1e-5)
    assert first["kl_coefficient"] == 0.2
    assert second["kl_coefficient"] < 0.2  # zero KL is below its target
    assert second["learning_rate"] == pytest.approx(first["learning_rate"] / 2)


def test_ratios_begin_at_1(tiny: Config, rewarded: Rewarded) -> None:
    """The same forward pass measures and learns, so nothing is clipped in the first pass."""
    rewarded(length)
    rlhf(tiny(ppo=PpoOptions(epochs=1), sampling=SamplingOptions(max_new_tokens=8, temperature=0.7)))
    for row in metrics(tiny().out):
        assert row["clip_fraction"] == 0
        assert row["kl_moved"] == pytest.approx(0, abs=1e-6)
        assert row["loss/policy"] == pytest.approx(0, abs=1e-5)  # the mean of whitened advantages, negated


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Options of runs that several tests use, each in a separate folder."""
    return tiny_inputs(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module", params=[0, 4])
def whole(request: pytest.FixtureRequest, shared: Config, tmp_path_factory: pytest.TempPathFactory) -> RlhfConfig:
    """Uninterrupted runs, by the rank of their adapters."""
    lora = LoraOptions(rank=request.param, dropout=0.1 if request.param else 0.0)
    config = shared(lora=lora, kl=KlOptions(target=0.5, horizon=50), out=str(tmp_path_factory.mktemp("whole") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        reward_by(length, patch)
        rlhf(config)
    return config


@pytest.mark.parametrize("killed_at", [2, 3, 4])
def test_a_killed_run_goes_on_bit_for_bit(
    killed_at: int, whole: RlhfConfig, rewarded: Rewarded, tmp_path: Path
) -> None:
    """Sampling, dropout, optimizer, schedule, values and KL coefficient resume to the same curves and weights."""
    rewarded(length)
    config = replace(whole, out=str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        rlhf(config, progress=kill_at(killed_at))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    lines: list[str] = []
    rlhf(config, say=lines.append)
    assert any(f"resumes after step {killed_at - killed_at % 2}" in line for line in lines)
    assert metrics(config.out) == metrics(whole.out)
    ours, theirs = (load_file(Path(out) / "model.safetensors") for out in (config.out, whole.out))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("iterations", "steps", "checkpoints", "killed_at", "behind"),
    [
        (1, 7, 3, 6, 5),
        pytest.param(2, 14, 4, 11, 8, marks=pytest.mark.slow),
    ],  # the second of 4 checkpoints in 14 steps is at 7, one pass into the fourth batch
)
@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("rloo", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_of_trl_goes_on_bit_for_bit(
    algorithm: str,
    iterations: int,
    steps: int,
    checkpoints: int,
    killed_at: int,
    behind: int,
    tiny: Config,
    rewarded: Rewarded,
    tmp_path: Path,
) -> None:
    """The run stops in the second epoch, and where a checkpoint would fall between two passes over a batch."""
    pytest.importorskip("trl")
    rewarded(length)
    whole = tiny(
        algorithm=algorithm,
        **group_of_two(algorithm, iterations),
        lora=LoraOptions(rank=2, dropout=0.1),
        steps=steps,
        checkpoints=checkpoints,
        out=str(tmp_path / "whole"),
    )
    rlhf(whole)
    config = replace(whole, out=str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        rlhf(config, progress=kill_at(killed_at))
    lines: list[str] = []
    rlhf(config, say=lines.append)
    wanted = {f"checkpoint-{step}" for step in range(1, steps + 1) if config.is_checkpoint(step)}
    assert {path.name for path in Path(config.out).glob("checkpoint-*")} == wanted
    assert any(f"resumes after step {behind}" in line for line in lines)
    assert metrics(config.out) == metrics(whole.out)
    ours, theirs = (load_file(Path(out) / "model.safetensors") for out in (config.out, whole.out))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_parts_of_a_batch_add_up(tiny: Config, rewarded: Rewarded, tmp_path: Path) -> None:
    rewarded(length)
    for tokens in (64, 8192):
        rlhf(tiny(tokens_per_batch=tokens, steps=1, out=str(tmp_path / str(tokens))))
    small, large = (metrics(tmp_path / str(tokens))[0] for tokens in (64, 8192))
    assert small == pytest.approx(large, rel=1e-3, abs=1e-6)


def test_a_missing_end_costs_and_is_told(tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The curve shows the unmodified reward of the reward model."""
    rewarded(lambda text: 1.0)
    seen = []
    shaped = ppo.shaped_rewards
    monkeypatch.setattr(ppo, "shaped_rewards", lambda scores, *rest: seen.append(scores) or shaped(scores, *rest))
    rlhf(tiny(steps=1, missing_eos_penalty=3.0, ppo=PpoOptions(scores="raw")))
    (row,) = metrics(tiny().out)
    assert row["reward"] == 1
    assert row["ended"] < 1
    assert seen[0].mean().item() == pytest.approx(1 - 3 * (1 - row["ended"]))


def test_unscored_responses_are_left_out_and_counted(tiny: Config, rewarded: Rewarded) -> None:
    count = [0]

    def every_other(text: str) -> float | None:
        count[0] += 1
        return 1.0 if count[0] % 2 else None

    rewarded(every_other)
    rlhf(tiny(steps=1))
    assert metrics(tiny().out)[0]["unscored"] == 2
    rewarded(lambda text: None)
    with pytest.raises(DataError, match="scored none of 4 responses"):
        rlhf(tiny(out=tiny().out + "2"))


def test_the_gradients_norm_is_the_mean_over_the_steps_that_were_taken(
    tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four responses have a score, so that two of four parts are empty."""
    scores = iter([1.0, None, 2.0, None])
    rewarded(lambda text: next(scores))
    update, norms = ppo.PpoTrainer._update, []
    monkeypatch.setattr(ppo.PpoTrainer, "_update", lambda *args: norms.append(update(*args)) or norms[-1])
    rlhf(tiny(steps=1, ppo=PpoOptions(epochs=2, minibatches=4)))
    assert len(norms) == 4
    assert metrics(tiny().out)[0]["grad_norm"] == pytest.approx(sum(norms) / 4)


def test_a_reward_that_is_not_finite_stops_the_run(tiny: Config, rewarded: Rewarded) -> None:
    rewarded(lambda text: float("nan"))
    with pytest.raises(ModelError, match="4 of 4 rewards are not finite; the first is nan, of response 0"):
        rlhf(tiny())


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewarded(length)
    monkeypatch.setattr(ppo, "whiten", lambda advantages: advantages * float("inf"))
    with pytest.raises(NonFiniteLossError, match="step 1"):
        rlhf(tiny())


def test_a_gradient_that_is_not_finite_is_not_stepped_on(
    tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewarded(length)
    trained, seen = ppo.PpoTrainer.step, []

    def spoilt(self: ppo.PpoTrainer, number: int) -> dict[str, float]:
        seen.append(self)
        self.parameters[0].register_hook(lambda gradient: gradient * float("inf"))
        return trained(self, number)

    monkeypatch.setattr(ppo.PpoTrainer, "step", spoilt)
    with pytest.raises(NonFiniteLossError, match="gradient is not finite at step 1"):
        rlhf(tiny())
    assert all(parameter.isfinite().all() for parameter in seen[0].parameters)


def test_half_precision_is_the_policys_alone(tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward model keeps its own dtype; otherwise its rewards would differ from those of `hafrm evaluate`."""
    seen: dict[str, set[bool]] = {"reward": set(), "policy": set()}

    def half() -> bool:
        return torch.is_autocast_enabled("cpu")

    def note(text: str) -> float:
        seen["reward"].add(half())
        return length(text)

    states = HybridModel.hidden_states

    def spied(self: HybridModel, batch: SequenceBatch) -> torch.Tensor:
        seen["policy"].add(half())
        return states(self, batch)

    rewarded(note)
    monkeypatch.setattr(RlhfConfig, "mixed", True)
    trained = ppo.PpoTrainer.step
    monkeypatch.setattr(
        ppo.PpoTrainer, "step", lambda *args: monkeypatch.setattr(HybridModel, "hidden_states", spied) or trained(*args)
    )
    rlhf(tiny(steps=2))
    assert seen == {"reward": {False}, "policy": {True}}


def test_head_and_reference_are_the_rewards_alone(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitoring scorer is another model, scored by the head for which it was trained."""
    asked = {}

    def load(name: str, choice: ScorerChoice, options: object) -> Scripted:
        asked[name] = (choice.head, choice.reference)
        return Scripted(length)

    monkeypatch.setattr(run, "load_reward", load)
    monkeypatch.setattr(run, "reward_identity", lambda *_: {})
    rlhf(tiny(steps=1, gold="other", head="policy", reference="base"))
    assert asked == {"scripted": ("policy", "base"), "other": (None, None)}


@pytest.mark.parametrize(
    ("named", "values"), [("head", {"head": "policy"}), ("score.pessimism", {"score": ScoreOptions(pessimism=1.0)})]
)
def test_the_true_reward_has_no_heads(named: str, values: dict[str, Any], tiny: Config) -> None:
    with pytest.raises(ConfigError, match=f"--{named} has no effect on the true reward of world/helpful"):
        rlhf(tiny(reward="world/helpful", **values))


def test_a_reward_model_of_another_tokenizer(tiny: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """From the command line: a stock classifier with another vocabulary and template reads the policy's text."""
    tokenizer = tiny_tokenizer(
        template="{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{{ eos_token }}"
    )
    tokenizer.add_tokens(["question", "ques"])
    config = AutoConfig.for_model("llama", vocab_size=262, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                  num_attention_heads=2, num_labels=1, pad_token_id=3)  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    plain = tiny()
    words = ["rlhf", plain.model, "--reward", str(tmp_path / "rm"), "--data", *plain.data, "--out", plain.out]
    words += ["--steps", "2", "--batch_size", "2", "--sampling.max_new_tokens", "4", "--max_prompt_tokens", "64"]
    words += ["--gold", "world/helpful", "--ppo.epochs", "1"]
    assert main(words) == 0
    printed = capfd.readouterr()
    assert "The policy after 2 steps" in printed.out
    assert "step 2/2 reward" in printed.err
    assert {"reward", "gold", "kl", "length", "entropy", "loss/value", "clip_fraction"} <= metrics(plain.out)[0].keys()
    assert (Path(plain.out) / "curves.svg").read_text().startswith("<svg")
    assert main(words) == 2
    assert "already contains a finished run" in capfd.readouterr().err


def test_pictures_show_the_metrics_that_a_run_has(tmp_path: Path) -> None:
    """One value of the gold reward is enough; a run of TRL has no value loss."""
    rows = [{"step": 1, "reward": 1.0, "loss/policy": 0.5}, {"step": 2, "reward": 2.0, "loss/policy": 0.4, "gold": 1.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    curves, learning = ((tmp_path / name).read_text() for name in write_curves(tmp_path))
    assert all(title in curves for title in ("reward", "gold reward"))
    assert not any(title in curves for title in ("KL", "entropy", "policy loss"))
    assert "policy loss" in learning
    assert "value loss" not in learning


def test_a_run_is_not_mixed_with_another(tiny: Config, rewarded: Rewarded) -> None:
    rewarded(length)
    config = tiny()
    with pytest.raises(KeyboardInterrupt):
        rlhf(config, progress=interrupt)
    with pytest.raises(ConfigError, match="learning_rate"):
        rlhf(replace(config, learning_rate=1.0))
    Path(config.data[0]).write_text('{"prompt": "another"}\n')
    with pytest.raises(ConfigError, match="on other data"):
        rlhf(config)
    rlhf(replace(config, overwrite=True, steps=1))
    assert (read_manifest(Path(config.out)) or {})["steps"] == 1


def test_a_run_goes_on_beside_the_reference_and_in_the_precision_that_it_began_with(
    tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewarded(length)
    config = tiny()
    with pytest.raises(KeyboardInterrupt):
        rlhf(config, progress=interrupt)
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=r"bf16 \(was False, now True\)"):
        patch.setattr(RlhfConfig, "mixed", True)
        rlhf(config)
    save_tiny(Path(config.model), seed=1)
    with pytest.raises(ConfigError, match=r"unfinished run with other settings: weights \(was"):
        rlhf(config)


def reward_model(folder: Path, seed: int = 0, *, labels: int = 1) -> str:
    """A stock classifier with random weights; all its other files are the same for all seeds."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model("llama", vocab_size=260, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                  num_attention_heads=2, num_labels=labels, pad_token_id=3)  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("option", ["reward", "gold", "score.chat_template"])
def test_a_run_does_not_go_on_with_another_reward(option: str, tiny: Config, tmp_path: Path) -> None:
    """Contents change under the same name: of the reward model, of the monitoring scorer, or of a template."""
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    models = {"reward": tmp_path / "reward", "gold": tmp_path / "gold"}
    names = {name: reward_model(folder) for name, folder in models.items()}
    config = tiny(**names, score=ScoreOptions(chat_template=str(template)))
    with pytest.raises(KeyboardInterrupt):
        rlhf(config, progress=kill_at(2))
    if option in models:
        reward_model(models[option], seed=1)
        what = f"{option}.the model"
    else:
        template.write_text("{% for m in messages %}{{ m['role'] }}{% endfor %}")
        what = f"reward.{option}"
    with pytest.raises(ConfigError, match=rf"unfinished run with other settings: .*{what} \(was"):
        rlhf(config)


def test_a_run_goes_on_with_the_reward_that_it_began_with(tiny: Config, tmp_path: Path) -> None:
    """This holds with and without the value in the manifest, which older versions did not record."""
    config = tiny(reward=reward_model(tmp_path / "reward"), gold="world/helpful")
    for told in (True, False):
        with pytest.raises(KeyboardInterrupt):
            rlhf(replace(config, overwrite=True), progress=kill_at(2))
        path = Path(config.out) / "manifest.json"
        manifest = json.loads(path.read_text())
        assert len(manifest["effective"]["reward"]["the model"]) == 64
        if not told:
            manifest["effective"] = {"seed": 0}
            path.write_text(json.dumps(manifest))
        rlhf(config)
        assert is_finished(Path(config.out))


def test_an_older_run_in_another_precision_does_not_go_on(tiny: Config, rewarded: Rewarded) -> None:
    """The manifest does not record the weights, but it records the precision."""
    rewarded(length)
    with pytest.raises(KeyboardInterrupt):
        rlhf(tiny(), progress=kill_at(2))
    path = Path(tiny().out) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["effective"]["weights"], manifest["effective"]["reward"]
    path.write_text(json.dumps(manifest | {"effective": manifest["effective"] | {"dtype": "bfloat16"}}))
    with pytest.raises(ConfigError, match=r"dtype \(was bfloat16, now float32\)"):
        rlhf(tiny())


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_goes_on_keeps_its_beginnings_account(algorithm: str, tiny: Config, rewarded: Rewarded) -> None:
    """The manifest keeps the start time and versions of the first start; those of resumptions are separate."""
    if algorithm != "ppo":
        pytest.importorskip("trl")
    rewarded(length)
    config = tiny(algorithm=algorithm, **group_of_two(algorithm))
    with pytest.raises(KeyboardInterrupt):
        rlhf(config, progress=kill_at(3))
    path = Path(config.out) / "manifest.json"
    manifest = json.loads(path.read_text())
    began = {"started": "2020-01-01T00:00:00+00:00", "versions": {"torch": "1.0"}}
    path.write_text(json.dumps(manifest | began))
    rlhf(config)
    after = json.loads(path.read_text())
    assert {name: after[name] for name in began} == began
    (resumed,) = after["resumed"]
    assert resumed["started"] >= manifest["started"]
    assert resumed["versions"] == manifest["versions"]
    assert after["status"] == "finished"


def test_two_commands_do_not_train_in_one_folder(tiny: Config, rewarded: Rewarded) -> None:
    """The second run is refused before it reads the first one's files, and the first one completes."""
    rewarded(length)
    refused: list[BaseException] = []

    def second() -> None:
        try:
            rlhf(tiny(overwrite=True))
        except ConfigError as error:
            refused.append(error)

    def meanwhile(step: int, told: Mapping[str, float]) -> None:
        if step == 2:
            other = threading.Thread(target=second)  # the lock belongs to a thread, which may take it again
            other.start()
            other.join()

    rlhf(tiny(), progress=meanwhile)
    (error,) = refused
    assert "Another command" in str(error)
    assert str(tiny().out) in str(error)
    assert is_finished(Path(tiny().out))


def test_what_a_run_reads_is_not_overwritten(tiny: Config, rewarded: Rewarded) -> None:
    rewarded(length)
    rlhf(tiny(steps=1))
    folder = Path(tiny().out)
    (folder / "template.jinja").touch()
    for name, values in (
        ("reference", {"reference": str(folder)}),
        ("score.chat_template", {"score": ScoreOptions(chat_template=str(folder / "template.jinja"))}),
    ):
        with pytest.raises(ConfigError, match=f"{name}: .* is in the run's own folder"):
            rlhf(tiny(overwrite=True, **values))


def test_a_damaged_checkpoint_is_named(tiny: Config, rewarded: Rewarded) -> None:
    rewarded(length)
    with pytest.raises(KeyboardInterrupt):
        rlhf(tiny(), progress=kill_at(2))
    state = Path(tiny().out) / "checkpoint-2" / STATE_FILE
    state.write_bytes(b"half")
    with pytest.raises(DamagedError, match=r"checkpoint-2/trainer.pt is damaged\. Delete the folder"):
        rlhf(tiny())
    with ZipFile(state, "w") as archive:
        archive.writestr("other", "a whole archive, but not torch's")
    with pytest.raises(TrainingError, match=r"checkpoint-2/trainer.pt can't be read"):
        rlhf(tiny())


def flip(path: Path) -> None:
    """Change 64 bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 255 for byte in content[middle : middle + 64])
    path.write_bytes(content)


@pytest.fixture(scope="module")
def stopped(shared: Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], RlhfConfig]:
    """Runs that were killed in their third step, after checkpoint-2, by algorithm and the rank of their adapters."""

    @cache
    def stop(algorithm: str, rank: int) -> RlhfConfig:
        out = str(tmp_path_factory.mktemp(algorithm) / "run")
        config = shared(algorithm=algorithm, lora=LoraOptions(rank=rank), out=out, **group_of_two(algorithm))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            reward_by(length, patch)
            rlhf(config, progress=kill_at(3))
        return config

    return stop


@pytest.mark.parametrize(
    ("algorithm", "rank", "name"),
    [
        ("ppo", 0, "model.safetensors"),
        ("ppo", 4, "adapter_model.safetensors"),
        ("ppo", 0, STATE_FILE),
        ("ppo", 0, "checksums.json"),
        ("grpo", 0, "model.safetensors"),
        ("rloo", 4, "adapter_model.safetensors"),
        ("grpo", 0, "optimizer.pt"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_run_does_not_go_on_from_flipped_bytes(
    algorithm: str,
    rank: int,
    name: str,
    stopped: Callable[[str, int], RlhfConfig],
    rewarded: Rewarded,
    tmp_path: Path,
) -> None:
    """The weights or the training state are damaged; without the folder the run completes."""
    if algorithm != "ppo":
        pytest.importorskip("trl")
    rewarded(length)
    before = stopped(algorithm, rank)
    config = replace(before, out=str(tmp_path / "run"))
    shutil.copytree(before.out, config.out)
    checkpoint = Path(config.out) / "checkpoint-2"
    flip(checkpoint / name)
    with pytest.raises(DamagedError, match=rf"checkpoint-2/{name} .*Delete the folder .*checkpoint-2: the same"):
        rlhf(config)
    if name == "model.safetensors":
        shutil.rmtree(checkpoint)
        rlhf(config)
        assert [row["step"] for row in metrics(config.out)] == [1, 2, 3, 4]


def test_answers_are_not_those_of_a_damaged_checkpoint(tiny: Config, rewarded: Rewarded) -> None:
    rewarded(length)
    rlhf(tiny())
    flip(Path(tiny().out) / "checkpoint-2" / "model.safetensors")
    with pytest.raises(DamagedError, match=r"checkpoint-2/model.safetensors .*checksum differs"):
        list(checkpoint_answers(tiny(), [Prompt.of("Hi")], seed=0))


def test_a_checkpoint_without_checksums_is_gone_on_from(tiny: Config, rewarded: Rewarded) -> None:
    """Older versions wrote none."""
    rewarded(length)
    with pytest.raises(KeyboardInterrupt):
        rlhf(tiny(), progress=kill_at(3))
    (Path(tiny().out) / "checkpoint-2" / "checksums.json").unlink()
    rlhf(tiny())
    assert is_finished(Path(tiny().out))


@pytest.mark.parametrize(("full_behind", "left"), [(1, []), (4, ["checkpoint-2", "checkpoint-4"])])
def test_what_can_not_be_written_is_an_error_and_nothing_is_half_there(
    full_behind: int, left: list[str], tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk interrupts a checkpoint or the final policy; the same command resumes from what exists."""
    rewarded(length)

    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    def fill(done: int, told: Mapping[str, float]) -> None:
        if done == full_behind:
            patch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)

    with monkeypatch.context() as patch, pytest.raises(UnwritableError, match="No space left on device"):
        rlhf(tiny(), progress=fill)
    folder = Path(tiny().out)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == left
    assert not list(folder.glob("*.safetensors")) + list(folder.glob("config.json"))
    rlhf(tiny())
    assert is_finished(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"algorithm": "dpo"}, "algorithm must be ppo, grpo or rloo"),
        ({"algorithm": "grpo", "ppo": PpoOptions(epochs=2)}, "ppo.epochs has no effect with --algorithm grpo"),
        ({"algorithm": "rloo", "gold": "world/helpful"}, "gold has no effect"),
        ({"algorithm": "rloo", "batch_size": 6}, "group.generations"),
        ({"group": GroupOptions(generations=2)}, "group.generations has no effect with --algorithm ppo"),
        ({"ppo": PpoOptions(minibatches=3)}, "ppo.minibatches"),
        ({"data": []}, "data: name at least one"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "follows a validation loss"),
        ({"lr_scheduler_type": "greedy"}, "follows a validation loss"),
        ({"dtype": "float16"}, "float16 weights become NaN"),
    ],
)
def test_options_that_can_not_work_are_refused(values: dict[str, Any], message: str, tiny: Config) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**values)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        (SamplingOptions, "sampling.temperature"),
        (KlOptions, "kl.coefficient"),
        (KlOptions, "kl.target"),
        (PpoOptions, "ppo.value_weight"),
        (PpoOptions, "ppo.clip"),
        (GroupOptions, "group.clip"),
        (None, "learning_rate"),
        (None, "missing_eos_penalty"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(
    options: Callable[..., object] | None, name: str, value: float, tiny: Config
) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be a finite number, got {value}"):
        (options or tiny)(**{name.rpartition(".")[2]: value})


def test_adapters_beside_weights_in_float16_are_trained(tiny: Config, rewarded: Rewarded) -> None:
    """The weights themselves are in float32."""
    rewarded(length)
    rlhf(tiny(steps=2, dtype="float16", lora=LoraOptions(rank=2)))
    assert all(tensor.isfinite().all() for tensor in load_file(Path(tiny().out) / "model.safetensors").values())


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tiny: Config, rewarded: Rewarded, monkeypatch: Any
) -> None:
    rewarded(length)
    with pytest.raises(ConfigError, match="256 positions"):
        rlhf(tiny(sampling=SamplingOptions(max_new_tokens=250)))
    with pytest.raises(ConfigError, match="lr_scheduler_type"):
        rlhf(tiny(lr_scheduler_type="staircase"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="OpenRLHF or verl"):
        rlhf(tiny())
    assert not Path(tiny().out).exists()


def test_checkpoints_are_at_equal_steps() -> None:
    config = RlhfConfig(model="m", reward="r", data=["d"], out="o")
    assert [step for step in range(1, 6251) if config.is_checkpoint(step)] == [625 * i for i in range(1, 11)]
    assert config.steps * config.batch_size == 100_000
    few = replace(config, steps=3)
    assert all(few.is_checkpoint(step) for step in (1, 2, 3))


@pytest.mark.parametrize(
    ("steps", "checkpoints", "iterations", "wanted"),
    [
        (6, 4, 1, [2, 3, 5, 6]),  # 1.5, 3, 4.5 and 6
        (6, 4, 2, [2, 4, 6]),
        (8, 3, 2, [4, 6, 8]),
        (8, 10, 4, [4, 8]),
        (7, 2, 3, [6, 7]),  # the last batch has a single pass
        (12, 4, 3, [3, 6, 9, 12]),
    ],
)
def test_checkpoints_are_behind_whole_batches(steps: int, checkpoints: int, iterations: int, wanted: list[int]) -> None:
    """Equal steps, rounded up."""
    config = RlhfConfig(
        model="m",
        reward="r",
        data=["d"],
        out="o",
        steps=steps,
        checkpoints=checkpoints,
        algorithm="grpo",
        group=GroupOptions(iterations=iterations),
    )
    assert [step for step in range(1, steps + 1) if config.is_checkpoint(step)] == wanted


SERVER = "http://localhost:1"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"score": ScoreOptions(dtype="float32")}, "score.dtype"),
        ({"score": ScoreOptions(max_length=9, overlong="truncate")}, "score.max_length"),
        ({"score": ScoreOptions(overlong="drop")}, "score.overlong"),
        ({"score": ScoreOptions(chat_template="default")}, "score.chat_template"),
        ({"score": ScoreOptions(max_length=9), "gold": "world/helpful"}, "score.max_length"),
        ({"head": "policy"}, "head"),
        ({"head": "policy", "gold": "model"}, "head"),
        ({"score": ScoreOptions(pessimism=1.0), "gold": "model"}, "score.pessimism"),
        ({"gold": "http://user:secret@host"}, "no user"),
    ],
)
def test_what_a_server_would_not_read_is_refused(values: dict[str, Any], named: str, tiny: Config) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        tiny(reward=SERVER, **values)
    assert "secret" not in str(refused.value)


def test_what_the_policy_or_another_scorer_reads_is_taken_beside_a_server(tiny: Config) -> None:
    tiny(reward=SERVER)
    tiny(reward=SERVER, trust_remote_code=True, score=ScoreOptions(device="cpu", batch_size=2))
    tiny(reward=SERVER, gold="model", score=ScoreOptions(max_length=9))
    tiny(reward="model", gold=SERVER, head="policy", score=ScoreOptions(max_length=9, pessimism=1.0))


def test_trl_is_told_scores_less_what_a_missing_end_costs() -> None:
    """Rewards follow the prompts' indices, in any order of completions; unscored ones have none."""
    prompts = SimpleNamespace(prompts=(Prompt.of("a"), Prompt.of("b")))
    config = SimpleNamespace(missing_eos_penalty=3.0, reward="r", dense="none")
    job: Any = SimpleNamespace(prompts=prompts, config=config, tokenizer=None)
    scorer = SimpleNamespace(
        score=lambda talks: [
            None if talk.prompt.turns[0].content == "a" else float(len(talk.response[0].content)) for talk in talks
        ]
    )
    reward = GroupReward(job, scorer, {2})
    turns = [[{"role": "assistant", "content": text}] for text in ("xx ", "yyyy", "z")]
    state = TrainerState(global_step=3)
    given: dict[str, Any] = {"prompts": [], "trainer_state": state, "other": 1}
    ids = [[5, 2], [5, 6], [7, 2]]
    assert reward(completions=turns, completion_ids=ids, place=[1, 1, 0], **given) == [2.0, 4.0 - 3.0, None]
    assert reward.rewards == [2.0, 1.0, None]
    with pytest.raises(DataError, match="step 4: r scored none of 3 responses"):
        reward(completions=turns, completion_ids=ids, place=[0, 0, 0], **given)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.filterwarnings("ignore")
def test_trl_trains_with_the_same_scorer(algorithm: str, tiny: Config, rewarded: Rewarded, tmp_path: Path) -> None:
    """Metrics have hafrm's names, the policy is stock, and a stopped run resumes."""
    pytest.importorskip("trl")
    rewarded(length)
    config = tiny(algorithm=algorithm, group=GroupOptions(generations=2), missing_eos_penalty=1.0)
    with pytest.raises(KeyboardInterrupt):
        rlhf(config, progress=kill_at(3))
    rlhf(config)
    rows = metrics(config.out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"reward", "length", "ended", "unscored", "entropy", "kl_per_token"} <= rows[-1].keys()
    assert is_finished(Path(config.out))
    assert AutoModelForCausalLM.from_pretrained(config.out).config.vocab_size == 260


@pytest.mark.filterwarnings("ignore")
def test_trl_is_dealt_prompts_as_ppo_is(tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts come in the order given by seed and step, each as often as it has answers, epoch after epoch."""
    pytest.importorskip("trl")
    rewarded(length)
    answered, asked = groups.answered, []
    monkeypatch.setattr(groups, "answered", lambda prompt, text: asked.append(prompt) or answered(prompt, text))
    config = tiny(algorithm="rloo", **group_of_two("rloo"), steps=5)
    rlhf(config)
    dealt = [place for step in range(1, 6) for place in deal(6, 2, step, config.seed) for _ in range(2)]
    assert [prompt.turns[0].content for prompt in asked] == [f"question {place}" for place in dealt]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.filterwarnings("ignore")
def test_steps_of_trl_that_draw_no_responses_are_told_too(algorithm: str, tiny: Config, rewarded: Rewarded) -> None:
    """The second pass over a batch has its own line, with the clip fraction and without a reward."""
    pytest.importorskip("trl")
    rewarded(length)
    rlhf(tiny(algorithm=algorithm, learning_rate=0.01, group=GroupOptions(generations=2, iterations=2, clip=1e-4)))
    rows = metrics(tiny().out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert ["reward" in row for row in rows] == ["ended" in row for row in rows] == [True, False] * 2
    assert [row["clip_fraction"] > 0 for row in rows] == [False, True] * 2


@pytest.mark.filterwarnings("ignore")
def test_what_trl_has_no_score_of_is_counted_or_stops_the_run(tiny: Config, rewarded: Rewarded) -> None:
    pytest.importorskip("trl")
    scores = iter([1.0, 2.0, None, 0.0])
    rewarded(lambda text: next(scores, None))
    with pytest.raises(DataError, match="step 2: scripted scored none of 4 responses"):
        rlhf(tiny(algorithm="grpo", group=GroupOptions(generations=2)))
    (row,) = metrics(tiny().out)
    assert (row["unscored"], row["reward"]) == (1, 1)


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_trl_that_was_killed_at_its_end_takes_no_step_more(
    tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    rewarded(length)
    config = tiny(algorithm="rloo", group=GroupOptions(generations=2), steps=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RlhfJob, "finish", interrupt)
        rlhf(config)
    monkeypatch.setattr(Trainer, "training_step", lambda *args, **more: pytest.fail("a step more"))
    rlhf(config)
    ids = torch.tensor([[1, 40, 50]])
    folder = Path(config.out)
    last, final = (
        AutoModelForCausalLM.from_pretrained(place)(ids).logits for place in (folder / "checkpoint-2", folder)
    )
    torch.testing.assert_close(last, final, atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_trl_trains_adapters(tiny: Config, rewarded: Rewarded) -> None:
    pytest.importorskip("trl")
    rewarded(length)
    config = tiny(algorithm="rloo", group=GroupOptions(generations=2), lora=LoraOptions(rank=4), steps=1)
    rlhf(config)
    merged = AutoModelForCausalLM.from_pretrained(config.out)
    assert not isinstance(merged, PeftModel)
    assert not any("lora" in name for name in merged.state_dict())
    start = AutoModelForCausalLM.from_pretrained(config.model)
    moved = [n for n, t in merged.state_dict().items() if not torch.equal(t, start.state_dict()[n])]
    assert all("proj" in name for name in moved)
