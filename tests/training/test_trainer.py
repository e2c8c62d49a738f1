"""The trainer: its loss, its logs, and its errors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import TrainingArguments

from hafrm.encoding import ConversationEncoder
from hafrm.errors import NonFiniteLossError
from hafrm.losses import POLICY_LOSSES, REWARD_LOSSES
from hafrm.models.layout import choose_layout
from hafrm.models.options import LoraOptions
from hafrm.models.references import frozen_copy_reference, precompute_reference
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.training.batches import PairDataset
from hafrm.training.callbacks import ConsoleProgress
from hafrm.training.loss import LossConfig
from hafrm.training.objective import Objective
from hafrm.training.trainer import HybridTrainer
from tests.models.test_checkpoints import info
from tests.tiny import save_tiny, some_pairs, tables_of


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "base")


def trainer(
    base: Path,
    out: Path,
    loss: LossConfig,
    *,
    pairs: int = 12,
    reference: bool = True,
    choice: str = "auto",
    lora: LoraOptions | None = None,
    tokens_per_batch: int = 8192,
    **args,
) -> HybridTrainer:
    tokenizer = load_tokenizer(str(base))
    torch.manual_seed(0)  # adapters start at random
    model = new_model(str(base), tokenizer, lora=lora or LoraOptions(), seed=0)
    encoder = ConversationEncoder(tokenizer, 128)
    the_pairs = some_pairs(pairs)
    groups = [encoder.encode(pair.prompt, [pair.chosen, pair.rejected]) for pair in the_pairs]
    objective = Objective(loss)
    layout = choose_layout(model, 3, max_length=128, choice=choice)
    known = None
    if reference and objective.needs_reference:
        tables = tables_of(the_pairs, groups)
        known = np.empty(tables.num_responses, dtype=np.float32)
        pairs = tables.pairs[["chosen", "rejected"]]
        of_pairs = precompute_reference(model, groups, layout=layout, batch_size=4, cache=out / "cache")
        for sides, values in zip(pairs.tolist(), of_pairs, strict=True):
            known[list(sides)] = values
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return HybridTrainer(
        model,
        TrainingArguments(output_dir=str(out), **(defaults | args)),
        objective=objective,
        layout=layout,
        tokens_per_batch=tokens_per_batch,
        tokenizer=tokenizer,
        info=info(base),
        train_dataset=PairDataset(tables_of(the_pairs, groups), known),
        eval_dataset=PairDataset(tables_of(the_pairs, groups), known),
        live_reference=None if reference else frozen_copy_reference(model),
    )


def weights(trained: HybridTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


def first_batch(the_trainer: HybridTrainer):
    """Four pairs, as one part."""
    (batch,) = the_trainer.data_collator([the_trainer.train_dataset[i] for i in range(4)]).parts
    return batch


def test_the_hybrid_loss_is_the_sum_of_its_parts(base: Path, tmp_path: Path) -> None:
    """Eq. 5: (1, 0.2) equals the baseline's loss plus 0.2 times DPO's, and so do the gradients."""
    losses, gradients = {}, {}
    for name, (reward_weight, policy_ratio) in {"haf": (1, 0.2), "baseline": (1, 0), "dpo": (0, 1)}.items():
        one = trainer(base, tmp_path / name, LossConfig(reward_weight=reward_weight, policy_ratio=policy_ratio))
        loss = one.compute_loss(one.model, first_batch(one))
        loss.backward()
        losses[name] = loss.item()
        gradients[name] = torch.cat(
            [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in one.model.parameters()]
        )
    assert losses["haf"] == pytest.approx(losses["baseline"] + 0.2 * losses["dpo"], rel=1e-6)
    expected = gradients["baseline"] + 0.2 * gradients["dpo"]
    torch.testing.assert_close(gradients["haf"], expected, rtol=1e-4, atol=1e-6)


def test_dpo_starts_at_log_two(base: Path, tmp_path: Path) -> None:
    """Before the first step the policy equals its reference, so every log-ratio is 0."""
    one = trainer(base, tmp_path, LossConfig(reward_weight=0, policy_ratio=1))
    assert one.compute_loss(one.model, first_batch(one)).item() == pytest.approx(0.693147, abs=1e-5)


def test_training_lowers_the_loss_and_finds_the_preference(base: Path, tmp_path: Path) -> None:
    one = trainer(base, tmp_path, LossConfig(), max_steps=30, logging_steps=1)
    before = one.evaluate()
    one.train()
    after = one.evaluate()
    assert after["eval_loss"] < 0.5 * before["eval_loss"]
    assert after["eval_rewards/accuracies"] == 1.0
    assert after["eval_policy/margins"] > 0


def test_logs_hold_what_users_of_trl_know(base: Path, tmp_path: Path) -> None:
    one = trainer(base, tmp_path, LossConfig(), logging_steps=1)
    one.train()
    step = one.state.log_history[0]
    for name in ("loss", "loss/reward", "loss/policy", "grad_norm", "rewards/accuracies", "rewards/margins"):
        assert name in step
    for name in ("rewards/chosen", "rewards/rejected", "policy/margins", "policy/accuracies", "logps/chosen"):
        assert name in step
    assert step["loss"] == pytest.approx(step["loss/reward"] + 0.2 * step["loss/policy"], rel=1e-3)
    assert step["rewards/margins"] == pytest.approx(step["rewards/chosen"] - step["rewards/rejected"], abs=1e-5)


def test_what_is_said_is_no_markup() -> None:
    said = io.StringIO()
    ConsoleProgress(Console(file=said)).say("not packed: [b] in [/data]")
    assert said.getvalue() == "not packed: [b] in [/data]\n"


@pytest.mark.parametrize(("pairs", "batch", "part"), [(12, 4, 2), (6, 6, 4)], ids=["even", "uneven"])
def test_accumulated_batches_average_over_pairs(pairs: int, batch: int, part: int, base: Path, tmp_path: Path) -> None:
    """Two batches of 2 make a step of 4; of six pairs as 4 and 2, the smaller batch must not count double."""
    options = {"pairs": pairs, "max_steps": 2, "max_grad_norm": 0.0, "logging_steps": 1}
    whole = trainer(base, tmp_path / "whole", LossConfig(), per_device_train_batch_size=batch, **options)
    accumulated = {"per_device_train_batch_size": part, "gradient_accumulation_steps": 2}
    parts = trainer(base, tmp_path / "parts", LossConfig(), **accumulated, **options)
    whole.train()
    parts.train()
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=2e-5)
    for name in ("loss", "grad_norm"):
        logged = [[line[name] for line in one.state.log_history if name in line] for one in (whole, parts)]
        assert len(logged[0]) == 2
        assert logged[0] == pytest.approx(logged[1], rel=1e-4)


def test_a_live_reference_gives_the_same_run(base: Path, tmp_path: Path) -> None:
    precomputed = trainer(base, tmp_path / "a", LossConfig())
    live = trainer(base, tmp_path / "b", LossConfig(), reference=False)
    precomputed.train()
    live.train()
    torch.testing.assert_close(weights(precomputed), weights(live), rtol=1e-4, atol=1e-5)


POLICY = [
    LossConfig(policy_loss=kind, policy_ratio=1.0, policy_label_smoothing=0.1 if kind == "exo_pair" else 0.0)
    for kind in POLICY_LOSSES
]
REWARD = [LossConfig(reward_loss=kind, policy_ratio=0.0, centering=0.01) for kind in REWARD_LOSSES]


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(loss, id=name, marks=[] if name in ("dpo", "bradley_terry") else pytest.mark.slow)
        for name, loss in zip([*POLICY_LOSSES, *REWARD_LOSSES], POLICY + REWARD, strict=True)
    ],
)
def test_every_loss_trains(loss: LossConfig, base: Path, tmp_path: Path) -> None:
    one = trainer(base, tmp_path, loss, max_steps=8)
    before = one.evaluate()["eval_loss"]
    one.train()
    assert one.evaluate()["eval_loss"] < before


def test_a_loss_that_is_not_finite_names_its_rows(base: Path, tmp_path: Path) -> None:
    one = trainer(base, tmp_path, LossConfig())
    with torch.no_grad():
        one.model.score.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"step 1 for 4 of 4 pairs: test:\d+"):
        one.train()


def test_packed_and_padded_batches_make_the_same_run(base: Path, tmp_path: Path) -> None:
    """Up to rounding, the layout changes no loss, gradient or weight."""
    packed = trainer(base, tmp_path / "packed", LossConfig(), max_steps=5)
    padded = trainer(base, tmp_path / "padded", LossConfig(), max_steps=5, choice="padded")
    assert first_batch(packed).sequences.segments is not None
    assert first_batch(padded).sequences.segments is None
    packed.train()
    padded.train()
    torch.testing.assert_close(weights(packed), weights(padded), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("choice", ["auto", "padded"])
def test_a_token_budget_changes_no_step(choice: str, base: Path, tmp_path: Path) -> None:
    """A step cut into many parts gives the same loss, weights and logs up to rounding."""
    whole = trainer(base, tmp_path / "whole", LossConfig(), choice=choice, logging_steps=1)
    parts = trainer(base, tmp_path / "parts", LossConfig(), choice=choice, logging_steps=1, tokens_per_batch=100)
    cut = parts.data_collator([parts.train_dataset[i] for i in range(4)])
    assert len(cut.parts) > 1
    assert sorted(row for part in cut.parts for row in part.rows.tolist()) == [0, 1, 2, 3]
    whole.train()
    parts.train()
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=2e-5)
    for a, b in zip(whole.state.log_history[:3], parts.state.log_history[:3], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["rewards/margins"] == pytest.approx(b["rewards/margins"], abs=1e-4)
    assert whole.evaluate()["eval_loss"] == pytest.approx(parts.evaluate()["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("lora", [LoraOptions(), LoraOptions(rank=4)], ids=["full", "lora"])
def test_recomputed_activations_change_no_gradient(lora: LoraOptions, base: Path, tmp_path: Path) -> None:
    plain, recomputed = (trainer(base, tmp_path / name, LossConfig(), max_steps=2, lora=lora) for name in ("a", "b"))
    recomputed.args.activation_checkpointing = True
    plain.train()
    recomputed.train()
    torch.testing.assert_close(weights(plain), weights(recomputed), rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_near_float32(base: Path, tmp_path: Path) -> None:
    """Autocast on packed rows changes the loss of a step only by rounding."""
    losses = {}
    for bf16 in (False, True):
        one = trainer(base, tmp_path / str(bf16), LossConfig(), bf16=bf16, logging_steps=1, max_steps=2)
        one.train()
        losses[bf16] = [line["loss"] for line in one.state.log_history if "loss" in line]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    assert losses[True] != losses[False]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile has several of its own
def test_a_compiled_model_makes_the_same_run(base: Path, tmp_path: Path) -> None:
    """`--training.torch_compile true` on packed rows, whose layout changes at every step."""
    plain = trainer(base, tmp_path / "plain", LossConfig(), max_steps=3)
    compiled = trainer(base, tmp_path / "compiled", LossConfig(), max_steps=3, torch_compile_backend="aot_eager")
    plain.train()
    compiled.train()
    torch.testing.assert_close(weights(plain), weights(compiled), rtol=1e-3, atol=1e-4)
