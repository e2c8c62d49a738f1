"""Untrusted files: no pickle is loaded, none of their code runs, and none of their names leads out of a folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hafrm.errors import HafrmError
from hafrm.models import references
from hafrm.models.export import export
from hafrm.models.identity import model_identity
from hafrm.models.loading import load_log_prob_scorer, load_scorer
from hafrm.models.options import ExportConfig, ScoreOptions, ScorerChoice
from hafrm.models.stock import load_causal_lm
from hafrm.models.tokenizers import load_tokenizer
from hafrm.training.config import TrainConfig
from hafrm.training.resuming import list_training_state
from hafrm.training.run import train
from tests.faults.runs import saved_run
from tests.faults.stages import STAGES, Stage, slow
from tests.tiny import save_tiny, some_pairs


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "exploded"


def archive(mark: Path) -> bytes:
    """Write a malicious pickle as torch saves it now, in a zip archive."""
    file = io.BytesIO()
    torch.save({"weight": Bomb(mark)}, file)
    return file.getvalue()


def plain(mark: Path) -> bytes:
    return pickle.dumps(Bomb(mark))


BOMBS: list[Callable[[Path], bytes]] = [archive, plain]


def test_the_bomb_works(mark: Path) -> None:
    pickle.loads(plain(mark))
    assert mark.exists()


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "pytorch_model.pt"])
def test_pickled_weights_are_refused(name: str, bomb: Callable[[Path], bytes], tmp_path: Path, mark: Path) -> None:
    base = save_tiny(tmp_path / "base", max_position_embeddings=512)
    (base / "model.safetensors").unlink()
    (base / name).write_bytes(bomb(mark))
    config = json.loads((base / "config.json").read_text())
    classifier = config | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (tmp_path / "rows.jsonl").write_text(json.dumps(some_pairs(1)[0].as_row()))
    reads: list[Callable[[], Any]] = [
        lambda: load_log_prob_scorer(str(base)),
        lambda: load_scorer(str(base), reference=str(base), head="policy"),
        lambda: model_identity(str(base), ScorerChoice(), ScoreOptions()),
        lambda: train(TrainConfig(model=str(base), data=[str(tmp_path / "rows.jsonl")], out=str(tmp_path / "run"))),
        lambda: (base / "config.json").write_text(json.dumps(classifier)) and load_scorer(str(base)),
    ]
    for read in reads:
        with pytest.raises(HafrmError, match="safetensors"):
            read()
    assert not mark.exists()


@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_beside_safetensors_are_left_alone(bomb: Callable[[Path], bytes], tmp_path: Path, mark: Path) -> None:
    run = saved_run(save_tiny(tmp_path / "base"), tmp_path / "run")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin", "adapter/x.bin"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(bomb(mark))
    (run / "adapter" / "x.bin").unlink()
    (run / "adapter").rmdir()
    load_scorer(str(run))
    export(ExportConfig(run=str(run)))
    assert not mark.exists()


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_planted_training_state_is_refused(
    name: str,
    bomb: Callable[[Path], bytes],
    stopped: TrainConfig,
    mark: Path,
) -> None:
    """Even with a forged list: transformers reads these with torch's weights-only unpickler, which runs no code."""
    (checkpoint,) = Path(stopped.out).glob("checkpoint-2")
    (checkpoint / name).write_bytes(bomb(mark))
    list_training_state(checkpoint)
    with pytest.raises(HafrmError):
        train(stopped)
    assert not mark.exists()


def test_a_planted_reference_is_not_unpickled(tmp_path: Path, mark: Path) -> None:
    part = tmp_path / "000000000.npz"
    bomb = np.empty(1, dtype=object)
    bomb[0] = Bomb(mark)
    np.savez(part, log_probs=bomb)
    assert references._read_part(part) is None
    part.write_bytes(plain(mark))
    assert references._read_part(part) is None
    assert not mark.exists()


CODE = """
import os
os.mkdir({mark!r})
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
"""


@pytest.mark.parametrize("where", ["config", "tokenizer"])
def test_code_of_a_checkpoint_does_not_run_unasked(where: str, tmp_path: Path, mark: Path) -> None:
    """The error also says what enabling it means."""
    base = save_tiny(tmp_path / "base")
    (base / "evil.py").write_text(CODE.format(mark=str(mark)))
    path = base / ("config.json" if where == "config" else "tokenizer_config.json")
    described = json.loads(path.read_text())
    if where == "config":
        classes = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
        path.write_text(json.dumps(described | {"model_type": "evil", "auto_map": classes}))
    else:
        described = {name: value for name, value in described.items() if name != "tokenizer_class"}
        path.write_text(json.dumps(described | {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}))
    read = load_causal_lm if where == "config" else load_tokenizer
    with pytest.raises(HafrmError, match=r"--trust_remote_code true.*can do anything that you can"):
        read(str(base))
    assert not mark.exists()


ESCAPES = ["../escaped", "../../../escaped", "/tmp/hafrm-escaped", "..\\escaped"]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_template_can_not_choose_its_place(name: str, tmp_path: Path) -> None:
    """Tokenizers may have several chat templates, each of which is saved under its own name."""
    base = save_tiny(tmp_path / "base")
    path = base / "tokenizer_config.json"
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    both = [{"name": "default", "template": template}, {"name": name, "template": "escaped"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": both}))
    before = set(tmp_path.rglob("*"))
    with contextlib.suppress(HafrmError) if "\\" in name else pytest.raises(HafrmError, match="chat template"):
        saved_run(base, tmp_path / "out" / "run")
    new = [path for path in tmp_path.rglob("*escaped*") if path not in before]
    assert all(path.is_relative_to(tmp_path / "out" / "run" / "additional_chat_templates") for path in new)
    assert not Path("/tmp/hafrm-escaped.jinja").exists()


@pytest.mark.parametrize("name", [*map(slow, STAGES[:4]), *STAGES[4:]])
def test_nothing_is_written_elsewhere(name: str, stage_of: Callable[[str], Stage]) -> None:
    """A command only opens files for writing in its own folders, whatever its inputs are called."""
    stage = stage_of(name)
    assert stage.undisturbed.elsewhere == []
