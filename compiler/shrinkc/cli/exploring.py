"""``shrinkc explore``: a search over recipes."""

from __future__ import annotations

from typing import Any

import click

from shrinkc.cli.console import Console, print_json, write_text
from shrinkc.cli.options import COUNT, FILE, FOLDER, PATH, SEED, Device, command
from shrinkc.cli.stopping import check


@command(
    "explore",
    "Search recipes: quality against bytes.",
    "shrinkc explore model --recipe small --trials 20 -o search",
)
@click.argument("model")
@click.option(
    "--recipe",
    type=FILE,
    required=True,
    metavar="FILE|NAME",
    help="The recipe to vary; its table [explore] has the ranges.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Change the recipe of all trials, e.g. evaluate.windows=8. May be repeated.",
)
@click.option("--space", type=PATH, help="A TOML file with the ranges, instead of [explore].")
@click.option("--trials", type=COUNT, required=True, help="How many trials to add.")
@click.option("--timeout", type=float, help="Seconds after which no new trial begins.")
@click.option(
    "--storage",
    metavar="URL",
    help="Where the Optuna study is stored. [default: sqlite, OUTPUT/study.db]",
)
@click.option("--study", default="shrinkc", show_default=True, help="The study's name.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the search.")
@click.option(
    "--reference",
    type=PATH,
    multiple=True,
    metavar="JSON",
    help="Configurations to mark: a run.json, or a list. May be repeated.",
)
@click.option("--keep-all", is_flag=True, help="Keep all models, not only those on the front.")
@click.option("--device", type=Device(), default="cpu", show_default=True, help="Device of torch.")
@click.option("-o", "--output", type=FOLDER, required=True, help="The search's directory.")
def explore_command(as_json: bool, **options: Any) -> None:
    """Search for recipes that make MODEL small and keep it good.

    The same command goes on with the study; several processes may work on one.
    """
    from shrinkc.driver.exploring import ExploreRequest, explore_recipes

    found = explore_recipes(ExploreRequest(**options), Console(), check)
    if as_json:
        print_json(found.front)
    else:
        write_text("\n".join(found.table) + "\n")
