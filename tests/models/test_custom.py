"""Reward models that ship their own modelling file: look-alikes of ArmoRM, URM, InternLM2 and GRM."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hafrm.cli import main
from hafrm.errors import ConfigError, ModelError
from hafrm.models.heads import kept_head
from hafrm.models.loading import load_scorer
from hafrm.models.options import ScoreOptions
from hafrm.pairs import Conversation
from tests.models.test_reward_models import classifier
from tests.tiny import save_tiny

MODELLING = """
from dataclasses import dataclass
import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class Output(ModelOutput):
    rewards: torch.Tensor = None
    logits: torch.Tensor = None
    score: torch.Tensor = None


class NAME(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.objectives = nn.Linear(config.hidden_size, 5, bias=False)
        self.gating = nn.Linear(config.hidden_size, 5, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(dim=1) - 1
        state = states[torch.arange(len(states)), last]
        objectives = self.objectives(state)
        score = (objectives * self.gating(state).softmax(dim=1)).sum(dim=1)
        return RETURNED
"""

FORMS = {
    "armo": ("LlamaForRewardModelWithGating", "Output(rewards=objectives, logits=objectives, score=score)"),
    "urm": ("LlamaForURMReward", "Output(logits=objectives)"),
    "one": ("TinyForRewardModel", "Output(logits=score[:, None])"),
    "grm": ("TinyGRMRewardModel", "(states, None, score)"),
}
TALKS = [Conversation.of("Who?", "I."), Conversation.of("Who is there, at the door?", "Nobody that you know.")]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Other tests check whether any custom model code was imported."""
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def look_alike(folder: Path, form: str) -> Path:
    """A folder with its own modelling file, and its rewards computed by that code alone."""
    name, returned = FORMS[form]
    save_tiny(folder)
    (folder / "modeling_own.py").write_text(MODELLING.replace("NAME", name).replace("RETURNED", returned))
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [name]
    config["auto_map"] = {"AutoModelForSequenceClassification": f"modeling_own.{name}"}
    (folder / "config.json").write_text(json.dumps(config))
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(_config(folder), trust_remote_code=True)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=True)


def expected(folder: Path, place: int) -> list[float]:
    """Rewards by the model's own code, one conversation at a time, without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for talk in TALKS:
        messages = [turn.as_dict() for turn in (*talk.prompt.turns, *talk.response)]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        if isinstance(output, tuple):
            value = output[2][0]
        else:
            value = output.score[0] if output.score is not None else output.logits[0, place]
        found.append(value.item())
    return found


@pytest.mark.parametrize(("form", "objective"), [("armo", None), ("urm", 3), ("one", None), ("grm", None)])
def test_rewards_are_those_of_the_models_own_code(form: str, objective: int | None, tmp_path: Path) -> None:
    folder = look_alike(tmp_path / form, form)
    scorer = load_scorer(str(folder), options=ScoreOptions(objective=objective), trust_remote_code=True)
    assert scorer.score(TALKS) == pytest.approx(expected(folder, objective or 0), abs=1e-5)


def test_code_is_run_only_if_it_is_trusted(tmp_path: Path) -> None:
    folder = look_alike(tmp_path / "armo", "armo")
    (folder / "modeling_own.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match=r"class of its own.*trust_remote_code"):
        load_scorer(str(folder))


def test_an_objective_is_named_where_there_are_several_and_only_there(tmp_path: Path) -> None:
    urm = look_alike(tmp_path / "urm", "urm")
    with pytest.raises(ModelError, match=r"5 objectives.*score\.objective"):
        load_scorer(str(urm), trust_remote_code=True).score(TALKS)
    with pytest.raises(ModelError, match=r"objective is 5, and the model gives 5"):
        load_scorer(str(urm), options=ScoreOptions(objective=5), trust_remote_code=True).score(TALKS)
    classifier(tmp_path / "stock")
    with pytest.raises(ConfigError, match="has no effect"):
        load_scorer(str(tmp_path / "stock"), options=ScoreOptions(objective=0))


def test_it_judges_best_of_n(tmp_path: Path) -> None:
    """Use such a model as judge of a file of candidates, as ArmoRM in Figure 9."""
    armo = look_alike(tmp_path / "armo", "armo")
    rows = [
        {"prompt": f"Question {number}?", "responses": [f"Answer {number}.", "No.", "Perhaps, who knows."]}
        for number in range(8)
    ]
    (tmp_path / "candidates.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["best-of-n", str(armo), "--samples", str(tmp_path / "candidates.jsonl"), "--out", str(tmp_path / "o")]
    judge = ["--judge.kind", "reward", "--judge.model", str(armo), "--trust_remote_code", "true"]
    assert main([*words, *judge]) == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert results["models"][str(armo)]["top_1"]["value"] == 1


GRM = """
import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel


class ValueHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        sizes = [config.hidden_size, *[config.vhead_num_neurons] * config.vhead_num_layers]
        layers = [part for pair in zip(sizes, sizes[1:]) for part in (nn.Linear(*pair), nn.ReLU())]
        self.summary = nn.Sequential(*layers, nn.Linear(sizes[-1], 1)) if layers else nn.Linear(sizes[-1], 1)


class GRewardModel(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.v_head = ValueHead(config)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(dim=1) - 1
        return states, None, self.v_head.summary(states[torch.arange(len(states)), last])[:, 0]
"""


def published_grm(folder: Path, layers: int) -> Path:
    """A folder in the layout of GRM's checkpoints: `model.*` and `v_head.summary.*`, no LM head, a class of its own."""
    save_tiny(folder)
    (folder / "modeling_grm.py").write_text(GRM)
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["GRewardModel"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_grm.GRewardModel"},
        "vhead_layer_type": "mlp" if layers else "linear",
        "vhead_num_neurons": 24,
        "vhead_num_layers": layers,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(_config(folder), trust_remote_code=True)
    for weight in model.v_head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("trusted", [False, True])
def test_grm_is_read_with_and_without_its_own_code(layers: int, trusted: bool, tmp_path: Path) -> None:
    folder = published_grm(tmp_path / "grm", layers)
    rewards = expected(folder, 0)
    if not trusted:
        (folder / "modeling_grm.py").write_text("raise SystemExit('run')")
    scorer = load_scorer(str(folder), trust_remote_code=trusted)
    assert scorer.score(TALKS) == pytest.approx(rewards, abs=1e-5)
    assert abs(rewards[0] - rewards[1]) > 1e-3


def test_training_does_not_start_from_a_head_of_several_layers(tmp_path: Path) -> None:
    folder = published_grm(tmp_path / "grm", 1)
    with pytest.raises(ModelError, match=r"has 2 layers.*--head_init normal"):
        kept_head(str(folder))
