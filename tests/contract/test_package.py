"""What users build on: the public names, the error tree, the layers."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import hafrm
from hafrm import errors

PUBLIC = """
Conversation DataOptions EvaluateConfig ExportConfig LoraOptions LossConfig Message PreferencePair RowScorer
ScoreOptions Scorer
TrainConfig evaluate export load_pairs load_scorer register_metric register_reward_loss score train
""".split()

MODULES = [module.name for module in pkgutil.walk_packages(hafrm.__path__, "hafrm.") if "__main__" not in module.name]


def test_the_public_names_are_pinned_and_there() -> None:
    assert sorted(hafrm.__all__, key=str) == sorted(PUBLIC)
    for name in hafrm.__all__:
        assert getattr(hafrm, name).__module__.startswith("hafrm.")
    with pytest.raises(AttributeError):
        _ = hafrm.nothing


def test_importing_hafrm_is_quick() -> None:
    """No torch until it is used."""
    code = "import sys, hafrm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_says_what_it_is(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_the_error_tree_is_the_one_drawn() -> None:
    drawn = {line.split("── ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line}
    for name in drawn:
        assert issubclass(getattr(errors, name), errors.HafrmError)
    classes = {name for name in vars(errors) if name.endswith("Error")}
    assert classes - {"HafrmError"} == drawn


def test_imports_run_downward_only() -> None:
    """The layers of docs/design.md, as pyproject.toml draws them for import-linter."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
