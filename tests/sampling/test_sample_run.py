"""Sampling from prompts to files: counts, batches, and interrupted runs."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hafrm.data import PromptRow, ReadOptions, load_prompts
from hafrm.errors import BadRowError, ConfigError, DataError, ModelError
from hafrm.models.options import LoraOptions
from hafrm.models.starts import new_model
from hafrm.pairs import Prompt
from hafrm.rlhf.checkpoints import save_checkpoint, save_policy
from hafrm.sampling.candidates import load_candidates
from hafrm.sampling.engines import Draw
from hafrm.sampling.options import SampleConfig, SampleOptions
from hafrm.sampling.run import sample
from hafrm.sampling.samples import Samples, sample_counts, sample_line
from hafrm.store import alone
from tests.sampling.scripts import ScriptedGenerator
from tests.sources import harmless
from tests.tiny import save_tiny, tiny_tokenizer

TEXTS = ["a" * length for length in (5, 1, 9, 3, 7, 2)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(tmp_path: Path, texts: list[str] = TEXTS, out: str = "out", **more: Any) -> SampleConfig:
    data = write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in texts])
    values: dict[str, Any] = {"n": 4, "sampling": SampleOptions(batch_size=8, max_new_tokens=5)}
    return SampleConfig(model="scripted", data=[data], out=str(tmp_path / out), **(values | more))


def lines(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "samples.jsonl").read_text().splitlines()]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    asked = config(tmp_path)
    with alone(Path(asked.out)), pytest.raises(ConfigError, match="Another command is writing"):
        sample(asked, generator=ScriptedGenerator())
    assert not (Path(asked.out) / "samples.jsonl").exists()
    waiting = threading.Thread(target=sample, args=(asked,), kwargs={"generator": ScriptedGenerator(), "wait": True})
    with alone(Path(asked.out)):
        waiting.start()
        waiting.join(0.2)
        assert not (Path(asked.out) / "samples.jsonl").exists()
    waiting.join()
    assert len(lines(asked.out)) == len(TEXTS)


def test_lines_stand_in_the_prompts_order_with_distinct_responses(tmp_path: Path) -> None:
    asked = config(tmp_path)
    generator = ScriptedGenerator()
    manifest = sample(asked, generator=generator)
    found = lines(asked.out)
    assert [line["prompt"][0]["content"] for line in found] == TEXTS
    assert generator.batches == [["a" * 9, "a" * 7], ["a" * 5, "a" * 3], ["a" * 2, "a"]]  # similar lengths
    for line in found:
        assert sum(line["counts"]) == 4
        assert len(set(line["responses"])) == len(line["responses"]) == len(line["tokens"])
    assert (manifest["status"], manifest["responses"], manifest["prompts"]) == ("finished", 24, 6)
    drawn = [
        text for line in found for text, n in zip(line["responses"], line["counts"], strict=True) for _ in range(n)
    ]
    assert (manifest["empty"], manifest["unfinished"]) == (drawn.count(""), drawn.count("no"))
    assert manifest["tokens"] == sum(len(text) + 1 for text in drawn)
    assert json.loads((Path(asked.out) / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize("cut", [0, 1, 40, 400])
def test_a_stopped_run_ends_with_the_same_file(cut: int, tmp_path: Path) -> None:
    """The run stops between batches, and its file is cut anywhere: in a line, or between two lines of a batch."""
    whole = config(tmp_path, out="whole")
    sample(whole, generator=ScriptedGenerator())
    asked = config(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sample(asked, generator=ScriptedGenerator(fail=lambda calls: calls == 2))
    path = Path(asked.out) / "samples.jsonl"
    path.write_bytes(path.read_bytes()[: -cut or None])
    said: list[str] = []
    resumed = ScriptedGenerator()
    sample(asked, generator=resumed, say=said.append)
    assert path.read_bytes() == (Path(whole.out) / "samples.jsonl").read_bytes()
    assert len(resumed.batches) == (1 if cut == 0 else 2)
    assert "resumes" in said[0]
    idle = ScriptedGenerator()
    sample(asked, generator=idle)
    assert not idle.batches


def test_a_run_that_was_stopped_before_its_lines_were_sorted_sorts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(tmp_path)

    def stop(self: Samples) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Samples, "finish", stop)
        sample(asked, generator=ScriptedGenerator())
    assert [line["prompt"][0]["content"] for line in lines(asked.out)] != TEXTS
    idle = ScriptedGenerator()
    sample(asked, generator=idle)
    assert not idle.batches
    assert [line["prompt"][0]["content"] for line in lines(asked.out)] == TEXTS


def test_an_unfinished_sampling_is_nothing_to_choose_from(tmp_path: Path) -> None:
    """The longest prompts come first, so the samples of a stopped run are not representative."""
    asked = config(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sample(asked, generator=ScriptedGenerator(fail=lambda calls: calls == 2))
    with pytest.raises(DataError, match=r"unfinished `hafrm sample`.*Run the same"):
        load_candidates(asked.out, ReadOptions())
    sample(asked, generator=ScriptedGenerator())
    assert len(load_candidates(asked.out, ReadOptions()).rows) == len(TEXTS)
    manifest = Path(asked.out) / "manifest.json"
    manifest.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load_candidates(asked.out, ReadOptions())
    manifest.unlink()  # samples of the user's own have none
    assert len(load_candidates(asked.out, ReadOptions()).rows) == len(TEXTS)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"format": 1, "status": "finished", "config": {}, "data": {}}, "out contains a training run"),
        ({"name": "a web app"}, "out contains a manifest.json that `hafrm sample` did not write"),
        ([1], "`hafrm sample` did not write"),
    ],
    ids=["run", "app", "list"],
)
def test_what_another_command_left_is_not_written_over(manifest: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / "manifest.json"
    path.parent.mkdir()
    path.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=said):
        sample(config(tmp_path), generator=ScriptedGenerator())
    assert json.loads(path.read_text()) == manifest
    assert [each.name for each in path.parent.iterdir()] == ["manifest.json"]


def test_equal_responses_are_counted_draw_by_draw() -> None:
    """One text may have been drawn as different tokens, cut at the limit once and ended by the model another time."""
    row = PromptRow(id="p:1", group="g", prompt=Prompt.of("q"))
    line = sample_line(row, [Draw("a", 5, False), Draw("a", 2, True), Draw("b", 3, True), Draw("a", 2, True)])
    assert (line["counts"], line["total_tokens"], line["unfinished"]) == ([3, 1], [9, 3], [1, 0])
    assert (line["tokens"], line["finished"]) == ([5, 3], [False, True])  # describe the first draw
    counts = sample_counts([line])
    assert (counts["responses"], counts["distinct"], counts["tokens"], counts["unfinished"]) == (4, 2, 12, 1)


def test_a_prompts_samples_do_not_depend_on_the_others(tmp_path: Path) -> None:
    sample(config(tmp_path), generator=ScriptedGenerator())
    few = config(tmp_path, TEXTS[3:], out="few", sampling=SampleOptions(batch_size=100, max_new_tokens=5))
    sample(few, generator=ScriptedGenerator())
    assert [line["responses"] for line in lines(few.out)] == [
        line["responses"] for line in lines(str(tmp_path / "out"))[3:]
    ]
    other = config(tmp_path, out="other", sampling=SampleOptions(seed=1, max_new_tokens=5))
    sample(other, generator=ScriptedGenerator())
    assert [line["counts"] for line in lines(other.out)] != [line["counts"] for line in lines(str(tmp_path / "out"))]


def test_what_is_too_long_or_refused_is_left_out_and_counted(tmp_path: Path) -> None:
    asked = config(tmp_path, [*TEXTS, "ax"], max_length=10, data_options=ReadOptions(on_bad_row="skip"))
    manifest = sample(asked, generator=ScriptedGenerator(refuse="x"))
    assert manifest["unsampled"] == {"overlong": 2, "refused_by_template": 1}
    assert [line["responses"] == [] for line in lines(asked.out)] == [False, False, True, False, True, False, True]
    with pytest.raises(BadRowError, match=r"prompts.jsonl, row 7.*not this one"):
        sample(config(tmp_path, [*TEXTS, "ax"], out="b"), generator=ScriptedGenerator(refuse="x"))
    with pytest.raises(DataError, match=r"Lower\s+sampling.max_new_tokens"):
        sample(config(tmp_path, out="c", max_length=5), generator=ScriptedGenerator())


def test_a_template_that_refuses_every_prompt_is_named(tmp_path: Path) -> None:
    skip = ReadOptions(on_bad_row="skip")
    with pytest.raises(DataError, match=r"chat template of scripted refuses every prompt \(6 of 6\)"):
        sample(config(tmp_path, data_options=skip), generator=ScriptedGenerator(refuse="a"))
    with pytest.raises(DataError, match=r"within 6 \(the chat template refuses 1 of 7 prompts\). Lower"):
        mixed = config(tmp_path, [*("b" * len(text) * 2 for text in TEXTS), "x"], max_length=6, data_options=skip)
        sample(mixed, generator=ScriptedGenerator(refuse="x"))


def test_adapters_alone_are_merged_into_their_base_but_not_for_vllm(tmp_path: Path) -> None:
    """Such adapters are in checkpoints of a policy trained with LoRA; the merged model draws the same."""
    policy = new_model(str(save_tiny(tmp_path / "base")), tiny_tokenizer(), lora=LoraOptions(rank=2))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    save_checkpoint(policy, tiny_tokenizer(), {}, tmp_path / "checkpoint-1")
    save_policy(policy, tiny_tokenizer(), tmp_path / "merged")
    for model in ("base", "checkpoint-1", "merged"):
        sample(replace(config(tmp_path, out=f"{model}-out"), model=str(tmp_path / model)))
    base, adapted, merged = (lines(str(tmp_path / f"{name}-out")) for name in ("base", "checkpoint-1", "merged"))
    assert adapted == merged
    assert adapted != base
    with pytest.raises(ModelError, match=r"checkpoint-1 contains only LoRA adapters.*--engine transformers"):
        sample(replace(config(tmp_path), model=str(tmp_path / "checkpoint-1"), engine="vllm"))
    assert not (tmp_path / "out").exists()


def test_vllm_is_used_where_it_is_installed_and_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, gpu, device, engine in (
        (True, True, None, "vllm"),
        (True, True, "cuda", "transformers"),
        (True, False, None, "transformers"),
        (False, True, None, "transformers"),
    ):
        monkeypatch.setattr("hafrm.sampling.options.find_spec", lambda name, found=installed: found or None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=gpu: found)
        assert config(tmp_path, device=device).chosen_engine == engine
    assert config(tmp_path, engine="vllm").chosen_engine == "vllm"
    monkeypatch.setattr("hafrm.sampling.options.find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "adapter_config.json").touch()
    assert replace(config(tmp_path), model=str(tmp_path)).chosen_engine == "transformers"


def test_a_folder_of_other_samples_is_refused(tmp_path: Path) -> None:
    sample(config(tmp_path), generator=ScriptedGenerator())
    for more, said in (
        ({"n": 3}, "settings: n"),
        ({"sampling": SampleOptions(temperature=2)}, "sampling.temperature"),
        ({"texts": TEXTS[1:]}, "set of prompts"),
    ):
        with pytest.raises(ConfigError, match=said):
            sample(config(tmp_path, **more), generator=ScriptedGenerator())
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        sample(config(tmp_path), generator=ScriptedGenerator())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"engine": "magic"}, "engine must be"),
        ({"engine": "vllm", "device": "cpu"}, "device has no effect"),
    ],
)
def test_options_that_can_not_work_are_refused(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, **more)


def test_prompts_come_from_rows_pairs_and_names_once_each(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    mixed = write(tmp_path / "x.jsonl", [pair, {"prompt": "a"}, {"prompt": "b", "group": "g"}, {"prompt": ""}])
    found = load_prompts([mixed], ReadOptions(on_bad_row="skip"))
    assert [(row.prompt.turns[0].content, row.id) for row in found.rows] == [("a", f"{mixed}:1"), ("b", f"{mixed}:3")]
    assert (found.read, found.repeated, found.skipped) == (3, 1, {"empty_prompt": 1})
    assert found.rows[1].group == "g"
    world = load_prompts(["world/helpful[:20]"], ReadOptions(), limit=5)
    assert len(world.rows) == len({row.prompt for row in world.rows}) == 5
    with pytest.raises(BadRowError, match="is empty"):
        load_prompts([mixed], ReadOptions())
    with pytest.raises(DataError, match="no prompt to answer"):
        load_prompts([write(tmp_path / "none.jsonl", [])], ReadOptions())


def test_rows_of_a_set_that_give_no_prompt_are_counted(tmp_path: Path) -> None:
    found = load_prompts([harmless(tmp_path)], ReadOptions(on_bad_row="skip"))
    assert (found.read, found.skipped) == (1, {"multi_turn": 1, "invalid_json": 1})
