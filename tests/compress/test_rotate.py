"""Stage rotate: the model computes the same, and its channels have similar sizes."""

from __future__ import annotations

import itertools
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

pytestmark = pytest.mark.slow

Step = Callable[..., StepContext]


@pytest.mark.parametrize("size", [1, 7, 64, 96, 576])
def test_the_basis_is_orthonormal_with_equal_magnitudes(size: int) -> None:
    found = basis(size, 3)
    assert found.dtype == torch.float64 and found.shape == (size, size)
    torch.testing.assert_close(found @ found.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(found, basis(size, 3)) and (
        size == 1 or not torch.equal(found, basis(size, 4))
    )
    odd = size // (size & -size)
    if size > odd:  # within a Hadamard block, all entries have the same magnitude
        sizes = found.abs().view(odd, size // odd, odd, size // odd)
        torch.testing.assert_close(sizes, sizes[:, :1, :, :1].expand_as(sizes))


def test_channels_are_rotated_within_their_part() -> None:
    parts = [[95, 1, 2, 60], list(range(5, 50)), []]
    found = basis(96, 3, parts)
    torch.testing.assert_close(found @ found.T, torch.eye(96, dtype=torch.float64))
    of = {channel: number for number, part in enumerate(parts) for channel in part}
    for a, b in itertools.product(range(96), repeat=2):
        alike = of[a] == of[b] if a in of and b in of else a == b
        assert alike or float(found[a, b]) == 0, (a, b)
        assert a in of or float(found[a, a]) == 1
    assert int((found[5:50, 5:50].abs() > 1e-3).sum()) > 0.9 * 45**2


def test_groups_of_similar_norm_weights_by_hand() -> None:
    """Groups are sorted by norm weight and span at most 7 %.  Groups with few channels, zero or negative weights,
    and kept channels are left out."""
    gains = torch.tensor(
        [1.0, 3.0, -1.0, 0.0, 1.05, 1.068, 2.0, 1.02, 1.06, 1.2, 1.21, 1.22, 1.25, -1.0, -1.0, -1.0]
    )
    assert rotate.similar_channels(gains, [1, 6]) == [[0, 7, 4, 8, 5], [9, 10, 11, 12]]
    assert rotate.similar_channels(gains, [9]) == [[0, 7, 4, 8, 5]]


def test_rotation_does_not_change_the_model(stories: Path, step: Step) -> None:
    """Tied before, untied after; with a channel whose norm weight is 0."""
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


def test_outlier_channels_are_not_rotated(stories: Path, step: Step, tmp_path: Path) -> None:
    """Relative to each token's size: a channel that is large in a huge token only is not an outlier."""
    given = load(stories, dtype="float32")
    model, source = given.model, tmp_path / "source"
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter[11] = 1e-5
        table[:, 11] += 40 * table.square().mean().sqrt()
        table[0, 13] += 1e4
    sizes = rotate.channel_sizes(model, torch.arange(95).view(5, 19) * torch.tensor([0] + 18 * [1]))
    assert float(sizes.mean()) == pytest.approx(1) and int(sizes.argmax()) == 11
    assert float(sizes[11]) > 5 > float(sizes[13])
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    source.mkdir()
    save(model, given.tokenizer, source)
    report = rotate.run(Settings(keep_above=5), step(source=source))
    assert report.parameters == {"untied": False, "kept": [11], "rotated": [95]}
    before, after = (load(d).model.model.embed_tokens.weight for d in (source, tmp_path / "out"))
    torch.testing.assert_close(after[:, 11], before[:, 11])
    assert float((after - before)[:, :11].abs().mean()) > 0.1 * float(before.abs().mean())
    whole = logits(source)
    assert float((logits(tmp_path / "out") - whole).abs().mean()) < 1e-3 * float(whole.abs().mean())
    # without a text no channel is kept
    none = step(source=source, out=tmp_path / "none")
    none.calibration = None
    assert rotate.run(Settings(), none).parameters["kept"] == []


def channel_peak(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Return the root mean square of the embedding's largest channel, relative to the mean over channels."""
    with torch.no_grad():
        size = model.model.embed_tokens(ids).flatten(0, 1).square().mean(0).sqrt()
    return float(size.max() / size.mean())


def logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return load(directory, dtype="float32").model(torch.arange(3, 99).view(2, 48)).logits


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_what_is_written(stored: torch.dtype, stories: Path, step: Step, tmp_path: Path) -> None:
    """For a tied model, and for its untied result."""
    given = load(stories, dtype="float32")
    source, once, twice = tmp_path / "source", tmp_path / "out", tmp_path / "again"
    source.mkdir()
    save(given.model.to(stored), given.tokenizer, source)
    own = Settings()
    report = rotate.run(own, step(source=source))
    assert report.parameters == {"untied": True, "kept": [], "rotated": [96]}
    assert "the LM head is stored separately" in report.notes[0]
    before, after = facts_of(source), facts_of(once)
    assert before.config.tie_embeddings and not after.config.tie_embeddings
    wanted = rotate.predict(own, before)
    assert (wanted.parameters, wanted.packed_bytes) == (after.parameters, after.packed_bytes)
    assert wanted.config == after.config
    # tokenizers do not grow
    assert wanted.bytes_on_disk == pytest.approx(after.bytes_on_disk, rel=0.05)
    again = rotate.run(Settings(), step(source=once, out=twice, seed=1))
    assert again.parameters == {"untied": False, "kept": [], "rotated": [96]} and not again.notes
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


def test_an_lm_head_that_stays_tied(stories: Path, step: Step, tmp_path: Path) -> None:
    """Similar norm weights become equal, which changes the model a little; others do not change."""
    given = load(stories, dtype="float32")
    with torch.no_grad():
        gains = given.model.model.norm.weight
        generator = torch.Generator().manual_seed(0)
        gains.copy_(1.5 + 0.05 * torch.rand(96, generator=generator))
        gains[60:90] *= 2
        gains[3], gains[50] = 4.0, -2.0
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    save(given.model, given.tokenizer, source)
    report = rotate.run(Settings(head="tied", keep_above=5), step(source=source))
    assert report.parameters.pop("norm_weights_changed") == pytest.approx(0.01, rel=0.3)
    assert report.parameters == {"untied": False, "kept": [], "rotated": [64, 30]}
    assert not report.notes
    after = load(out, dtype="float32").model
    assert after.config.tie_word_embeddings
    found = after.model.norm.weight
    low = [c for c in range(96) if c not in (3, 50) and not 60 <= c < 90]
    assert float(found[3]) == 4 and float(found[50]) == -2
    assert float(found[low].max()) == float(found[low].min()) == pytest.approx(1.525, rel=1e-2)
    assert float(found[60:90].max()) == float(found[60:90].min()) == pytest.approx(3.05, rel=1e-2)
    assert after.lm_head.weight is after.model.embed_tokens.weight
    whole = logits(source)
    assert 0 < float((logits(out) - whole).abs().mean()) < 0.02 * float(whole.abs().mean())
    before = facts_of(source)
    assert rotate.predict(Settings(head="tied"), before) == before
    assert facts_of(out).packed_bytes == before.packed_bytes
    # if no weights are similar, nothing is rotated, and a note says so
    with torch.no_grad():
        gains.copy_(1.1 ** torch.arange(96))
    source = tmp_path / "unlike"
    source.mkdir()
    save(given.model, given.tokenizer, source)
    report = rotate.run(
        Settings(head="tied", keep_above=5), step(source=source, out=tmp_path / "still")
    )
    assert report.parameters["rotated"] == [] and report.parameters["norm_weights_changed"] == 0
    (note,) = report.notes
    assert note.startswith("only 0 of 96 channels are rotated") and 'head = "own"' in note


RECIPE = """
[calibration]
text = ["{text}"]
samples = 16
length = 64
[rotate]
{keys}
[awq]
bits = 4
[gptq]
bits = 4
group_size = -1
embeddings = {{ bits = 4, group_size = 32 }}
[reconstruct]
samples = 16
length = 64
[qat]
samples = 16
batch = 4
length = 64
"""


@pytest.mark.parametrize("tied", [False, True])
def test_a_rotated_model_is_shrunk_compiled_and_run(
    tied: bool, stories: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both trainings use different windows of the text, also in a continued run."""
    recipe, out, program = tmp_path / "r.toml", tmp_path / "run", str(tmp_path / "program")
    keys = 'head = "tied"\nkeep_above = 2' if tied else ""
    recipe.write_text(RECIPE.format(text=story_file, keys=keys))
    assert run_cli(["compress", str(stories), "--recipe", str(recipe), "-o", str(out)]) == 0
    assert ("the LM head is stored separately" in capsys.readouterr().err) != tied
    rotated = read_step(out / "01-rotate").parameters
    assert rotated["untied"] != tied and bool(rotated["kept"]) == tied and rotated["rotated"]
    trained = read_step(out / "05-qat")
    assert trained.parameters["first_window"] == 16
    assert trained.fingerprint["windows before, 1"] == [16, None, 4]
    assert parse_toml((out / "recipe.toml").read_text()).stages[0].kind == "rotate"
    assert run_cli(["compile", str(out / "05-qat"), "-o", program]) == 0
    assert run_cli(["run", program, "--on", "host", "--prompt", "Once", "--tokens", "4"]) == 0


@pytest.mark.parametrize("before", ["[awq]", '[width]\nmethod = "n:m"\nn = 2\nm = 4'])
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
    assert f"[rotate] undoes what {name} did to the inputs" in said


def test_a_budget_counts_the_separate_lm_head(stories: Path) -> None:
    recipe = parse_toml("[budget]\ntarget_bytes = 400_000\n[rotate]\n[lora]\n")
    assert [s.kind for s in before_budget(recipe)] == ["rotate"]
    facts = facts_of(stories)
    check_recipe(recipe, facts)
    counted = [
        Space(config, gptq.Settings(embeddings={"bits": 4, "group_size": 32}), 0).embeddings()[4]
        for config in (facts.config, rotate.predict(Settings(), facts).config)
    ]
    assert counted[1] == 2 * counted[0]
    assert rotate.predict(Settings(head="tied"), facts).config == facts.config
    late = parse_toml("[budget]\ntarget_bytes = 400_000\n[lora]\n[rotate]\n")
    with pytest.raises(
        BadRecipe, match=r"needs the final embedding, but \[rotate\] would change it later"
    ):
        check_recipe(late, facts)


def test_refusals_and_what_needs_a_text() -> None:
    with pytest.raises(BadRecipe, match="keep_above = nan; numbers of a recipe are finite"):
        Settings(keep_above=float("nan"))
    for wrong in (0.5, -1.0):
        with pytest.raises(
            BadRecipe, match=f"keep_above = {wrong}; 0 \\(no channel\\), or 1 and more"
        ):
            Settings(keep_above=wrong)
    with pytest.raises(BadRecipe, match="head = 'free'; own, tied are allowed"):
        Settings(head="free")
    assert Settings(keep_above=5).needs_calibration and not Settings().needs_calibration
