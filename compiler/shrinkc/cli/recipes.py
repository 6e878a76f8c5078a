"""``shrinkc recipes``: the recipes that come with shrinkc, to be read, and copied to be changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from shrinkc.cli.console import Console, print_json, write_text
from shrinkc.cli.options import PATH, Command, json_option
from shrinkc.core.errors import BadRecipe, OutputError, UsageError
from shrinkc.core.output import check_file, write_file

_SENTENCE = re.compile(r".*?[a-z0-9)](?=[.:] )")


@click.command(
    "recipes",
    cls=Command,
    short_help="List, print or copy the shipped recipes.",
    examples=(
        "shrinkc recipes",
        "shrinkc recipes small",
        "shrinkc recipes small -o mine.toml",
    ),
)
@click.argument("name", required=False)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Copy the recipe to this new file.")
@json_option
def recipes_command(name: str | None, output: Path | None, as_json: bool) -> None:
    """List the recipes that come with shrinkc, or print the one called NAME.

    A copy is what 'shrinkc compress --recipe FILE' takes.
    """
    from shrinkc.compression.recipe import shipped

    known = shipped()
    if name is None:
        if output is not None:
            raise UsageError("-o is for one recipe.", f"name it: {', '.join(known)}.")
        found = [_described(each) for each in known]
        if as_json:
            print_json({"recipes": found})
            return
        width = max(map(len, known))
        for recipe in found:
            stages = ", ".join(recipe["stages"])
            if recipe["budget"]:
                stages += "; layers, widths and bits by its budget"
            write_text(f"{recipe['name']:{width}}  {recipe['about']}\n")
            write_text(f"{'':{width}}  stages: {stages}\n")
        return
    if name not in known:
        raise BadRecipe(
            f"there is no recipe {name!r}.", f"the shipped ones are {', '.join(known)}."
        )
    text = known[name].read_text(encoding="utf-8")
    if output is not None:
        if output.exists() and not _takes_anything(output):
            raise OutputError(
                f"{output} exists already.", "choose another file; recipes are edited."
            )
        check_file(output)
        write_file(output, text)
        Console().note(f"{output}: change it, then 'shrinkc compress MODEL --recipe {output}'")
    if as_json:
        print_json({**_described(name), "text": text})
    elif output is None:
        write_text(text)


def _takes_anything(output: Path) -> bool:
    """Whether it is a pipe or a device, which nothing is lost of."""
    return not output.is_file() and not output.is_dir()


def _described(name: str) -> dict[str, Any]:
    from shrinkc.compression.recipe import load_recipe, shipped

    comment = []
    for line in shipped()[name].read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    text = " ".join(comment)
    sentence = _SENTENCE.match(text)
    recipe = load_recipe(name)
    return {
        "name": name,
        "about": sentence[0] if sentence else text,
        "stages": [stage.name for stage in recipe.stages],
        "budget": recipe.budget is not None,
    }
