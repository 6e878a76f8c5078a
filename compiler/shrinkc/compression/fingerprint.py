"""Fingerprints of runs, stages and evaluations (see :mod:`shrinkc.core.fingerprint`)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import shrinkc
from shrinkc.checkpoints import versions
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.recipe import PATH_KEYS, Recipe
from shrinkc.compression.recipe_settings import EvaluateSettings
from shrinkc.compression.stages.context import Stage
from shrinkc.compression.texts import read_texts
from shrinkc.core.artifact import file_record
from shrinkc.core.errors import BadData
from shrinkc.core.fingerprint import FILE, Fingerprint
from shrinkc.evaluation.tasks import tasks_made_from


def run_fingerprint(recipe: Recipe) -> Fingerprint:
    found = {f"run.{key}": value for key, value in asdict(recipe.run).items()}
    found |= {f"version of {name}": version for name, version in versions().items()}
    return found | {"version of shrinkc": shrinkc.__version__}


def stage_fingerprint(stage: Stage, calibration: Calibration) -> Fingerprint:
    """Return a stage's settings, the hashes of its texts, and its calibration data if it uses any."""
    found: Fingerprint = {"stage": stage.kind}
    for key, value in asdict(stage.settings).items():
        if key not in PATH_KEYS:
            found[f"{stage.name}.{key}"] = json.loads(json.dumps(value))  # tuples become lists
    if texts := getattr(stage.settings, "text", ()):
        for text in read_texts(texts, f"{stage.kind}.text", calibration.self_generated):
            found[f"{FILE}{text.name}"] = text.spec or text.sha256
    if stage.needs_calibration:
        for key, value in calibration.fingerprint().items():
            found[f"calibration.{key}" if "text" not in key else f"{FILE}calibration {key}"] = value
    return found


def evaluation_fingerprint(settings: EvaluateSettings | None) -> Fingerprint:
    if settings is None:
        return {}
    found: Fingerprint = {}
    for key, value in asdict(settings).items():
        if key == "tasks":  # tasks_made_from() below hashes their files
            continue
        if key in PATH_KEYS and value is not None:
            try:
                found[f"{FILE}{Path(value).name}"] = file_record(Path(value)).sha256
            except OSError as error:
                raise BadData(
                    f"evaluate.{key}: {value} cannot be read: {error.strerror}."
                ) from error
        else:
            found[f"evaluate.{key}"] = list(value) if isinstance(value, tuple) else value
    return found | tasks_made_from(settings.choices())
