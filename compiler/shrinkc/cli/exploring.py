"""``shrinkc explore``: a search over recipes."""

from __future__ import annotations

from typing import Any

import click

from shrinkc.cli.console import Console, print_json, write_text
from shrinkc.cli.options import COUNT, FILE, FOLDER, PATH, SEED, Device, command
from shrinkc.cli.stopping import check


@command(
    "explore",
    "Search for the best recipes for a model.",
    "shrinkc explore model --recipe half --trials 20 -o search",
)
@click.argument("model")
@click.option(
    "--recipe",
    type=FILE,
    required=True,
    metavar="FILE|NAME",
    help="Recipe to vary; its table [explore] has the ranges.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Change a value of the recipe, e.g. evaluate.windows=8. May be repeated.",
)
@click.option("--space", type=PATH, help="TOML file with the ranges, instead of [explore].")
@click.option("--trials", type=COUNT, required=True, help="Number of trials to run now.")
@click.option("--timeout", type=float, help="Seconds after which no new trial starts.")
@click.option(
    "--storage",
    metavar="URL",
    help="URL of the database for the Optuna study. [default: sqlite in OUTPUT/study.db]",
)
@click.option("--study", default="shrinkc", show_default=True, help="Name of the Optuna study.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the search.")
@click.option(
    "--reference",
    type=PATH,
    multiple=True,
    metavar="JSON",
    help="JSON file with results to mark in the picture, e.g. a run.json. May be repeated.",
)
@click.option("--keep-all", is_flag=True, help="Keep all models, not only the best of each size.")
@click.option(
    "--device", type=Device(), default="cpu", show_default=True, help="Device for torch, e.g. cuda."
)
@click.option("-o", "--output", type=FOLDER, required=True, help="Directory for the results.")
def explore_command(as_json: bool, **options: Any) -> None:
    """Search for the recipes that give the best quality of MODEL at each size.

    The same command adds trials to an earlier search.  Several processes may work on one search.
    """
    from shrinkc.driver.exploring import ExploreRequest, explore_recipes

    found = explore_recipes(ExploreRequest(**options), Console(), check)
    if as_json:
        print_json(found.front)
    else:
        write_text("\n".join(found.table) + "\n")
