"""Build self-contained HTML: styles and scripts are inline, and a content security policy forbids all requests."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hafrm.report.wording import visible


def asset(name: str) -> Markup:
    """Return the text of a script of this package."""
    return Markup(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def stylesheet() -> Markup:
    """Return the style sheet of all pages and figures."""
    return Markup(resources.files("hafrm").joinpath("page.css").read_text(encoding="utf-8"))


def figure_style() -> Markup:
    """Return the part of the style sheet that figures use, so that other changes to it don't change stored figures."""
    used = ("Colours of", "Plots", "Figures of", "Scatter plots")
    sections = re.split(r"^(?=/\* )", stylesheet(), flags=re.MULTILINE)
    return Markup("".join(part for part in sections if part.startswith(tuple(f"/* {name}" for name in used))))


def render(template: str, *, script: Markup | None = None, **context: Any) -> str:
    """Render a template. The page runs only this script and applies only the package's style; any others, for example
    in texts, are inactive.

    Args:
        template: The template's file name.
        script: The page's script, if it has one.
        **context: The template's other variables, escaped unless they are `Markup`.
    """
    style = stylesheet()
    allowed = f"script-src {_digest(script)}; " if script else ""
    policy = (
        f"default-src 'none'; {allowed}style-src {_digest(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _environment().get_template(template).render(style=style, script=script, policy=policy, **context)


def templates(folder: str, *, autoescape: bool) -> Environment:
    """Return an environment of the templates in a folder of hafrm, in which blocks leave no space."""
    loader = PackageLoader("hafrm", folder)
    return Environment(
        loader=loader, autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def _environment() -> Environment:
    """Return the template environment, which compiles each template once."""
    made = templates("report", autoescape=True)
    made.filters["visible"] = visible
    return made


def _digest(content: str) -> str:
    """Return the hash with which a content security policy allows one inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
