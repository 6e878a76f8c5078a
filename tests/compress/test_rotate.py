"""Stage rotate: the model stays what it is, and its channels become alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shrinkc.checkpoints import load, save, stored_dtype
from shrinkc.cli.main import run_cli
from shrinkc.compression.budget import before_budget, check_recipe
from shrinkc.compression.choices import Space
from shrinkc.compression.facts import facts_of
from shrinkc.compression.recipe import parse_toml
from shrinkc.compression.stages import gptq, rotate
from shrinkc.compression.stages.context import StepContext
from shrinkc.compression.stages.rotate import Settings, basis
from shrinkc.compression.steps import read_step
from shrinkc.core.errors import BadRecipe, UnsupportedModel

torch = pytest.importorskip("torch")

Step = Callable[..., StepContext]


@pytest.mark.parametrize("size", [1, 7, 64, 96, 576])
def test_the_basis_is_orthonormal_and_even(size: int) -> None:
    found = basis(size, 3)
    assert found.dtype == torch.float64 and found.shape == (size, size)
    torch.testing.assert_close(found @ found.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(found, basis(size, 3)) and (
        size == 1 or not torch.equal(found, basis(size, 4))
    )
    odd = size // (size & -size)
    if size > odd:  # every block of a power of two has entries of one size
        sizes = found.abs().view(odd, size // odd, odd, size // odd)
        torch.testing.assert_close(sizes, sizes[:, :1, :, :1].expand_as(sizes))


def test_a_model_gives_what_it_gave(stories: Path, step: Step) -> None:
    """Tied before and with two tables after; with a channel that norms silence."""
    before = load(stories, dtype="float32")
    with torch.no_grad():
        for name, parameter in before.model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(torch.linspace(0.2, 2, len(parameter)))
                parameter[5] = 1e-5
        before.model.model.embed_tokens.weight[:, 5] *= 30
    ids = torch.arange(3, 99).view(2, 48)
    with torch.no_grad():
        wanted = before.model(ids).logits
        peak = channel_peak(before.model, ids)
        rotate.rotate(before.model, basis(before.model.config.hidden_size, 0))
        found = before.model(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert channel_peak(before.model, ids) < peak / 2
    norms = [p for n, p in before.model.named_parameters() if n.endswith("norm.weight")]
    assert norms and all(bool((p == 1).all()) for p in norms)


def channel_peak(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """How many times its mean the largest channel of the embedded tokens is, in root mean squares."""
    with torch.no_grad():
        size = model.model.embed_tokens(ids).flatten(0, 1).square().mean(0).sqrt()
    return float(size.max() / size.mean())


def logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return load(directory, dtype="float32").model(torch.arange(3, 99).view(2, 48)).logits


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_what_is_written(stored: torch.dtype, stories: Path, step: Step, tmp_path: Path) -> None:
    """Of a tied model, and of what it became, whose head is its own."""
    given = load(stories, dtype="float32")
    source, once, twice = tmp_path / "source", tmp_path / "out", tmp_path / "again"
    source.mkdir()
    save(given.model.to(stored), given.tokenizer, source)
    report = rotate.run(Settings(), step(source=source))
    assert report.parameters == {"untied": True} and "a table more" in report.notes[0]
    before, after = facts_of(source), facts_of(once)
    assert before.config.tie_embeddings and not after.config.tie_embeddings
    wanted = rotate.predict(Settings(), before)
    assert (wanted.parameters, wanted.packed_bytes) == (after.parameters, after.packed_bytes)
    assert wanted.config == after.config
    # tokenizers do not grow
    assert wanted.bytes_on_disk == pytest.approx(after.bytes_on_disk, rel=0.05)
    again = rotate.run(Settings(), step(source=once, out=twice, seed=1))
    assert again.parameters == {"untied": False} and not again.notes
    tolerance = 1e-3 if stored == torch.float32 else 0.05
    whole = logits(source)
    for folder in (once, twice):
        assert float((logits(folder) - whole).abs().mean()) < tolerance * float(whole.abs().mean())
    tables = [load(d).model.get_input_embeddings().weight for d in (source, once, twice)]
    assert {stored_dtype(d) for d in (once, twice)} == {str(stored).removeprefix("torch.")}
    assert all(
        float((a - b).abs().mean()) > 0.1 * float(a.abs().mean())
        for a, b in zip(tables, tables[1:], strict=False)
    )


RECIPE = """
[calibration]
text = ["{text}"]
samples = 16
length = 64
[rotate]
[equalize]
bits = 4
[gptq]
bits = 4
group = -1
embeddings = {{ bits = 4, group = 32 }}
[reconstruct]
samples = 16
length = 64
[qat]
samples = 16
batch = 4
length = 64
"""


def test_a_rotated_model_is_shrunk_compiled_and_run(
    stories: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its two trainings have different windows of the text, which a run that goes on knows."""
    recipe, out, program = tmp_path / "r.toml", tmp_path / "run", str(tmp_path / "program")
    recipe.write_text(RECIPE.format(text=story_file))
    assert run_cli(["compress", str(stories), "--recipe", str(recipe), "-o", str(out)]) == 0
    assert "a table more" in capsys.readouterr().err
    trained = read_step(out / "05-qat")
    assert trained.parameters["first_window"] == 16
    assert trained.fingerprint["windows before, 1"] == [16, None, 4]
    assert parse_toml((out / "recipe.toml").read_text()).stages[0].kind == "rotate"
    assert run_cli(["compile", str(out / "05-qat"), "-o", program]) == 0
    assert run_cli(["run", program, "--on", "host", "--prompt", "Once", "--tokens", "4"]) == 0


@pytest.mark.parametrize("before", ["[equalize]", '[width]\nmethod = "n:m"\nn = 2\nm = 4'])
def test_it_comes_before_what_it_would_undo(
    before: str, stories: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.toml"
    text = f'[calibration]\ntext = ["{story_file}"]\nsamples = 8\nlength = 32\n'
    recipe.write_text(f"{text}{before}\n[rotate]\n")
    command = ["compress", str(stories), "--recipe", str(recipe), "-o", str(tmp_path / "run")]
    assert run_cli([*command, "--dry-run"]) == UnsupportedModel.exit_code
    name = before.split("]")[0] + "]"
    said = " ".join(capsys.readouterr().err.split())  # lines are as wide as the terminal
    assert f"[rotate] mixes the inputs that {name} has changed" in said


def test_a_budget_counts_the_table_that_it_adds(stories: Path) -> None:
    recipe = parse_toml("[budget]\ntarget_bytes = 400_000\n[rotate]\n[lora]\n")
    assert [s.kind for s in before_budget(recipe)] == ["rotate"]
    facts = facts_of(stories)
    check_recipe(recipe, facts)
    counted = [
        Space(config, gptq.Settings(embeddings={"bits": 4, "group": 32}), 0).tables()[4]
        for config in (facts.config, rotate.predict(Settings(), facts).config)
    ]
    assert counted[1] == 2 * counted[0]
    late = parse_toml("[budget]\ntarget_bytes = 400_000\n[lora]\n[rotate]\n")
    with pytest.raises(BadRecipe, match=r"the tables that there are, and \[rotate\] comes after"):
        check_recipe(late, facts)
