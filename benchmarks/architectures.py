"""Every causal LM of the installed transformers, trained, saved and compared with the stock classes.

    python -m benchmarks.architectures [NAME ...] [--page FILE] [--json FILE]

Each architecture is built small (`benchmarks.tiny_configs`) and trained by HAF for two steps, all weights and with
LoRA. The run's folder is then loaded in `AutoModelForCausalLM` and, where there is one, in
`AutoModelForSequenceClassification`, in float64, and reads one sequence at a time: these rewards and log-probs are the
truth for hafrm's own. Each architecture runs in a separate process with a time limit, so a crash does not end the
sweep. A whole sweep takes about ten minutes and writes docs/architectures.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from benchmarks.tiny_configs import tiny_model
from hafrm.data import DataOptions
from hafrm.errors import HafrmError, first_line
from hafrm.models.heads import find_head
from hafrm.models.hybrid import backbone_of
from hafrm.models.loading import load_log_prob_scorer, load_scorer
from hafrm.models.options import LoraOptions
from hafrm.models.stock import quiet_transformers
from hafrm.pairs import Message, PreferencePair, Prompt
from hafrm.templates import DEFAULT_CHAT_TEMPLATE
from hafrm.training.config import TrainConfig
from hafrm.training.run import train

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
SECONDS = 120  # for one architecture
TOLERANCE = 1e-3
"""Largest difference from the stock classes, relative to the standard deviation over the texts."""

WORKS = ("packed", "padded")


@dataclass
class Outcome:
    """The result of an architecture trained in one way."""

    outcome: str
    """`packed`, `padded`, `refused`, `wrong` or `failed`."""
    reason: str = ""
    rewards: float | None = None
    """The largest difference of rewards from the stock class's, in their standard deviations."""
    log_probs: float | None = None
    classifier: str = ""
    """The stock classifier that loads the run; empty if there is none."""
    oracle: str = "float64"
    """The dtype of the stock classes that agree."""
    said: list[str] = field(default_factory=list)
    """What the run reported about heads and adapters when it started."""


@dataclass
class Found:
    """The results of an architecture."""

    name: str
    model: str
    not_built: str = ""
    full: Outcome | None = None
    lora: Outcome | None = None


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every text has tokens, and no file is needed."""
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = DEFAULT_CHAT_TEMPLATE
    return fast


def pairs() -> list[PreferencePair]:
    """Short pairs of differing lengths."""
    texts = [("why", "yes, for sure", "no"), ("how so?", "it is", "no, no, no, no!"), ("and?", "fine 7", "bad")]
    return [
        PreferencePair(
            prompt=Prompt.of(prompt),
            chosen=(Message("assistant", chosen),),
            rejected=(Message("assistant", rejected),),
            source="sweep",
            row=row,
        )
        for row, (prompt, chosen, rejected) in enumerate(texts, 1)
    ]


def examine(name: str, folder: Path) -> Found:
    """Build, train in both ways, and compare."""
    found = Found(name, str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]))
    try:
        model = tiny_model(name)
        found.model = type(model).__name__
        ids = torch.arange(4, 40)[None]
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        model.save_pretrained(folder / "base")
        tokenizer().save_pretrained(folder / "base")
    except Exception as error:  # a config made by the rules may fail in any way
        found.not_built = f"{type(error).__name__}: {reason(error)}"
        return found
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(pair.as_row()) for pair in pairs()))
    found.full = run(folder, "full", LoraOptions())
    found.lora = run(folder, "lora", LoraOptions(rank=4))
    return found


def run(folder: Path, name: str, lora: LoraOptions) -> Outcome:
    """Train for two steps, and compare the result with the stock classes."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            train(config(folder, name, lora))
            outcome = compare(folder / name)
    except HafrmError as error:
        return Outcome("refused", str(error).replace(str(folder) + "/", ""))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(
            "failed", f"{type(error).__name__}: {reason(error)} ({Path(place.filename).name}:{place.lineno})"
        )
    lines = said.getvalue().splitlines()
    if outcome.outcome == "padded":
        outcome.reason = next((line.split(": ", 1)[1] for line in lines if "not packed: " in line), "")
    outcome.said = [line for line in lines if line.startswith(("reward head", "transformers has", "LoRA:"))]
    return outcome


def config(folder: Path, name: str, lora: LoraOptions) -> TrainConfig:
    """Two steps on three pairs."""
    return TrainConfig(
        model=str(folder / "base"),
        data=[str(folder / "pairs.jsonl")],
        out=str(folder / name),
        lora=lora,
        training={
            "max_steps": 2,
            "per_device_train_batch_size": 3,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
        },
        data_options=DataOptions(max_length=128),
    )


@torch.no_grad()
def compare(folder: Path) -> Outcome:
    """Compare hafrm's rewards and log-probs of a run with those of the stock classes."""
    layout = json.loads((folder / "manifest.json").read_text())["layout"]
    conversations = [conversation for pair in pairs() for conversation in pair.conversations]
    rewards = load_scorer(str(folder)).score(conversations)
    log_probs = load_log_prob_scorer(str(folder)).score(conversations)
    found = Outcome(layout)
    for dtype in (torch.float64, torch.float32):
        try:
            truth = stock_numbers(folder, dtype)
        except RuntimeError:  # the model does not support float64
            if dtype == torch.float32:
                raise
            continue
        found.rewards = spread_difference(rewards, truth.rewards)
        found.log_probs = spread_difference(log_probs, truth.log_probs)
        found.classifier, found.oracle = truth.classifier, str(dtype).removeprefix("torch.")
        if max(found.rewards, found.log_probs) < TOLERANCE:
            return found
    found.outcome = "wrong"
    found.reason = f"rewards off by {found.rewards:.2g} sd, log-probs by {found.log_probs:.2g} sd ({layout})"
    return found


@dataclass
class Truth:
    """Results of the stock classes, one number per text."""

    rewards: list[float]
    log_probs: list[float]
    classifier: str


def stock_numbers(folder: Path, dtype: torch.dtype) -> Truth:
    """Rewards and log-probs of the stock classes, one sequence at a time."""
    texts = list(token_ids())
    with quiet_transformers():
        causal = exact(AutoModelForCausalLM, folder, dtype)
        log_probs = [response_log_prob(causal, *text) for text in texts]
        try:
            classifier = exact(AutoModelForSequenceClassification, folder, dtype)
        except ValueError:  # transformers has none
            head = find_head(str(folder))
            assert head is not None
            assert head.weight is not None
            own = [last_state(causal, whole).double() @ head.weight.double()[0] for _, whole in texts]
            return Truth([reward.item() for reward in own], log_probs, "")
        rewards = [classifier(input_ids=whole, use_cache=False).logits[0, 0].item() for _, whole in texts]
    return Truth(rewards, log_probs, type(classifier).__name__)


def exact(stock_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load a stock model, none of whose weights may be random."""
    model, report = stock_class.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if lost := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise AssertionError(f"{type(model).__name__} misses {lost[0]}")
    with contextlib.suppress(ValueError):  # raised without experts
        model.set_experts_implementation("eager")  # the grouped kernels know no float64
    return model.eval()


def token_ids() -> Iterator[tuple[int, Tensor]]:
    """Return the prompt's length and the conversation's ids, as computed by transformers."""
    coder = tokenizer()
    for pair in pairs():
        for response in (pair.chosen, pair.rejected):
            prompt = [message.as_dict() for message in pair.prompt.turns]
            whole = [*prompt, *(message.as_dict() for message in response)]
            opening = coder.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            yield len(opening), coder.apply_chat_template(whole, return_dict=True, return_tensors="pt")["input_ids"]


def response_log_prob(causal: Any, prompt: int, whole: Tensor) -> float:
    """Summed log-probability of a response under a stock model."""
    logits = causal(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False).logits[0].double()
    tokens = logits.log_softmax(-1)[:-1].gather(-1, whole[0, 1:, None])[:, 0]
    return float(tokens[prompt - 1 :].sum())


def last_state(causal: Any, whole: Tensor) -> Tensor:
    """Return the stock decoder's state of the last token."""
    output = backbone_of(causal)(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False)
    state: Tensor = output.last_hidden_state[0, -1]
    return state


def spread_difference(found: Sequence[float | None], truth: Sequence[float]) -> float:
    """Return the largest difference, in standard deviations of the truth."""
    ours, theirs = torch.tensor(found, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64)
    return float((ours - theirs).abs().max() / theirs.std())


def reason(error: Exception) -> str:
    """An error's first two lines in one."""
    return " ".join(str(error).strip().splitlines()[:2]) or first_line(error)


def in_process(name: str) -> Found:
    """Examine an architecture in a separate process, for at most `SECONDS`."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_child, args=(name, Path(folder), sender))
        process.start()
        sender.close()
        found = Found(name, str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]))
        if not receiver.poll(SECONDS):
            process.kill()
            found.full = Outcome("failed", f"did not end within {SECONDS} seconds")
        else:
            try:
                found = receiver.recv()
            except EOFError:
                process.join()
                found.full = Outcome("failed", f"its process died ({process.exitcode})")
        process.join()
    return found


def _child(name: str, folder: Path, sender: Any) -> None:
    os.environ["HAFRM_CACHE"] = str(folder / "cache")
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = examine(name, folder)
    sender.send(found)


def page(found: Sequence[Found]) -> str:
    """The page of a sweep."""
    built = [each for each in found if not each.not_built]
    counts = {kind: sum(_kind(each) == kind for each in built) for kind in (*WORKS, "refused", "failed")}
    installed = version("transformers")
    opening = f"""This page shows which of the {len(found)} causal language models of transformers {installed} work with
        `hafrm train` and `hafrm score`. Each was built small, trained with HAF for two steps, with all weights and with
        LoRA, saved, and loaded in stock transformers: hafrm's rewards and log-probs must equal those of the stock
        classes, computed in float64 and one sequence at a time, to a thousandth of their standard deviation.
        `python -m benchmarks.architectures` makes this page."""
    summary = f"""{counts["packed"]} work with packed batches, {counts["padded"]} with padded ones,
        {counts["refused"]} are refused before training, {counts["failed"]} fail, and {len(found) - len(built)} could
        not be built small."""
    lines = [
        "# Architectures",
        "",
        *textwrap.wrap(" ".join(opening.split()), 120),
        "",
        *textwrap.wrap(" ".join(summary.split()), 120),
        "",
        "| architecture | class | all weights | LoRA | stock classifier |",
        "|---|---|---|---|---|",
    ]
    for each in built:
        if _kind(each) in WORKS:
            full, lora = each.full, each.lora
            assert full is not None
            lines.append(
                f"| {each.name} | `{each.model}` | {full.outcome} | {_short(lora)} | "
                f"{f'`{full.classifier}`' if full.classifier else 'none'} |"
            )
    lines += ["", "Without a stock classifier, only hafrm can read a run's reward head, to score, evaluate and serve."]
    lines += _section("Why batches are padded", [(each.name, each.full.reason) for each in built if _padded(each)])
    lines += _section(
        "Compared in float32",
        [(e.name, "in float64 the model can't run, or chooses other experts") for e in built if _in_float32(e)],
    )
    lines += _section("LoRA on part of the weights", [(e.name, s) for e in built for s in _said(e) if "LoRA" in s])
    lines += _section("LoRA that is refused or fails", [(e.name, e.lora.reason) for e in built if _lora_fails(e)])
    lines += _section("Refused before training", [(e.name, _refusal(e)) for e in built if _kind(e) == "refused"])
    lines += _section("Failing", [(e.name, e.full.reason) for e in built if _kind(e) == "failed"])
    lines += _section("Not built small", [(each.name, each.not_built) for each in found if each.not_built])
    return "\n".join(lines) + "\n"


def _kind(found: Found) -> str:
    assert found.full is not None
    return "failed" if found.full.outcome == "wrong" else found.full.outcome


def _refusal(found: Found) -> str:
    """Return why an architecture is refused, without the names of the stock classifier's own layers."""
    assert found.full is not None
    why = found.full.reason
    if "own classifier" in why:
        return "the stock classifier's head has other layers, and would start at random (`--method dpo` works)"
    return why


def _padded(found: Found) -> bool:
    return _kind(found) == "padded"


def _in_float32(found: Found) -> bool:
    outcomes = [each for each in (found.full, found.lora) if each is not None and each.outcome in WORKS]
    return any(each.oracle == "float32" for each in outcomes)


def _lora_fails(found: Found) -> bool:
    return _kind(found) in WORKS and (found.lora is None or found.lora.outcome not in WORKS)


def _said(found: Found) -> list[str]:
    return found.lora.said if found.lora is not None else []


def _short(outcome: Outcome | None) -> str:
    return "not tried" if outcome is None else outcome.outcome


def _section(title: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return a list of reasons, each with the architectures that share it; empty without rows."""
    by_reason: dict[str, list[str]] = {}
    for name, why in rows:
        by_reason.setdefault(why.removeprefix("LoRA: "), []).append(name)
    return (
        []
        if not rows
        else ["", f"## {title}", "", *(f"- {', '.join(names)}: {why}" for why, names in by_reason.items())]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="model types; by default all")
    parser.add_argument("--page", type=Path, help=f"where to write the page; of a whole sweep {PAGE.name}")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    options = parser.parse_args(argv)
    found = []
    for name in options.names or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found.append(in_process(name))
        last = found[-1]
        outcomes = [f"{o.outcome} {o.reason}"[:160] for o in (last.full, last.lora) if o is not None]
        print(name, *(outcomes or [f"not built: {last.not_built}"[:200]]), sep=" | ", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1), encoding="utf-8")
    where = options.page or (None if options.names else PAGE)
    if where:
        where.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
