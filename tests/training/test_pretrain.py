"""Pretraining from text: a stock folder, training and held-out text, and resuming after a kill."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast, Trainer

from hafrm.cli import main
from hafrm.cli.pretrain import loss_curves
from hafrm.errors import ConfigError, DamagedError, DataError, UnreadableError
from hafrm.pretraining.blocks import IGNORED, Blocks, document_sample, perplexity
from hafrm.pretraining.llama import new_llama
from hafrm.pretraining.shape import LlamaShape
from hafrm.store import alone
from hafrm.training import pretrain as pretrain_module
from hafrm.training.config import PretrainConfig
from hafrm.training.pretrain import pretrain
from hafrm.training.texts import read_texts, samples
from tests.tiny import tiny_tokenizer

SHAPE = LlamaShape(hidden=32, layers=1, heads=2, intermediate=48, vocabulary=320, context=32)


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture
def prose(tmp_path: Path) -> str:
    rows = [{"text": f"the cat number {i % 7} sat on the mat. " * 8, "split": "train"} for i in range(60)]
    return written(tmp_path / "prose.jsonl", [*rows, *({"text": "the cat sat. " * 40, "split": "valid"},) * 3])


@pytest.fixture
def talks(tmp_path: Path) -> str:
    talk = lambda i: [{"role": "user", "content": f"say {i % 5}"}, {"role": "assistant", "content": "yes " * 9}]  # noqa: E731
    turns = [talk(i) for i in range(60)]
    splits = ["valid" if i % 6 == 0 else "train" for i in range(60)]
    return written(tmp_path / "talks.jsonl", [{"messages": m, "split": s} for m, s in zip(turns, splits, strict=True)])


def config(data: str, out: Path, **more: Any) -> PretrainConfig:
    training = {"per_device_train_batch_size": 4, "max_steps": 24, "learning_rate": 1e-2} | more.pop("training", {})
    return PretrainConfig(data=[data], out=str(out), training=training, **more)


def test_a_base_and_an_instruct_model_are_stock_folders_that_learn(prose: str, talks: str, tmp_path: Path) -> None:
    base = pretrain(config(prose, tmp_path / "base", shape=SHAPE))
    assert base["perplexity"] < 60 < SHAPE.vocabulary
    assert base["losses"][-1][1] < base["losses"][0][1] - 0.5
    assert base["validation"][-1][0] == base["steps"] == 24
    assert math.exp(base["validation"][-1][1]) == pytest.approx(base["perplexity"], rel=0.05)
    assert base["tokens"] == 24 * 4 * 32
    assert not list((tmp_path / "base").glob("checkpoint-*"))
    before = pretrain(config(talks, tmp_path / "one", model=str(tmp_path / "base"), training={"max_steps": 1}))
    after = pretrain(config(talks, tmp_path / "instruct", model=str(tmp_path / "base")))
    assert after["perplexity"] < before["perplexity"]
    for name in ("base", "instruct"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert model.config.vocab_size == len(tokenizer)
        assert tokenizer.chat_template
        assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert pretrain(config(talks, tmp_path / "instruct", model=str(tmp_path / "base"))) == after  # nothing is trained
    assert not after["config"].keys() & {"shape", "tokenizer_texts", "untie"}  # the model contains nothing of them


def test_responses_alone_are_learnt_and_marked_rows_are_held_out(prose: str, talks: str, tmp_path: Path) -> None:
    pretrain(config(prose, tmp_path / "base", shape=SHAPE, training={"max_steps": 1}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert sum(1 for _ in read_texts([talks], held_out=True)) == 10
    assert sum(1 for _ in read_texts([talks], held_out=False)) == 50
    assert sum(1 for _ in read_texts([prose, talks], held_out=True)) == 13
    ids, labels = next(samples(read_texts([talks], held_out=False), tokenizer, 512))
    assert tokenizer.decode([token for token in labels if token != IGNORED]) == " " + "yes " * 9 + "</s>"
    assert tokenizer.decode(ids).startswith("<s>Human: say 1")
    assert list(samples(read_texts([talks], held_out=False), tokenizer, 4)) == []  # a prompt alone teaches nothing


def test_blocks_hold_every_token_once_and_no_padding() -> None:
    every = [([1, 2, 3], [IGNORED, 2, 3]), ([4, 5], [4, 5]), ([6, 7], [6, 7])]
    blocks = Blocks(every, 3)
    assert [blocks[i]["input_ids"].tolist() for i in range(len(blocks))] == [[1, 2, 3], [4, 5, 6]]
    assert blocks[0]["labels"].tolist() == [IGNORED, 2, 3]
    assert len(Blocks(every, 3, 1)) == 1
    assert len(Blocks(every, 100, 4)) == 0


def test_perplexity_is_over_tokens_alike_however_they_are_spread_over_blocks() -> None:
    model = new_llama(SHAPE, tiny_tokenizer()).eval()
    ids = torch.arange(9 * 8).remainder(50).tolist()
    labels = [
        IGNORED if place < 4 * 8 else token for place, token in enumerate(ids)
    ]  # the ninth block is a batch alone
    blocks = Blocks([(ids, labels)], 8)
    with torch.no_grad():
        logits = model(blocks.ids.long()).logits[:, :-1]
    nats = (
        -logits.log_softmax(-1).gather(-1, blocks.ids[:, 1:, None].long()).squeeze(-1)[blocks.labels[:, 1:] != IGNORED]
    )
    assert perplexity(model, blocks) == pytest.approx(nats.mean().exp().item(), rel=1e-5)
    batches = torch.stack([nats[:28].mean(), nats[28:].mean()])
    assert perplexity(model, blocks) != pytest.approx(batches.mean().exp().item(), rel=1e-5)
    assert math.isnan(perplexity(model, Blocks([(ids, (IGNORED,) * len(ids))], 8)))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_weights_of_a_whole_one(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(prose, tmp_path / "whole", shape=SHAPE)
    pretrain(whole)
    steps = 0
    step = Trainer.training_step

    def killed(self: Any, *args: Any, **more: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 14:
            raise KeyboardInterrupt
        return step(self, *args, **more)

    monkeypatch.setattr(Trainer, "training_step", killed)
    again = replace(whole, out=str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        pretrain(again)
    with pytest.raises(ConfigError, match="other options"):
        pretrain(replace(again, validation_blocks=1))
    optimizer = tmp_path / "killed" / "checkpoint-12" / "optimizer.pt"
    written = optimizer.read_bytes()
    optimizer.write_bytes(written[: len(written) // 2])
    with pytest.raises(DamagedError, match=r"checkpoint-12/optimizer\.pt is damaged"):
        pretrain(again)
    optimizer.write_bytes(written)
    steps = 100
    recipe = pretrain(again)
    assert steps - 100 == 24 - 12
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    before = json.loads((tmp_path / "whole" / "recipe.json").read_text())
    assert [recipe[name] for name in ("validation", "perplexity")] == [before["validation"], before["perplexity"]]


def test_half_a_tokenizer_is_made_anew(prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Any, folder: str, *args: Any, **more: Any) -> None:
        (Path(folder) / "tokenizer.json").write_text("{")
        raise KeyboardInterrupt

    told = config(prose, tmp_path / "m", shape=SHAPE, training={"max_steps": 1})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", stopped)
        pretrain(told)
    assert pretrain(told)["steps"] == 1


def test_a_run_that_was_killed_at_its_end_takes_no_step_more(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is of the last step, in the middle of an epoch."""
    whole = config(prose, tmp_path / "whole", shape=SHAPE, training={"max_steps": 6})
    before = pretrain(whole)

    def killed(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    again = replace(whole, out=str(tmp_path / "killed"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain_module, "_finish", killed)
        pretrain(again)
    monkeypatch.setattr(Trainer, "training_step", lambda *args, **more: pytest.fail("a step more"))
    after = pretrain(again)
    same = ("steps", "losses", "validation", "perplexity")
    assert [after[name] for name in same] == [before[name] for name in same]


def test_steps_are_foretold_as_the_trainer_counts_them(prose: str, tmp_path: Path) -> None:
    """Four batches at a time, and a remainder."""
    lines: list[str] = []
    arguments = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 4}
    recipe = pretrain(config(prose, tmp_path / "m", shape=SHAPE, training=arguments), say=lines.append)
    assert lines[-1].endswith(f"; {recipe['steps']:,} steps")
    blocks = int(lines[-1].split(" tokens in ")[1].split()[0])
    assert blocks % 16, "or the last step of an epoch has as many blocks as the others"
    assert recipe["tokens"] == 2 * blocks * 32


def test_a_document_of_a_tokenizer_without_a_first_token_begins_with_its_words() -> None:
    """Qwen's tokenizer has none."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    ids, _ = document_sample("a cat", tokenizer)
    assert tokenizer.decode(ids) == f"a cat{tokenizer.eos_token}"


def test_conversations_of_prompt_alone_are_counted(talks: str, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "yes"}]}
    rows = [json.loads(line) for line in Path(talks).read_text().splitlines()]
    data = written(tmp_path / "long.jsonl", [*rows, long, long])
    recipe = pretrain(config(data, tmp_path / "m", shape=SHAPE, training={"max_steps": 1}))
    assert recipe["left_out"] == {"conversations whose prompt is too long": 2}


def test_what_can_not_be_trained_on_is_a_named_error(prose: str, tmp_path: Path) -> None:
    for row in ({"messages": [{"role": "user", "content": "hi"}]}, {"txt": "hi"}, ["hi"]):
        bad = written(tmp_path / "bad.jsonl", [row])
        with pytest.raises(DataError, match=r"bad\.jsonl, row 1: a row for pretraining"):
            list(read_texts([bad], held_out=False))
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "\ud800"}]
    for row in ({"text": "a\ud800"}, {"messages": talk}):
        bad = written(tmp_path / "bad.jsonl", [{"text": "a"}, row])
        with pytest.raises(DataError, match=r"bad\.jsonl, row 2: .* is not valid Unicode"):
            list(read_texts([bad], held_out=False))
    with pytest.raises(DataError, match="Mark more rows"):
        pretrain(config(written(tmp_path / "all.jsonl", [{"text": "a b c " * 99}]), tmp_path / "o", shape=SHAPE))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="contains files that hafrm pretrain did not"):
        pretrain(config(prose, tmp_path / "full", shape=SHAPE))
    for name, value in {"shape": SHAPE, "tokenizer_texts": 9, "untie": False}.items():
        with pytest.raises(ConfigError, match=f"{name} has no effect"):
            config(prose, tmp_path, model="m", **{name: value})
    with pytest.raises(ConfigError, match=r"shape\.context"):
        config(prose, tmp_path, context=4)
    with pytest.raises(ConfigError, match="context must be at least 1"):
        config(prose, tmp_path, model="m", context=0)


def test_every_name_of_a_held_out_side_is_known_and_others_are_refused(tmp_path: Path) -> None:
    rows = [{"text": split or "none", "split": split} for split in (None, "Train", "val", "dev", "eval", "Test")]
    file = written(tmp_path / "sides.jsonl", rows)
    assert list(read_texts([file], held_out=False)) == ["none", "Train"]
    assert list(read_texts([file], held_out=True)) == ["val", "dev", "eval", "Test"]
    for split in ("tarin", ["valid"]):
        odd = written(tmp_path / "odd.jsonl", [{"text": "a", "split": split}])
        with pytest.raises(DataError, match=r"odd\.jsonl, row 1: `split` is .*Write train, or one of dev, eval"):
            list(read_texts([odd], held_out=False))


def test_what_can_not_begin_claims_no_folder(prose: str, tmp_path: Path) -> None:
    right = config(prose, tmp_path / "m", shape=SHAPE, training={"max_steps": 1})
    few = written(tmp_path / "few.jsonl", [{"text": "a b c"}])
    for data, error in ((str(tmp_path / "typo.jsonl"), UnreadableError), (few, DataError)):
        with pytest.raises(error):
            pretrain(replace(right, data=[data]))
    with pytest.raises(ConfigError, match="training"):
        pretrain(replace(right, training={"optim": "none"}))
    assert pretrain(right)["steps"] == 1


def test_other_text_is_not_taken_for_the_same(prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    told = config(prose, tmp_path / "m", shape=SHAPE, training={"max_steps": 1})
    before = Path(prose).read_text()
    for finished in (False, True):
        Path(prose).write_text(before)
        if finished:
            assert len(pretrain(told)["texts"][0]) == 64
        else:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(pretrain_module, "_finish", killed)
                pretrain(told)
        Path(prose).write_text(before.replace("cat", "dog"))
        with pytest.raises(DataError, match=r"prose\.jsonl changed since the model in .* was started"):
            pretrain(told)


def test_one_process_trains_in_a_folder(prose: str, tmp_path: Path) -> None:
    told = config(prose, tmp_path / "m", shape=SHAPE, training={"max_steps": 1})
    with alone(tmp_path / "m"), pytest.raises(ConfigError, match="Another command is writing"):
        pretrain(told)
    assert pretrain(told)["steps"] == 1


def test_half_a_model_is_never_left(prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Any, folder: str, *args: Any, **more: Any) -> None:
        (Path(folder) / "config.json").write_text("{")
        raise KeyboardInterrupt

    told = config(prose, tmp_path / "m", shape=SHAPE, training={"max_steps": 1, "save_strategy": "no"})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PreTrainedModel, "save_pretrained", stopped)
        pretrain(told)
    assert not (tmp_path / "m" / "config.json").exists()
    assert pretrain(told)["steps"] == 1


@pytest.mark.parametrize("shape", [{"heads": 0}, {"heads": -2}, {"hidden": 0}, {"hidden": -64}])
def test_a_shape_that_is_none_is_refused(shape: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(shape))} must be at least 1"):
        LlamaShape(**shape)


def test_the_picture_of_the_losses_has_a_curve_for_each_kind_of_loss() -> None:
    recipe = {"parameters": 1, "tokens": 2, "perplexity": 3.0, "losses": [[1, 5.0], [2, 4.0]], "validation": []}
    assert "held out" not in loss_curves(recipe)
    held_out = [loss_curves(recipe | {"validation": [[1, 5.0], [2, last]]}) for last in (4.0, 4.5)]
    assert all("held out" in picture for picture in held_out)
    assert held_out[0] != held_out[1]


def test_the_command(prose: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--shape.hidden", "32", "--shape.heads", "2", "--shape.vocabulary", "320", "--shape.context", "32"]
    words += ["--shape.layers", "1", "--training.max_steps", "2", "--training.per_device_train_batch_size", "2"]
    assert main(["pretrain", "--data", prose, "--out", str(tmp_path / "m"), *words]) == 0
    assert "perplexity" in capfd.readouterr().out
    recipe = json.loads((tmp_path / "m" / "recipe.json").read_text())
    assert (recipe["config"]["shape"]["hidden"], recipe["config"].keys() & {"out", "context"}) == (32, set())
    picture = (tmp_path / "m" / "losses.svg").read_text()
    assert f"to perplexity {recipe['perplexity']:.1f} on held-out text" in picture
    assert "held out</text>" in picture
    assert main(["pretrain", "--data", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "n")]) == 2
