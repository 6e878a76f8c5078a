"""What a step was made from (see :mod:`shrinkc.core.fingerprint`)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import shrinkc
from shrinkc.checkpoints import versions
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.recipe import PATH_KEYS, EvaluateSettings, Recipe, Stage
from shrinkc.compression.self_text import is_self
from shrinkc.compression.stages import stage_module
from shrinkc.core.artifact import file_record
from shrinkc.core.errors import BadData
from shrinkc.core.fingerprint import FILE, Fingerprint


def run_fingerprint(recipe: Recipe) -> Fingerprint:
    """Seed, threads, dtype and versions."""
    found = {f"run.{key}": value for key, value in asdict(recipe.run).items()}
    found |= {f"version of {name}": version for name, version in versions().items()}
    return found | {"version of shrinkc": shrinkc.__version__}


def stage_fingerprint(stage: Stage, calibration: Calibration) -> Fingerprint:
    """Settings, the texts, and the calibration data if the stage looks at it."""
    found: Fingerprint = {"stage": stage.kind}
    for key, value in asdict(stage.settings).items():
        if key not in PATH_KEYS:
            found[f"{stage.name}.{key}"] = list(value) if isinstance(value, tuple) else value
    for source in getattr(stage.settings, "text", ()):
        if is_self(source) and calibration.own is not None:
            found[f"{FILE}{source}"] = calibration.own.spec(source)
    module = stage_module(stage.kind)
    if hasattr(module, "inputs"):
        for name, digest in module.inputs(stage.settings).items():
            found[f"{FILE}{name}"] = digest
    if needs_calibration(stage):
        for key, value in calibration.fingerprint().items():
            found[f"calibration.{key}" if "text" not in key else f"{FILE}calibration {key}"] = value
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
                found[f"{FILE}{Path(value).name}"] = file_record(Path(value)).sha256
            except OSError as error:
                raise BadData(
                    f"evaluate.{key}: {value} cannot be read: {error.strerror}."
                ) from error
        else:
            found[f"evaluate.{key}"] = list(value) if isinstance(value, tuple) else value
    return found
