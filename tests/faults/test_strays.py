"""Files that were not saved with a model either change no reward or are refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hafrm.cli import main
from hafrm.errors import HafrmError
from hafrm.evaluation.bulk import score_rows
from hafrm.evaluation.options import ScoreConfig
from hafrm.models.checkpoints import load_run, restore_weights, save_run
from hafrm.models.checksums import strangers
from hafrm.models.export import export
from hafrm.models.loading import load_scorer
from hafrm.models.options import ExportConfig, LoraOptions, ScoreOptions
from hafrm.models.references import weights_digest
from hafrm.models.runinfo import RUN_FILE
from hafrm.models.starts import new_model
from hafrm.models.stock import quiet_transformers
from hafrm.models.tokenizers import load_tokenizer
from tests.faults.runs import saved_run
from tests.models.test_checkpoints import info, trained
from tests.tiny import save_tiny, some_pairs

ROWS = [{"prompt": f"question {place}", "response": "yes " * place} for place in range(1, 5)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its export, one with adapters, and rows to score."""
    folder = tmp_path_factory.mktemp("strays")
    base = save_tiny(folder / "base")
    saved_run(base, folder / "run")
    saved_run(base, folder / "lora", lora=LoraOptions(rank=2))
    export(ExportConfig(run=str(folder / "run"), out=str(folder / "export")))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run, to which files can be added."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "rows.jsonl", tmp_path)
    return tmp_path / "run"


def rewards(model: Path, capfd: pytest.CaptureFixture[str], *, command: bool = False) -> list[float] | str:
    """Return what `hafrm score` gives for the rows, or its error line.

    Args:
        model: The model, next to the rows.
        capfd: The captured output.
        command: Through the command line, whose options take longer to read than a tiny model.
    """
    data, out = model.parent / "rows.jsonl", model.parent / "scored.jsonl"
    if command:
        assert main(["score", str(model), "--data", str(data), "--out", str(out)]) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("Writing")]
        return line
    try:
        score_rows(ScoreConfig(model=str(model), data=str(data), out=str(out)))
    except HafrmError as error:
        return str(error)
    return [json.loads(line)["reward"] for line in out.read_text().splitlines()]


def turned(file: Path) -> dict[str, torch.Tensor]:
    """Return a run's weights with the sign of the reward head flipped."""
    weights = load_file(file)
    weights["score.weight"] = -weights["score.weight"]
    return weights


PASSED_OVER = [
    "model-old.safetensors",
    "model.bak.safetensors",
    "model (copy).safetensors",
    "model-00001-of-00002.safetensors",
    "model_v2.safetensors",
    "a.safetensors",
    "export/model.safetensors",
]


@pytest.mark.parametrize("name", PASSED_OVER)
def test_other_weights_beside_the_listed_change_nothing(
    name: str, made: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = rewards(made / "run", capfd)
    (run / name).parent.mkdir(exist_ok=True)
    save_file(turned(run / "model.safetensors"), run / name, metadata={"format": "pt"})
    assert rewards(run, capfd) == expected


@pytest.mark.parametrize("name", PASSED_OVER[:4])
def test_a_resumed_run_has_the_head_of_its_checkpoint(name: str, run: Path) -> None:
    model, _, _ = load_run(run)
    expected = model.score.weight.clone()
    save_file(turned(run / "model.safetensors"), run / name, metadata={"format": "pt"})
    model.score.weight.data.zero_()
    restore_weights(model, run)
    assert torch.equal(model.score.weight, expected)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "adapter/adapter_model.safetensors"])
def test_weights_of_other_forms_change_nothing(
    name: str, made: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = rewards(made / "run", capfd)
    (run / "adapter").mkdir()
    (run / name).write_bytes(b"not read")
    (run / "adapter" / "adapter_config.json").write_text("{}")
    assert rewards(run, capfd) == expected
    export(ExportConfig(run=str(run)))
    assert not (run / "export" / "reward" / "adapter").exists()


def test_adapters_that_are_not_listed_are_not_laid_on_in_half_precision(made: Path, tmp_path: Path) -> None:
    """In half precision, a run with adapters is computed from its base, and one without from its own weights."""
    base, run = made / "base", tmp_path / "run"
    digest = weights_digest(new_model(str(base), load_tokenizer(str(base)), lora=LoraOptions()))
    saved_run(base, run, base_digest=digest)
    options = ScoreOptions(dtype="bfloat16")
    conversations = [c for pair in some_pairs(3) for c in pair.conversations]
    expected = load_scorer(str(run), options=options).score(conversations)
    described = json.loads((run / RUN_FILE).read_text()) | {"lora": {"rank": 2}}
    (run / RUN_FILE).write_text(json.dumps(described))
    shutil.copytree(made / "lora" / "adapter", run / "adapter")
    file = run / "adapter" / "adapter_model.safetensors"
    spoilt = {name: tensor + 1 for name, tensor in load_file(file).items()}
    save_file(spoilt, file, metadata={"format": "pt"})
    assert load_scorer(str(run), options=options).score(conversations) == expected


STRANGERS = """
    model.safetensors.index.json adapter_config.json adapter_model.safetensors value_head.safetensors value_head.bin
    special_tokens_map.json added_tokens.json chat_template.json tokenizer.model vocab.json
    merges.txt vocab.txt preprocessor_config.json processor_config.json tokenizer.4.0.0.json spiece.model tekken.json
    tiktoken.model additional_chat_templates/rag.jinja custom_generate/generate.py other.jinja
""".split()


@pytest.mark.parametrize("name", STRANGERS)
def test_files_that_are_read_by_name_are_refused(name: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("{}")
    said = rewards(run, capfd, command=True)
    assert f"{run / name} " in said
    assert "Move it away" in said


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("export/reward", "special_tokens_map.json"),
        ("export/reward", "added_tokens.json"),
        ("export/reward", "adapter_config.json"),
        ("lora", "special_tokens_map.json"),
        ("lora/adapter", "tokenizer.model"),
    ],
)
def test_exports_and_adapters_too(
    folder: str, name: str, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(made / folder, model)
    shutil.copy(made / "rows.jsonl", tmp_path)
    assert isinstance(rewards(model, capfd), list)
    (model / name).write_text("{}")
    assert f"{model / name} " in rewards(model, capfd)


def test_an_index_names_the_parts_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is in the last part; a further file that sorts after it is not read, and a single file is refused."""
    model, tokenizer = trained(save_tiny(tmp_path / "base"))
    save = type(model.stock_lm).save_pretrained
    save_parts = partialmethod(save, max_shard_size=20_000)
    monkeypatch.setattr(type(model.stock_lm), "save_pretrained", save_parts)
    run = tmp_path / "run"
    save_run(model, tokenizer, info(tmp_path / "base"), run)
    parts = sorted(run.glob("model-*.safetensors"))
    assert len(parts) > 2
    conversations = [c for pair in some_pairs(3) for c in pair.conversations]
    expected = load_scorer(str(run)).score(conversations)
    for part in parts:
        weights = {name: -tensor for name, tensor in load_file(part).items()}
        save_file(weights, part.with_name(f"{part.stem}-old.safetensors"), metadata={"format": "pt"})
    assert load_scorer(str(run)).score(conversations) == expected
    shutil.copy(parts[0], run / "model.safetensors")
    with pytest.raises(Exception, match=r"model\.safetensors .*read by its name"):
        load_scorer(str(run))


def test_stock_folders_are_read_as_transformers_reads_them(made: Path, tmp_path: Path, capfd) -> None:
    """Without a list, a single file precedes an index, other files are ignored, and a map's tokens are used."""
    stock = tmp_path / "stock"
    shutil.copytree(made / "export" / "reward", stock)
    shutil.copy(made / "rows.jsonl", tmp_path)
    (stock / "checksums.json").unlink()
    (stock / "README.md").unlink()
    expected = rewards(stock, capfd)
    assert isinstance(expected, list)
    save_file(turned(stock / "model.safetensors"), stock / "model-old.safetensors", metadata={"format": "pt"})
    (stock / "model.safetensors.index.json").write_text('{"weight_map": {"score.weight": "model-old.safetensors"}}')
    (stock / "special_tokens_map.json").write_text("{}")
    assert rewards(stock, capfd) == expected


def test_what_transformers_looks_for_is_listed_or_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that transformers requests while loading a run is in the list, or would be refused."""
    asked: set[str] = set()

    def noting(function: Callable[..., object]) -> Callable[..., object]:
        def ask(path: object, *args: object, **more: object) -> object:
            if isinstance(path, str | os.PathLike) and str(path).startswith(f"{run}/"):
                asked.add(str(path).removeprefix(f"{run}/"))
            return function(path, *args, **more)

        return ask

    for name in ("isfile", "exists"):
        monkeypatch.setattr(os.path, name, noting(getattr(os.path, name)))
    with quiet_transformers():
        transformers.AutoTokenizer.from_pretrained(run)
        transformers.AutoProcessor.from_pretrained(run)
        for kind in (transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification):
            kind.from_pretrained(run, use_safetensors=True)
    assert {"model.safetensors", "special_tokens_map.json", "adapter_config.json"} <= asked
    for name in asked:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    listed = json.loads((run / RUN_FILE).read_text())["sha256"]
    assert {name for name in asked if (run / name).is_file()} <= set(strangers(run)) | set(listed)


def test_every_vocabulary_of_transformers_is_known(tmp_path: Path) -> None:
    """Return the files that transformers' tokenizers declare, from the installed source."""
    source = Path(transformers.__file__).parent
    found: set[str] = set()
    for path in [*source.glob("tokenization_*.py"), *source.glob("models/*/tokenization_*.py")]:
        for table in re.findall(r"VOCAB_FILES_NAMES\s*=\s*\{(.*?)\}", path.read_text(encoding="utf-8"), re.DOTALL):
            found |= set(re.findall(r':\s*"([^"]+)"', table))
    assert {"vocab.json", "merges.txt", "tokenizer.model", "spiece.model"} <= found
    for name in found:
        (tmp_path / name).touch()
    assert set(strangers(tmp_path)) == found


def _without(*names: str) -> Callable[[Path], None]:
    def lose(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return lose


def _with_folder(name: str) -> Callable[[Path], None]:
    def replace_by_folder(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return replace_by_folder


def _with_dead_link(name: str) -> Callable[[Path], None]:
    def replace_by_link(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("gone")

    return replace_by_link


RUN_MARKS: dict[str, str] = {
    "manifest.json": json.dumps({"format": 1, "status": "finished", "config": {}}),
    "../manifest.json": json.dumps({"format": 1, "status": "running", "config": {}}),
    "metrics.jsonl": json.dumps({"step": 1, "loss/reward": 0.7}),
    "checkpoint-2/hafrm.json": "{}",
    "README.md": "---\ntags:\n- reward-model\n- hafrm\n---\n",
}


@pytest.mark.parametrize("mark", RUN_MARKS)
def test_a_run_that_lost_its_list_is_refused(mark: str, run: Path, tmp_path: Path, capfd) -> None:
    """The folder would be read as a stock model, without the run's options."""
    model = run.rename(tmp_path / ("checkpoint-2" if ".." in mark else "model"))
    (model / mark).parent.mkdir(exist_ok=True)
    (model / mark).write_text(RUN_MARKS[mark])
    _without(RUN_FILE)(model)
    said = rewards(model, capfd)
    assert isinstance(said, str)
    assert re.search(r"(hafrm|checksums)\.json is missing", said)
    assert "Restore" in said


@pytest.mark.parametrize(
    ("folder", "lose"),
    [
        ("run", _with_folder(RUN_FILE)),
        ("run", _with_dead_link(RUN_FILE)),
        ("export/reward", _without("checksums.json")),
        ("export/reward", _with_folder("checksums.json")),
        ("export/reward", _with_dead_link("checksums.json")),
        ("lora", _without(RUN_FILE)),
    ],
)
def test_a_list_that_can_not_be_read_is_refused(
    folder: str, lose: Callable[[Path], None], made: Path, tmp_path: Path, capfd
) -> None:
    model = tmp_path / "model"
    shutil.copytree(made / folder, model)
    shutil.copy(made / "rows.jsonl", tmp_path)
    lose(model)
    said = rewards(model, capfd)
    assert isinstance(said, str)
    assert ".json" in said
    with pytest.raises(HafrmError, match="Restore"):
        load_tokenizer(str(model))


FIELDS = {
    "method": ["hafrm", None, 1, ["haf"], ""],
    "base_model": [None, "", 3],
    "reward_weight": ["1", None, -1, True, [1], 10**400],
    "policy_ratio": ["0.2", None, {}],
    "policy_loss": ["dpo2", None, 4],
    "reward_loss": ["b t", None],
    "beta": [-0.1, 0, "0.1", None, True, 1e400, float("nan")],
    "max_length": [0, -3, 2.5, "512", None, True],
    "overlong": ["cut", None],
    "pad_token": [None, "", 3],
    "scored_position": ["first_token", None],
    "base_digest": [None, "xyz", 7],
    "dtype": ["int8", None, "float"],
    "lora": [[], "r4", {"alpha": 4}, {"rank": -1}, {"rank": 2, "dropout": 2}, {"rank": 2, "odd": 1}],
    "combined_weight": [-71, "1", float("inf"), [], False],
    "sha256": [None, [], "x", {"config.json": None}, {"config.json": "abc"}, {"../x": "0" * 64}, {"/x": "0" * 64}, {}],
    "training_sha256": [None, {"optimizer.pt": 3}],
    "versions": [None, [], {"torch": 2}],
    "format": [0, 2, None, "1", True, 1.0],
    "unheard_of": [1],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in FIELDS.items() for value in values])
def test_fields_of_the_description_that_can_not_be(
    field: str, value: object, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    described = json.loads((run / RUN_FILE).read_text())
    (run / RUN_FILE).write_text(json.dumps(described | {field: value}))
    said = rewards(run, capfd)
    assert f"`{field}`" in said
    assert str(run / RUN_FILE) in said


@pytest.mark.parametrize("field", ["method", "beta", "max_length", "format", "versions", "reward_weight"])
def test_fields_that_are_missing(field: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    described = json.loads((run / RUN_FILE).read_text())
    del described[field]
    (run / RUN_FILE).write_text(json.dumps(described))
    assert f"`{field}`" in rewards(run, capfd)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 100_000, '{"format": 1}', "\xff\xfe", "{}"])
def test_descriptions_that_are_none(text: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / RUN_FILE).write_bytes(text.encode("latin-1"))
    assert str(run / RUN_FILE) in rewards(run, capfd)


LISTED = """
    model.safetensors config.json generation_config.json tokenizer.json tokenizer_config.json chat_template.jinja
""".split()


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty", "folder", "of another model"])
def test_damaged_files_are_named(name: str, damage: str, made: Path, run: Path, capfd) -> None:
    path = run / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "empty":
        path.touch()
    elif damage == "folder":
        path.mkdir()
    elif damage == "of another model":
        path.write_bytes((made / "base" / name).read_bytes() + b" ")
    assert f"{path} " in rewards(run, capfd)
