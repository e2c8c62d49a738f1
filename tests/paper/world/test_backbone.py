from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.pairs import Conversation, Message
from hafrm.paper.world import backbone, oracle_reward, qualities, split_of, world_pairs
from hafrm.paper.world.backbone import (
    BackboneRecipe,
    backbone_folder,
    instruct_conversations,
    pretraining_documents,
    world_backbone,
)
from hafrm.pretraining.blocks import Blocks, Sample, document_sample, perplexity, response_sample
from hafrm.pretraining.llama import new_llama
from hafrm.templates import DEFAULT_CHAT_TEMPLATE

TINY = BackboneRecipe(
    hidden=32,
    layers=1,
    heads=2,
    intermediate=64,
    vocabulary=600,
    context=64,
    base_steps=40,
    instruct_steps=6,
    blocks_per_step=2,
    validation_blocks=4,
    seed=1,
)


def samples(kind: str, folder: Path, seed: int, split: Literal["train", "validation"] = "train") -> Iterator[Sample]:
    """Read a stage's text with a backbone's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "base":
        return (document_sample(each, tokenizer) for each in pretraining_documents(1000, seed))
    encoder = ConversationEncoder(tokenizer, max_length=1000)
    return (response_sample(each, encoder) for each in instruct_conversations(1000, seed, split=split))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    world_backbone("instruct", folder, recipe=TINY)
    return folder


def test_both_stages_are_stock_folders(cache: Path) -> None:
    for kind in ("base", "instruct"):
        folder = world_backbone(kind, cache, recipe=TINY)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert type(model) is LlamaForCausalLM
        assert model.dtype == torch.float32
        assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
        special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
        assert len(set(special)) == 4
        assert None not in special
        assert model.config.pad_token_id == tokenizer.pad_token_id
        assert model.config.eos_token_id == tokenizer.eos_token_id
        assert model.config.vocab_size == len(tokenizer)
        assert tokenizer.chat_template == DEFAULT_CHAT_TEMPLATE
        assert tokenizer.decode(tokenizer.encode("Naïve ☃ text.", add_special_tokens=False)) == "Naïve ☃ text."


def test_the_base_leaves_the_policy_head_as_the_embeddings_and_the_instruct_stage_moves_both(cache: Path) -> None:
    base, instruct = (
        LlamaForCausalLM.from_pretrained(world_backbone(kind, cache, recipe=TINY)) for kind in ("base", "instruct")
    )
    assert torch.equal(base.lm_head.weight, base.model.embed_tokens.weight)
    assert not torch.equal(instruct.lm_head.weight, instruct.model.embed_tokens.weight)
    assert not torch.equal(instruct.lm_head.weight, base.lm_head.weight)


def test_a_recipe_is_told_and_training_lowers_the_loss(cache: Path) -> None:
    base, instruct = (
        json.loads((world_backbone(kind, cache, recipe=TINY) / "recipe.json").read_text())
        for kind in ("base", "instruct")
    )
    assert base["recipe"]["base_steps"] == len(base["losses"]) == 40
    assert base["losses"][-1] < base["losses"][0] - 0.5
    assert base["perplexity"]["base"] < TINY.vocabulary
    assert instruct["perplexity"]["instruct"] < base["perplexity"]["instruct"]


@pytest.mark.parametrize(("kind", "peak", "warm"), [("base", 4e-3, 2), ("instruct", 3e-3, 1)])
def test_a_stage_is_trained_by_adamw_with_a_warm_cosine(kind: str, peak: float, warm: int, cache: Path) -> None:
    """A loop written out here has the same losses: rates rise for a twentieth of the steps and fall to a twentieth."""
    base, folder = (world_backbone(each, cache, recipe=TINY) for each in ("base", kind))
    losses = json.loads((folder / "recipe.json").read_text())["losses"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = new_llama(TINY, AutoTokenizer.from_pretrained(base))
    if kind == "instruct":
        model = LlamaForCausalLM.from_pretrained(base)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    blocks, found = Blocks(samples(kind, base, 1), 64, 2 * len(losses)), []
    model.train()
    for step in range(len(losses)):
        part = (step - warm) / (len(losses) - warm)
        share = (step + 1) / warm if step < warm else 0.05 + 0.95 * math.cos(math.pi / 2 * part) ** 2
        optimizer.param_groups[0]["lr"] = peak * share
        pair = (blocks[2 * step], blocks[2 * step + 1])
        loss = model(**{name: torch.stack([each[name] for each in pair]) for name in pair[0]}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    assert found == pytest.approx(losses, rel=1e-4)


def test_the_perplexities_of_a_recipe_are_on_text_that_was_not_trained_on(cache: Path) -> None:
    for kind in ("base", "instruct"):
        folder = world_backbone(kind, cache, recipe=TINY)
        model = LlamaForCausalLM.from_pretrained(folder)
        expected = {
            "base": perplexity(model, Blocks(samples("base", folder, -2), 64, 4)),
            "instruct": perplexity(model, Blocks(samples("instruct", folder, 1, "validation"), 64, 4)),
        }
        assert json.loads((folder / "recipe.json").read_text())["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_a_second_call_trains_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hafrm.paper.world.backbone._make", lambda *_: pytest.fail("trained again"))
    assert world_backbone("instruct", cache, recipe=TINY).parent == cache


def test_the_same_recipe_gives_the_same_weights_and_another_another_folder(cache: Path, tmp_path: Path) -> None:
    steps = []
    before, subnormals = torch.random.get_rng_state(), sys.float_info.min / 2
    again = world_backbone("base", tmp_path, recipe=TINY, progress=lambda *what: steps.append(what))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sys.float_info.min / 2 == subnormals
    first = world_backbone("base", cache, recipe=TINY)
    assert again.name == first.name
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert [step[:3] for step in steps] == [("base", step, 40) for step in range(1, 41)]
    assert world_backbone("base", tmp_path, recipe=replace(TINY, base_steps=1)) != again


@pytest.mark.parametrize("kind", ["base", "instruct"])
def test_a_stopped_stage_resumes_and_ends_with_the_same_weights(
    kind: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "_STEPS_PER_CHECKPOINT", 2)
    steps: list[int] = []
    stages: dict[str, int] = {}

    def progress(stage: str, step: int, of: int, loss: float) -> None:
        stages[stage] = of
        if stage == kind:
            steps.append(step)
            if steps == [1, 2, 3, 4, 5]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world_backbone(kind, tmp_path, recipe=TINY, progress=progress)
    again = world_backbone(kind, tmp_path, recipe=TINY, progress=progress)
    assert steps[5:7] == [5, 6]
    assert stages == ({"base": 40} if kind == "base" else {"base": 40, "instruct": 6})
    whole = world_backbone(kind, cache, recipe=TINY)
    for name in ("model.safetensors", "recipe.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    assert not [*tmp_path.glob(".*.checkpoint")]


def test_a_backbone_is_made_again_only_if_its_text_changes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world_backbone("base", cache, recipe=TINY)
    monkeypatch.setattr(backbone, "_ACTS", ("steal the show",))
    backbone._digest.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "_make", lambda kind, base, place, *_: (place / "model").touch())
        assert world_backbone("base", cache, recipe=TINY) != before
    monkeypatch.undo()
    backbone._digest.cache_clear()
    assert world_backbone("base", cache, recipe=TINY) == before


def test_a_backbone_is_made_again_with_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    before = backbone_folder("base", recipe=TINY)
    assert backbone_folder("base", recipe=TINY) == before
    monkeypatch.setattr(backbone, "versions", lambda *names: dict.fromkeys(names, "0"))
    assert backbone_folder("base", recipe=TINY).name != before.name


def test_who_comes_second_waits_and_finds_the_backbone_made(tmp_path: Path) -> None:
    """Each caller locks with a separate file handle, as two processes do."""
    steps: list[int] = []
    recipe = replace(TINY, base_steps=5)

    def make() -> Path:
        return world_backbone("base", tmp_path, recipe=recipe, progress=lambda stage, step, *_: steps.append(step))

    with ThreadPoolExecutor(2) as pool:
        folders = {future.result() for future in [pool.submit(make), pool.submit(make)]}
    assert steps == [1, 2, 3, 4, 5], "only one of them trained"
    (folder,) = folders
    assert LlamaForCausalLM.from_pretrained(folder).config.hidden_size == 32


def test_a_killed_training_leaves_no_half_folder(tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world_backbone("base", tmp_path, recipe=TINY, progress=stop)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_what_can_not_be_made_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`base` or `instruct`"):
        world_backbone("chat", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="heads"):
        BackboneRecipe(hidden=30, heads=4)
    with pytest.raises(ConfigError, match="vocabulary"):
        BackboneRecipe(vocabulary=100)
    with pytest.raises(ConfigError, match="instruct_steps"):
        BackboneRecipe(instruct_steps=0)


def test_the_text_is_prose_for_the_base_and_training_prompts_for_the_instruct_stage() -> None:
    documents = list(pretraining_documents(300))
    assert len(set(documents)) > 295
    assert not any(mark in document for document in documents for mark in ("Human:", "Assistant:"))
    speeches = sum("My " in document for document in documents)  # 15% of one to three parts of each
    assert 0.15 < speeches / len(documents) < 0.4
    talks = list(instruct_conversations(300))
    assert {split_of(talk.prompt) for talk in talks} == {"train"}
    assert {split_of(talk.prompt) for talk in instruct_conversations(100, split="validation")} == {"validation"}


def test_of_conversations_only_the_responses_are_learnt(cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world_backbone("base", cache, recipe=TINY))
    talk = next(instruct_conversations(1))
    ids, labels = next(backbone._samples("instruct", tokenizer, 0, held_out=False))
    assert tokenizer.decode([token for token in labels if token >= 0]) == f" {talk.response[0].content}</s>"
    assert tokenizer.decode(ids).startswith(f"<s>Human: {talk.prompt.turns[0].content}")
    ids, labels = next(backbone._samples("base", tokenizer, 0, held_out=False))
    assert ids == labels
    assert tokenizer.decode(ids) == f"<s>{next(pretraining_documents(1))}</s>"


def test_the_oracle_tells_the_good_conversations_from_the_rest() -> None:
    """Most answers have full marks, some do not, and both are to the same prompts."""
    full = [qualities(talk).correct == qualities(talk).complete == 1.0 for talk in instruct_conversations(400)]
    assert 0.8 < sum(full) / len(full) < 0.97


@pytest.mark.slow
def test_the_default_instruct_backbone_answers_held_out_prompts_on_topic(tmp_path: Path) -> None:
    folder = world_backbone("instruct", tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 1_000_000 < model.num_parameters() < 3_000_000
    marks, rewards = [], []
    for name in ("helpful", "safe", "human-pref"):
        for prompt in dict.fromkeys(pair.prompt for pair in world_pairs(name, "test", size=20)):
            ids = tokenizer.apply_chat_template(
                [turn.as_dict() for turn in prompt.turns],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            output = model.generate(**ids, max_new_tokens=60, do_sample=False)
            answer = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            talk = Conversation(prompt, (Message("assistant", answer),))
            garbage = Conversation(prompt, (Message("assistant", answer[::-1]),))
            marks.append(qualities(talk))
            rewards.append(oracle_reward(talk, name) > oracle_reward(garbage, name))
    assert sum(mark.relevant for mark in marks) / len(marks) > 0.7
    assert sum(mark.well_formed for mark in marks) / len(marks) > 0.9
    assert all(rewards)
