"""Publishing: a profile goes to a model hub with a card, and comes back as a folder.

A profile made once, where there is a card that holds the model, is then there for everybody: a hub
id is all that serving needs.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from steering.errors import ProfileError
from steering.model.checkpoint import DEMO, first_line, public_name
from steering.profile import (
    RECORD_FILE,
    TENSORS_FILE,
    Profile,
    check_replaceable,
    download,
    load,
    replace_folder,
    save,
)

CARD_FILE = "README.md"
# What the hub's client raises where no hub answers; its package goes by the client's version.
_UNREACHABLE: type[Exception] = next(
    kind
    for kind in HfHubHTTPError.__mro__
    if kind.__name__ == "HTTPError" and issubclass(kind, Exception)
)


def push(folder: Path, repository: str, *, public: bool = False, licence: str | None = None) -> str:
    """Upload a profile with a card to the hub.

    Only the two files of the profile and the card are uploaded, and of a model's path the last part
    only.

    Args:
        folder: folder of the profile.
        repository: `org/name`; made if it does not exist.
        public: whether a repository that is made may be read by everybody.
        licence: the hub's name of the profile's licence, such as `apache-2.0`, for the card.

    Returns:
        The address of the repository.

    Raises:
        ProfileError: the folder holds no usable profile, nobody is logged in, or the hub refuses.
    """
    profile = _without_paths(load(folder))
    if get_token() is None:
        raise ProfileError(
            "pushing needs a token of the hub that may write: `hf auth login`, or set HF_TOKEN"
        )
    api = HfApi()
    with tempfile.TemporaryDirectory() as parent:
        upload = Path(parent) / "profile"
        save(profile, upload)
        (upload / CARD_FILE).write_text(card(profile, repository, licence), encoding="utf-8")
        try:
            address = api.create_repo(repository, private=not public, exist_ok=True)
            api.upload_folder(
                folder_path=upload,
                repo_id=repository,
                commit_message=f"Listening profile {profile.name}",
            )
        except (HfHubHTTPError, HFValidationError, _UNREACHABLE, OSError, ValueError) as error:
            raise ProfileError(
                f"{repository!r} can't be pushed to: {first_line(error)}. The id is `org/name`, of"
                " an organisation or user for which your token may write"
            ) from error
    return str(address)


def pull(repository: str, folder: Path, *, revision: str | None = None) -> Profile:
    """Download a profile into a folder, whole or not at all.

    Args:
        repository: `org/name` on the hub.
        folder: folder to write; an older profile in it is replaced.
        revision: branch, tag or commit; the newest if None.

    Returns:
        The profile.

    Raises:
        ProfileError: there is no such repository or profile, or it is damaged or of another schema;
            or the folder holds other files. The folder is then as it was.
    """
    check_replaceable(folder)
    source = download(repository, revision)
    try:
        profile = load(source)
    except ProfileError as error:
        raise ProfileError(f"{repository!r} holds no profile that can be used: {error}") from error

    def write(partial: Path) -> None:
        for name in (RECORD_FILE, TENSORS_FILE):
            shutil.copyfile(source / name, partial / name)

    replace_folder(folder, write)
    return profile


def _without_paths(profile: Profile) -> Profile:
    """The profile without the folders of the machine it was made on."""
    model = public_name(profile.model)
    return replace(profile, model=model, name=profile.name.replace(profile.model, model))


# ---- the card


def card(profile: Profile, repository: str, licence: str | None) -> str:
    """The text of a repository's README.md, from what the profile records."""
    sections = (
        _header(profile, licence),
        f"# Listening profile of {profile.model}",
        f"Specialist heads, direction and strength for `{profile.model}`, by"
        " allears: how far an answer listened to the audio, and steering towards it (arXiv"
        " 2603.06854).",
        f"```text\nallears serve --model {profile.model} --profile {repository}\n```",
        "## Model",
        _table(
            ("checkpoint", f"`{profile.model}`, revision `{profile.revision or 'not recorded'}`"),
            ("fingerprint", f"`{profile.fingerprint}`; refused for any other checkpoint"),
            ("family", profile.family),
            ("heads (layer.head)", ", ".join(f"{lay}.{head}" for lay, head in profile.heads)),
            ("chosen by", profile.criterion),
            ("layers of the direction", ", ".join(map(str, profile.layers))),
            ("largest strength", f"{profile.max_strength:g}"),
        ),
        *([f"**Not steered**: {profile.refusal}."] if profile.refusal else []),
        *([f"**Warning**: {profile.warning}."] if profile.warning else []),
        "## Data",
        _table(*_rows(profile.calibration)),
        "## Figures",
        "Of items outside the fold that the settings were fitted on.",
        _table(*_rows(profile.held_out)),
        "## Licence",
        f"`{licence}`" if licence else "Not stated by those who made this profile.",
        "## Versions",
        _table(*_rows(profile.versions)),
    )
    return "\n\n".join(sections) + "\n"


def _header(profile: Profile, licence: str | None) -> str:
    """The card's metadata; JSON is YAML, so that no value needs quoting of its own."""
    data: dict[str, Any] = {"library_name": "allears", "tags": ["allears", "listening-profile"]}
    if profile.model != DEMO and "/" in profile.model:
        data["base_model"] = profile.model
    if licence:
        data["license"] = licence
    lines = (f"{key}: {json.dumps(value)}" for key, value in data.items())
    return "\n".join(("---", *lines, "---"))


def _rows(values: Any) -> list[tuple[str, str]]:
    """A row for each value; those of values inside are named `outer: inner`."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        shown = name.replace("_", " ")
        if isinstance(value, dict):
            rows += [(f"{shown}: {inner}", text) for inner, text in _rows(value)]
        else:
            rows.append((shown, value if isinstance(value, str) else json.dumps(value)))
    return rows


def _table(*rows: tuple[str, str]) -> str:
    cells = (f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows)
    return "\n".join(("| | |", "|---|---|", *cells))
