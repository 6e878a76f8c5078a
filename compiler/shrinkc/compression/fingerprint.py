"""What a step was made from, as labelled values: so that a difference can be named.

A fingerprint is a flat table, label -> value.  Files go in by their content's hash under their
name, never their folder, so that a run can move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import shrinkc
from shrinkc.checkpoints import versions
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.recipe import PATH_KEYS, EvaluateSettings, Recipe, Stage
from shrinkc.compression.self_text import is_self
from shrinkc.compression.stages import stage_module
from shrinkc.core.artifact import file_record
from shrinkc.core.errors import BadData

Fingerprint = dict[str, Any]

_FILE = "content of "
# what a model directory may hold besides the model
_NO_MODEL = (".md", ".png", ".svg", ".gitattributes", ".lock")


def run_fingerprint(recipe: Recipe) -> Fingerprint:
    """Seed, threads, dtype and versions."""
    found = {f"run.{key}": value for key, value in asdict(recipe.run).items()}
    found |= {f"version of {name}": version for name, version in versions().items()}
    return found | {"version of shrinkc": shrinkc.__version__}


def model_fingerprint(source: Path) -> Fingerprint:
    """Every file of a model, a directory or a GGUF file."""
    if source.is_file():
        return {f"{_FILE}{source.name}": file_record(source).sha256}
    files = sorted(
        p for p in source.rglob("*")
        if p.is_file() and not p.name.endswith(_NO_MODEL) and p.name != "step.json"
        and not any(part.startswith(".") for part in p.relative_to(source).parts)
    )  # fmt: skip
    return {f"{_FILE}{p.relative_to(source).as_posix()}": file_record(p).sha256 for p in files}


def stage_fingerprint(stage: Stage, calibration: Calibration) -> Fingerprint:
    """Settings, the texts, and the calibration data if the stage looks at it."""
    found: Fingerprint = {"stage": stage.kind}
    for key, value in asdict(stage.settings).items():
        if key not in PATH_KEYS:
            found[f"{stage.name}.{key}"] = list(value) if isinstance(value, tuple) else value
    for source in getattr(stage.settings, "text", ()):
        if is_self(source) and calibration.own is not None:
            found[f"{_FILE}{source}"] = calibration.own.spec(source)
    module = stage_module(stage.kind)
    if hasattr(module, "inputs"):
        for name, digest in module.inputs(stage.settings).items():
            found[f"{_FILE}{name}"] = digest
    if needs_calibration(stage):
        for key, value in calibration.fingerprint().items():
            found[f"calibration.{key}" if "text" not in key else f"{_FILE}calibration {key}"] = (
                value
            )
    return found


def needs_calibration(stage: Stage) -> bool:
    """Whether the stage looks at the calibration data."""
    return bool(getattr(stage.settings, "needs_calibration", True))


def evaluation_fingerprint(settings: EvaluateSettings | None) -> Fingerprint:
    """What decides the metrics of a given model."""
    if settings is None:
        return {}
    found: Fingerprint = {}
    for key, value in asdict(settings).items():
        if key in PATH_KEYS and value is not None:
            try:
                found[f"{_FILE}{Path(value).name}"] = file_record(Path(value)).sha256
            except OSError as error:
                raise BadData(
                    f"evaluate.{key}: {value} cannot be read: {error.strerror}."
                ) from error
        else:
            found[f"evaluate.{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every value that differs, in words, old → new."""
    found = []
    for label in [*old, *(label for label in new if label not in old)]:
        before, after = old.get(label), new.get(label)
        if before == after and (label in old) == (label in new):
            continue
        if label.startswith(_FILE):
            name = label.removeprefix(_FILE)
            if label not in new:
                found.append(f"{name} is no longer used")
            elif label not in old:
                found.append(f"{name} is new")
            else:
                found.append(f"{name} has other content")
        else:
            found.append(f"{label}: {_show(before)} → {_show(after)}")
    return found


def _show(value: Any) -> str:
    return "not given" if value is None else str(value)
