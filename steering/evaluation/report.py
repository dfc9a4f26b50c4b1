"""The report: one self-contained HTML file, and its figures as PNG files beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steering.calibration.activations import Activations, build_item_prompt, load_item_clip
from steering.evaluation import plots
from steering.evaluation.arms import ARMS
from steering.evaluation.effect_figures import effect_table
from steering.evaluation.predictions import write_whole
from steering.heads import listening_score, timeline
from steering.items import Item
from steering.measures import Flags
from steering.meters.waveform import METERS
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.profile import Profile

STYLE = Path(__file__).with_suffix(".mplstyle")
FIGURES = "figures"  # folder of the PNG files, beside the report
EXAMPLES = 3  # of each kind
SHOWN_ABOVE = 0.95  # share of random sets that a choice must be above to be said to matter


@dataclass(frozen=True, slots=True, eq=False)
class ReportDetails:
    """Contents of the report besides the figures in results.json."""

    model: AudioModel
    profile: Profile
    items: Sequence[Item]
    activations: Activations
    outputs: Mapping[str, Sequence[str]]
    right: Mapping[str, Flags]
    effect: NDArray[np.float64]  # (I,) bits at the first token


def write_report(out: Path, results: Mapping[str, Any], details: ReportDetails) -> None:
    """Write `report.html` and the figures to a folder."""
    (out / FIGURES).mkdir(exist_ok=True)
    with rc_context(fname=STYLE):
        figures = {
            name: _picture(figure, out / FIGURES / f"{name}.png")
            for name, figure in _figures(results, details).items()
        }
        examples = {
            kind: [
                _example(details, i, out / FIGURES / f"{kind}-{n}.png") for n, i in enumerate(rows)
            ]
            for kind, rows in pick_examples(details.items, details.right).items()
        }
    pages = Environment(
        loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"signed": signed, "breakable": breakable, "digits": digits}
    page = pages.get_template("report.html.jinja").render(
        results=results,
        profile=details.profile,
        described=ARMS,
        words=METERS,
        headline=headline(results, details.profile),
        answers=choice_matters(results),
        effect_rows=effect_table(results),
        figures=figures,
        examples=examples,
        mixes=list(results["arms"]["bare"]["mixes"]),
    )
    write_whole(out / "report.html", page)


def headline(results: Mapping[str, Any], profile: Profile) -> str:
    """The gain of the adaptive arm in one sentence."""
    items = results["data"]["items"]
    bare, adaptive = (results["arms"][arm]["right_percent"] for arm in ("bare", "adaptive"))
    if profile.max_strength == 0:
        return (
            f"The profile does not steer this model: calibration found no gain. It answers"
            f" {bare:.1f} % of {items} items right as it is."
        )
    gain, low, high = results["arms"]["adaptive"]["gain_over_bare"]
    shares = f"{adaptive:.1f} % of {items} items right instead of {bare:.1f} %"
    interval = f"95 % interval {signed(low)} to {signed(high)}"
    if low <= 0 <= high:
        return (
            f"Steering by the listening score shows no certain change: {shares},"
            f" {signed(gain)} points ({interval})."
        )
    sense = "gain" if gain > 0 else "loss"
    return (
        f"Steered by its listening score, the model answers {shares}: a {sense} of"
        f" {abs(gain):.1f} points ({interval})."
    )


def signed(points: float) -> str:
    """Points with their sign; no sign if they round to zero."""
    details = f"{points:+.1f}"
    return "0.0" if float(details) == 0 else details.replace("-", "\N{MINUS SIGN}")


def digits(value: object) -> str:
    """A figure to two digits; a dash where there is none."""
    return (
        f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
        if isinstance(value, float | int)
        else "\N{EN DASH}"
    )


def breakable(name: str) -> Markup:
    """A name that a narrow column may break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def choice_matters(results: Mapping[str, Any]) -> list[str]:
    """Sentences: does the choice of heads matter for the score, the gate, the direction?"""
    score = results["listening"]["right_wrong_within_wording"]
    sentences = [
        _sentence(
            "For the score",
            "the specialist heads tell right from wrong answers of one wording with an AUROC of"
            f" {_figure(score['auroc'])}",
            score["above_random_share"],
            f"60 random sets of as many heads ({_figure(score['random_mean'])} ±"
            f" {_figure(score['random_sd'])})",
        )
    ]
    controls = results["first_tokens"]
    if "random_heads" not in controls:
        return [
            *sentences,
            f"For the gate and the direction it was not measured: {controls['reason']}.",
        ]
    heads, layers = controls["random_heads"], controls["random_layers"]
    sentences.append(
        _sentence(
            "For the gate",
            "strengths handed out by the specialist heads give"
            f" {heads['all']['chosen_percent']:.1f} % right decisive tokens",
            heads["all"]["chosen_above_share"],
            f"{heads['sets']} random sets of heads ({heads['all']['mean_percent']:.1f} ±"
            f" {heads['all']['sd_percent']:.1f} %)",
        )
    )
    sentences.append(
        _sentence(
            "For the direction",
            f"the profile's layers give {layers['all']['chosen_percent']:.1f} % right decisive"
            " tokens",
            layers["all"]["chosen_above_share"],
            f"{layers['sets']} random sets of as many layers"
            f" ({layers['all']['mean_percent']:.1f} ± {layers['all']['sd_percent']:.1f} %)",
        )
    )
    return sentences


def _sentence(subject: str, finding: str, above: float | None, others: str) -> str:
    if above is None:
        return f"{subject}: not measurable here, all answers are alike."
    verdict = "yes" if above >= SHOWN_ABOVE else "not shown" if above >= 0.5 else "no"
    return (
        f"{subject}: {verdict}. {finding[0].upper()}{finding[1:]}, above {above:.0%} of {others}."
    )


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def pick_examples(items: Sequence[Item], right: Mapping[str, Flags]) -> dict[str, list[int]]:
    """Indices of the first items repaired and broken by the adaptive arm, of unlike tasks first."""
    bare, adaptive = right["bare"], right["adaptive"]
    examples = {}
    for kind, flags in (("repaired", adaptive & ~bare), ("broken", bare & ~adaptive)):
        seen: dict[str, int] = {}
        ranked = []
        for i in np.flatnonzero(flags):
            task = items[int(i)].task
            seen[task] = seen.get(task, 0) + 1
            ranked.append((seen[task], int(i)))
        examples[kind] = [i for _, i in sorted(ranked)[:EXAMPLES]]
    return examples


def _figures(results: Mapping[str, Any], details: ReportDetails) -> dict[str, Figure]:
    activations, profile = details.activations, details.profile
    scores = activations.scores(profile.heads, details.model.num_heads)
    silent = activations.silent_scores(profile.heads, details.model.num_heads)
    figures = {
        "gains": plots.gains(results["arms"]),
        "scores": plots.scores(scores[activations.right], scores[~activations.right], silent),
    }
    if results["correlation_map"] is not None:
        figures["heads"] = plots.head_map(results["correlation_map"], profile.heads)
    part = next((p for p in ("task", "wording") if p in results["parts"]), None)
    if part is not None:
        figures["parts"] = plots.parts(results["parts"][part])
    controls = results["first_tokens"]
    if "by_strength" in controls:
        fixed = profile.fixed_strength
        figures["strengths"] = plots.strengths(controls["by_strength"], controls["gates"], fixed)
    panels = _panels(results)
    if panels:
        figures["random"] = plots.against_random(panels)
    return figures


def _panels(results: Mapping[str, Any]) -> list[tuple[str, str, list[float], float]]:
    """Random sets beside the profile's own, where both were measured."""
    score, controls = results["listening"]["right_wrong_within_wording"], results["first_tokens"]
    panels = []
    if score["auroc"] is not None:
        unit = "AUROC, right against wrong"
        panels.append(("Score: heads", unit, score["random_each"], score["auroc"]))
    tokens = results["effect"]["tokens"]["sets"]
    own = tokens[results["effect"]["criterion"]]["auroc"]
    if own is not None:
        unit = "AUROC, tokens decided by the sound against others"
        panels.append(("Live score: heads", unit, tokens["random"]["each"], own))
    for name, title in (("random_heads", "Gate: heads"), ("random_layers", "Direction: layers")):
        if name in controls:
            control = controls[name]["all"]
            unit = "% right decisive tokens"
            panels.append((title, unit, control["each_percent"], control["chosen_percent"]))
    return panels


def _example(details: ReportDetails, i: int, path: Path) -> dict[str, Any]:
    """An item, the answers of the arms, and its picture."""
    model, profile, item = details.model, details.profile, details.items[i]
    clip = load_item_clip(model, item)
    heard = prefill(model, build_item_prompt(model, item, clip), heads=profile.heads)
    attention = heard.attention.cpu().numpy()
    score, effect = listening_score(attention), float(details.effect[i])
    figure = plots.example(
        clip.samples, clip.sample_rate_hz, timeline(attention), model.hop_seconds
    )
    return {
        "item": item,
        "score": score,
        "effect": effect,
        "verdict": profile.verdicts.of(score).replace("_", " "),
        "strength": profile.gate.strength(effect if profile.gate.reads == "effect" else score),
        "bare": details.outputs["bare"][i],
        "adaptive": details.outputs["adaptive"][i],
        "picture": _picture(figure, path),
    }


def _picture(figure: Figure, path: Path) -> str:
    """A figure as a data URI; it is also written to a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=180)
    path.write_bytes(file.getvalue())
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
