"""Reading of run results for the report of a compiled directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.core import artifact
from shrinkc.core.errors import BadData
from shrinkc.core.parsing import as_number, as_text
from shrinkc.core.shell import name_of
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.simulate import profile


@dataclass(frozen=True)
class Run:
    """Result of a run in ``file``: machine, numbers of prompt and new tokens, compared values (None: not verified)
    and the profile's phases (None: not profiled, or no decode step)."""

    file: str
    machine: str
    model: str
    prompt: int
    new: int
    drafted: bool
    compared: float | None
    mismatched: float | None
    prefill: profile.Phase | None
    decode: profile.Phase | None

    @classmethod
    def of_json(cls, file: str, found: Mapping[str, Any]) -> Run:
        """Read a run's JSON.  Raises KeyError, TypeError or ValueError if it is invalid."""
        verdict, phases = found["verdict"], found["profile"] or {}
        prefill = profile.Phase.of_json(phases["prefill"]) if phases else None
        decode = phases["decode"] if phases else None
        decode = None if decode is None else profile.Phase.of_json(decode)
        prompt, new = (list[object](found[key]) for key in ("prompt_tokens", "new_tokens"))
        if not prompt:
            raise ValueError("it has no prompt")
        if decode is not None and not 1 <= decode.steps <= max(1, len(new)):
            raise ValueError("more decode steps than tokens")
        return cls(
            file, as_text(found["target"]), as_text(found["model"]), len(prompt), len(new),
            bool(found.get("prompt_lookup")),
            None if verdict is None else as_number(verdict["compared"]),
            None if verdict is None else as_number(verdict["mismatched"]), prefill, decode,
        )  # fmt: skip


def run_of(directory: Path, path: Path | None, manifest: artifact.Manifest) -> Run | None:
    """Return the run in ``path``, or else the directory's last profile; None if there is none."""
    if path is None:
        path = directory / artifact.PROFILE
        if not path.is_file():
            return None
    try:
        run = Run.of_json(name_of(path), read_json_object(path, BadData))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadData(
            f"{path} is no run of shrinkc: {error!r}.",
            "give what 'shrinkc run DIR --on gvsoc --profile --json' printed.",
        ) from None
    if run.model != manifest.model:
        raise BadData(
            f"{path} is a run of '{run.model}', and {directory} holds '{manifest.model}'.",
            "give a run of this directory.",
        )
    if run.prompt + run.new > manifest.context:
        raise BadData(
            f"{path} is a run of {run.prompt + run.new} tokens, and {directory} was compiled for "
            f"{manifest.context}.",
            "give a run of this directory.",
        )
    return run
