"""The commands that need no server: demo-data, calibrate, evaluate, and those of profiles.

Each imports what it needs when it runs: torch is slow to import, and `--help` needs none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steering.errors import ProfileError

if TYPE_CHECKING:
    from steering.profile import Profile

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Model = Annotated[str, typer.Option(help="`demo`, a hub id, or a folder.")]
Data = Annotated[
    Path, typer.Option(help="Items: MMAU's JSON, MMAR's, or JSON lines.", dir_okay=False)
]
AudioRoot = Annotated[
    Path | None,
    typer.Option(help="What the audio paths are relative to; default: the data's folder."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, spread")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")]
Adapter = Annotated[str | None, typer.Option(help="LoRA adapter to merge: folder or hub id.")]


Folder = Annotated[Path, typer.Argument(help="Folder of a listening profile.")]
Repository = Annotated[str, typer.Argument(help="Repository of the hub, ORG/NAME.")]


class Mode(StrEnum):
    """The form of an answer: written freely, or the likeliest of the options."""

    generate = "generate"
    choices = "choices"


class PromptStyleOption(StrEnum):
    """The wording of options: lettered lines, or R1-AQA's words with an answer tag."""

    auto = "auto"
    plain = "plain"
    answer_tag = "answer-tag"

    @property
    def style(self) -> str:
        """The loader's name for it."""
        return "r1_aqa" if self is PromptStyleOption.answer_tag else self.value


class CriterionOption(StrEnum):
    """What heads are chosen by: right answers, or the effect of the sound on every token."""

    correctness = "correctness"
    effect = "effect"


class Split(StrEnum):
    """Parts of the embedded model's world; `test` has voices that no training clip has."""

    train = "train"
    calibration = "calibration"
    test = "test"


def demo_data_command(
    split: Annotated[Split, typer.Option(help="Whose voices and randomness.")],
    items: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many.")],
    seed: Annotated[int, typer.Option(min=0, help="Any number; the same gives the same items.")],
    out: Annotated[Path, typer.Option(help="Folder for items.json and the WAV files.")],
    unseen_wordings: Annotated[
        bool, typer.Option("--unseen-wordings", help="Cues in words the model was not trained on.")
    ] = False,
    open_answers: Annotated[
        bool,
        typer.Option("--open-answers", help="Items without options; a sentence is the answer."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make fresh items of the embedded model's world, in MMAU's schema.

    Example: allears demo-data --split test --items 200 --seed 7 --out build/items
    """
    from steering.synthetic.data import write_items

    path = write_items(
        out,
        split=split.value,
        count=items,
        seed=seed,
        unseen_wordings=unseen_wordings,
        open_answers=open_answers,
    )
    Console().print_json(data={"items": items, "path": str(path)}) if as_json else print(
        f"{items} items in {path}"
    )


def calibrate_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the profile to write.")],
    model: Model = "demo",
    audio_root: AudioRoot = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    adapter: Adapter = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that share the items; more than 1 needs Ray.")
    ] = 1,
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="Leave items with faults out, and count them.")
    ] = False,
    criterion: Annotated[
        CriterionOption,
        typer.Option(help="Heads by right answers, or by the sound's effect: needs no answers."),
    ] = CriterionOption.correctness,
    keep_evidence: Annotated[
        bool, typer.Option("--keep-evidence", help="Keep the folder OUT.evidence when done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find a model's audio-specialist heads and how to steer it; write its listening profile.

    What the model does on each item is kept in OUT.evidence, by effect in OUT.effects: run the same
    command again after it was stopped, and it goes on from there.

    Example: allears calibrate --model demo --data build/items/items.json --out build/profile
    """
    from steering.calibration import calibrate as calibration
    from steering.calibration.collecting import EVIDENCE, store_folder
    from steering.calibration.effects.token_effects import TOKEN_EFFECTS
    from steering.model import loading

    loaded = loading.load(model, revision=revision, device=device, dtype=dtype, adapter=adapter)
    profile = calibration.calibrate(
        loaded,
        data,
        audio_root or data.parent,
        out,
        workers=workers,
        skip_faulty=skip_faulty,
        keep_evidence=keep_evidence,
        criterion=criterion.value,
    )
    if as_json:
        Console().print_json((out / "profile.json").read_text())
        return
    for table in _figures(profile):
        Console().print(table)
    if profile.warning:
        print(f"Warning: {profile.warning}.")
    print(f"heads chosen by {profile.criterion}")
    if profile.held_out:
        print(profile.confirmed)
    if profile.refusal:
        print(f"Not steered: {profile.refusal}. Strength 0, answers stay bare.")
    print(f"profile written to {out}")
    if keep_evidence:
        folders = [store_folder(out, kind) for kind in (EVIDENCE, TOKEN_EFFECTS)]
        kept = " and ".join(str(folder) for folder in folders if folder.is_dir())
        print(f"evidence kept in {kept}; it can be deleted")


def evaluate_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for predictions, figures and the report.")],
    model: Model = "demo",
    profile: Annotated[str | None, typer.Option(help="Folder or hub id of a profile.")] = None,
    audio_root: AudioRoot = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    adapter: Adapter = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random controls.")] = 0,
    mode: Annotated[
        Mode, typer.Option(help="Write answers, or score the options.")
    ] = Mode.generate,
    prompt: Annotated[
        PromptStyleOption,
        typer.Option(help="How the options are put; auto: as the profile was fitted."),
    ] = PromptStyleOption.auto,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a written answer.")] = 32,
    open_question: Annotated[
        str, typer.Option(help="Asked of every clip, for score against effect by token.")
    ] = "Describe what you hear.",
    as_json: Json = False,
) -> None:
    """Answer every item bare, steered and by every control; write predictions and a report.

    A run that is stopped goes on where it was when it is started again.

    Example: allears evaluate --data build/items/items.json --out build/evaluation
    """
    from steering import profile as profiles
    from steering.evaluation import evaluate as evaluation
    from steering.model import loading

    evaluation.require_report_packages()
    loaded = loading.load(
        model, revision=revision, device=device, dtype=dtype, adapter=adapter, style=prompt.style
    )
    listening_profile = profiles.find(profile, loaded)
    if listening_profile is None:
        raise ProfileError("evaluation needs a profile; `none` is for serving only")
    if prompt is PromptStyleOption.auto:
        loaded = profiles.asked_as_fitted(loaded, listening_profile)
    results = evaluation.evaluate(
        loaded,
        listening_profile,
        data,
        audio_root or data.parent,
        out,
        seed,
        mode=mode.value,
        max_tokens=max_tokens,
        open_question=open_question,
    )
    if as_json:
        Console().print_json(data=results)
        return
    header, *rows = evaluation.table(results)
    grid = Table(*header, title=f"{results['data']['items']} items, % right")
    for row in rows:
        grid.add_row(*row)
    Console().print(grid)
    effect_header, *effect_rows = evaluation.effect_table(results)
    grid = Table(*effect_header, title="score against effect, AUROC at 1 bit")
    for row in effect_rows:
        grid.add_row(*row)
    Console().print(grid)
    print(f"the report: {out / 'report.html'}")


# ---- profiles


def show_command(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print profile.json.")] = False,
) -> None:
    """Show what a listening profile holds.

    Example: allears profile show ./profile
    """
    from steering import profile as profiles

    profile = profiles.load(folder)
    if as_json:
        typer.echo((folder / profiles.RECORD_FILE).read_text(encoding="utf-8"))
        return
    settings = {
        "model": f"{profile.model} ({profile.family}), revision {profile.revision or 'none'}",
        "fingerprint": profile.fingerprint,
        "heads (layer.head)": ", ".join(f"{layer}.{head}" for layer, head in profile.heads),
        "chosen by": profile.criterion,
        "layers": ", ".join(map(str, profile.layers)),
        "gate": asdict(profile.gate),
        "fixed strength": f"{profile.fixed_strength:g}",
        "max strength": f"{profile.max_strength:g}",
        "refusal": profile.refusal or "none",
        "warning": profile.warning or "none",
        "answers in full": profile.confirmed,
        "silence": f"{profile.silence}, {profiles.SILENCES[profile.silence]}",
        "verdicts": asdict(profile.verdicts),
        "versions": dict(profile.versions),
    }
    for table in (_pairs(profile.name, settings), *_figures(profile)):
        Console().print(table)


def push_command(
    folder: Folder,
    repository: Repository,
    licence: Annotated[
        str | None, typer.Option("--license", help="Of the profile, such as apache-2.0.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read a repository that is made.")
    ] = False,
) -> None:
    """Upload a listening profile to the hub, with a card made from it.

    Example: allears profile push ./profile ORG/NAME --license apache-2.0 --public
    """
    from steering.calibration import publishing

    print(f"pushed to {publishing.push(folder, repository, public=public, licence=licence)}")


def pull_command(
    repository: Repository,
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a listening profile from the hub into a folder.

    Example: allears profile pull ORG/NAME ./profile
    """
    from steering.calibration import publishing

    profile = publishing.pull(repository, folder, revision=revision)
    print(f"{folder}: profile {profile.name!r} of {profile.model}")


# ---- tables


def _figures(profile: Profile) -> Iterator[Table]:
    """A profile's figures, as tables."""
    held_out, data = dict(profile.held_out), dict(profile.calibration)
    titles = {
        "held out": held_out,
        "nulls": held_out.pop("nulls", {}),
        "heads against chance": data.pop("head_choice", {}),
        "heads against meters": data.pop("meters", {}),
        "data": data,
    }
    for title, figures in titles.items():
        if figures:
            yield _pairs(title, figures)


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    grid = Table("figure", "value", title=escape(title))
    for key, value in values.items():
        grid.add_row(key, escape(value if isinstance(value, str) else json.dumps(value)))
    return grid


COMMANDS: dict[str, Callable[..., None]] = {
    "demo-data": demo_data_command,
    "calibrate": calibrate_command,
    "evaluate": evaluate_command,
}
PROFILE_COMMANDS: dict[str, Callable[..., None]] = {
    "show": show_command,
    "push": push_command,
    "pull": pull_command,
}
