"""Tables, figures and notes of a `hafrm best-of-n` result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup
from scipy.stats import binomtest

from hafrm.evaluation.results import SIGNIFICANT
from hafrm.report.figures import MOST_CIRCLES, Curve, curve_kind, growth_curves, overlap_circles
from hafrm.report.findings import Cell, Findings, Table
from hafrm.report.wording import count, listed, p_value, percent, short_names, with_interval
from hafrm.sampling.analysis import RANDOM
from hafrm.stats import holm_correction


def best_of_n_findings(results: Mapping[str, Any]) -> Findings:
    """Build the page of one `hafrm best-of-n` run from its results; see `hafrm.sampling.analysis.summarise`."""
    models = short_names(list(results["models"]))
    judge = results["judge"]
    by = f"Judged by {judge['model']} ({judge['kind']})." if judge else "Without a judge, only agreement is measured."
    draws = results["draws"] / results["prompts"]
    return Findings(
        title=f"Best of N: {listed(list(models.values())) if len(models) < 5 else count(len(models), 'scorer')}",
        intro=(
            f"{len(models)} scorers chose among {draws:.3g} responses per prompt ({results['distinct']:,} distinct "
            f"ones of {results['draws']:,}) to {results['prompts']:,} prompts. {by} In brackets 95% intervals over "
            "prompts."
        ),
        statements=tuple(_statements(results, models)),
        results=results,
        tables=tuple(_tables(results, models)),
        figures=dict(_figures(results, models)),
        notes=tuple(_notes(results)),
    )


def rate_cell(rate: Mapping[str, Any] | None, *, share: bool = True) -> str:
    """Format a rate with its interval; shares are shown in percent."""
    if rate is None:
        return "–"
    worded = percent if share else _two_decimals
    return with_interval(rate["value"], rate["ci95"], worded)


def _tables(results: Mapping[str, Any], models: Mapping[str, str]) -> Iterator[Table]:
    if results["judge"]:
        yield _selection_table(results, models)
        yield _wins_table(results, models)
    if len(models) > 1:
        pairs = [each for each in results["agreement"]["pairs"] if "value" in each]
        rows = [(f"{models[each['a']]} and {models[each['b']]}", rate_cell(each)) for each in pairs]
        if len(models) > 2:
            rows.append(("all of them", rate_cell(results["agreement"]["all"])))
        yield Table("How often the same response is chosen", ("scorers", "% of prompts"), rows)


def _selection_table(results: Mapping[str, Any], models: Mapping[str, str]) -> Table:
    """Tabulate how often the judge's best is recalled (Table 4), its reward, and wins over a random draw."""
    rows = [
        (
            short,
            *(
                rate_cell(results["models"][model][name], share=name != "gold")
                for name in ("top_1", "top_2", "gold", "against_random")
            ),
        )
        for model, short in models.items()
    ]
    for name, rates in results["baselines"].items():
        cells = [rate_cell(rates.get("top_1")), rate_cell(rates.get("top_2")), rate_cell(rates["gold"], share=False)]
        rows.append((name, *cells, "50.0" if name == RANDOM and rates["gold"] else "–"))
    header = ("chosen by", "the best, %", "of the best two, %", "reward by the judge", "beats a random one, %")
    return Table("What is chosen", header, rows)


def _wins_table(results: Mapping[str, Any], models: Mapping[str, str]) -> Table:
    rows = []
    for each, p in zip(results["wins"], _corrected(results), strict=True):
        cells: list[Cell] = [rate_cell(each["win_rate"]), p_value(p)]
        if p < SIGNIFICANT:
            cells = [Markup("<b>{}</b>").format(cell) for cell in cells]
        counts = (str(each[name]) for name in ("wins", "ties", "losses", "same"))
        rows.append((f"{models[each['a']]} over {models[each['b']]}", *cells, *counts))
    header = ("scorers", "win rate, %", "p, Holm", "wins", "ties", "losses", "chose the same")
    note = "p: exact sign test of wins against losses, corrected by Holm for all rows. In bold: p is below 5%."
    return Table("Against each other (a tie counts one half)", header, rows, note)


def _corrected(results: Mapping[str, Any]) -> list[float]:
    """Return each comparison's p-value of the sign test, which leaves ties out, corrected by Holm."""
    counts = [(each["wins"], each["wins"] + each["losses"]) for each in results["wins"]]
    p = [binomtest(won, decided).pvalue if decided else 1.0 for won, decided in counts]
    return [float(each) for each in holm_correction(p)] if p else []


def _statements(results: Mapping[str, Any], models: Mapping[str, str]) -> Iterator[str]:
    """State whose choices the judge prefers, as far as the corrected test decides."""
    tests = list(zip(results["wins"], _corrected(results), strict=True)) if results["judge"] else []
    for each, p in tests:
        a, b = models[each["a"]], models[each["b"]]
        if p < SIGNIFICANT:
            better, worse = (a, b) if each["wins"] > each["losses"] else (b, a)
            yield f"The judge prefers what {better} chooses to what {worse} chooses."
    open_ = [f"{models[each['a']]} and {models[each['b']]}" for each, p in tests if not p < SIGNIFICANT]
    if open_:
        yield f"The choices of {'; of '.join(open_)} don't differ significantly."


def _figures(results: Mapping[str, Any], models: Mapping[str, str]) -> Iterator[tuple[str, Markup]]:
    regions = {frozenset(each["models"]): each["share"] for each in results["best"]["regions"]}
    if regions and 2 <= len(models) <= MOST_CIRCLES:
        yield "best-selection", overlap_circles("How often each scorer's choice is the best of all", models, regions)
    curve = results["curve"]
    if curve["gold"] and len(curve["n"]) > 1:
        names = {**models, "the best": "the judge itself"}
        kinds = [*map(curve_kind, range(len(models))), "zero dash4"]
        curves = [
            Curve(
                names[model],
                kind,
                tuple((float(n), point["value"]) for n, point in enumerate(points, 1)),
                tuple(point["ci95"] for point in points),
            )
            for (model, points), kind in zip(curve["gold"].items(), kinds, strict=True)
        ]
        yield "growth", growth_curves("How the judge's reward grows with n", curves, curve["kl"], "judge's mean reward")


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    if results["alike"]:
        yield (
            f"{results['alike']} prompts have one distinct response, which every scorer chooses: they are left out of "
            "all rates. A recall of the best two needs three distinct responses."
        )
    yield "A random choice among k of R distinct responses is right k / R of the time; with no response twice, k / N."
    for name in ("left_out", "unscored"):
        for reason, number in results[name].items():
            what = "were left out" if name == "left_out" else "have a response without reward"
            yield f"{number} prompts {what}: {reason}."
    for name, run in results["judge_runs"].items():
        if run:
            lost = ", ".join(f"{number} {reason}" for reason, number in run["unscored"].items())
            yield (
                f"The judge's {name}: {run['judged']} of {run['rows']} questions answered"
                + (f" ({lost})" if lost else "")
                + f", with {run['responses_shown']} responses shown"
                + (f"; stopped: {stopped}." if (stopped := run["run"]["stopped"]) else ".")
            )


def _two_decimals(value: float) -> str:
    return f"{value + 0.0:.2f}".replace("-", "−")
