"""Stage ``rotate``: Hadamard rotation of the residual stream (Ashkboos et al. 2024, "SliceGPT" and "QuaRot").

RMSNorm weights are folded into the matrices that follow them, and each matrix is rotated on the side that touches the
residual stream.  The model then computes the same, but the rows of a matrix that reads the stream have no outliers,
which per-channel quantisation suffers from.  Nothing is added at run time.

With a tied embedding, the last RMSNorm's weights stand between its two uses and cannot be folded into it.  Either
only channels with similar weights are rotated among themselves, and share one weight, or the LM head becomes a
matrix of its own.

Outlier channels can be left unrotated (``keep_above``).  If they are rotated, a channel that norms suppress by a
factor of a thousand becomes a direction of all channels, which every row has to avoid.  GPTQ rounds with respect to
it, but every later change of an integer brings back a part of it.

The rotation of a part is the Kronecker product of a random orthonormal matrix and a Hadamard matrix with random
signs, whose size is the largest power of two that divides the number of channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from shrinkc.checkpoints import family_of_torch, load, need, save, stored_dtype, torch_dtype
from shrinkc.compression.blocks import (
    batches,
    block,
    embed,
    norm_weight,
    positions,
    token_weights,
)
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Checked, OneOf
from shrinkc.compression.facts import ModelFacts, predicted
from shrinkc.compression.stages.context import Stage, StageKind, StepContext, StepReport, Work
from shrinkc.core.errors import BadRecipe
from shrinkc.core.words import show_size
from shrinkc.model import family_of

# For a tied LM head: the largest ratio of RMSNorm weights that become one, and the fewest channels that are rotated
# among themselves, so that outliers are spread.
RATIO_MOST, PART_LEAST = 1.07, 4
_TINY = 1e-30  # least sum of squares, or RMSNorm weight


@dataclass(frozen=True)
class Settings(Checked):
    """Which channels are rotated.  The seed is that of the run."""

    head: Annotated[str, OneOf("own", "tied")] = "own"
    """For a model whose LM head is its embedding.  ``own``: the LM head is stored separately,
    which takes more bytes, and results stay the same.  ``tied``: LM head and embedding stay one
    matrix.  Only channels whose weights in the last RMSNorm differ by at most 7 % are rotated.
    Results change a little."""
    keep_above: float = 0.0
    """Channels whose mean squared activation is above this multiple of the average are not
    rotated.  0 rotates all; 5 is recommended before ``reconstruct``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.keep_above == 0 or self.keep_above >= 1):
            raise BadRecipe(
                f"keep_above = {self.keep_above}; 0 (no channel), or 1 and more is allowed."
            )

    @property
    def needs_calibration(self) -> bool:
        """Activations are measured only to find outlier channels."""
        return self.keep_above > 0


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Return the problem that the family has norms between a block and the residual stream."""
    family = family_of(facts.config)
    if not family.post_norms:
        return []
    return [
        f"family {family.name} cannot be rotated: its norms after attention and MLP scale each channel of the "
        "residual stream, and a rotation mixes channels; leave the stage out"
    ]


def order(settings: Settings, before: Sequence[Stage]) -> Iterator[str]:
    """Yield problems: earlier stages whose result a rotation would undo."""
    for own in before:
        if own.kind == "awq" or getattr(own.settings, "method", "") == "n:m":
            yield f"undoes what [{own.name}] did to the inputs; put [{own.name}] after it"


def predict(settings: Settings, facts: ModelFacts) -> ModelFacts:
    """Return the facts with a separate LM head, unless ``head`` is "tied"."""
    return facts if settings.head == "tied" else predicted(facts, tie_embeddings=False)


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work: rotating a matrix takes as long as ``hidden_size`` tokens; activations take their tokens."""
    tokens = calibration.samples * calibration.length if settings.keep_above else 0
    return Work(2.0 * facts.config.hidden_size + tokens)


def run(settings: Settings, step: StepContext) -> StepReport:
    import torch

    loaded = load(step.source, dtype="float32", device=step.device)
    model, stored = loaded.model, torch_dtype(stored_dtype(step.source))
    tied = bool(model.config.tie_word_embeddings)
    hidden, facts = model.config.hidden_size, dict[str, Any]()
    with torch.no_grad(), step.reporter.stage("rotate") as update:
        kept: list[int] = []
        if settings.keep_above:
            windows = step.calibration.windows(loaded.tokenizer).to(step.device)
            sizes = channel_sizes(model, windows, update)
            kept = (sizes > settings.keep_above).nonzero().flatten().tolist()
        parts = [[c for c in range(hidden) if c not in kept]]
        if tied and settings.head == "tied":
            parts = similar_channels(model.model.norm.weight, kept)
            facts["norm_weights_changed"] = share_norm_weights(model, parts)
        rotate(model, basis(hidden, step.seed, parts), update, settings.head)
    save(model.to(stored), loaded.tokenizer, step.out)
    untied, rotated = tied and settings.head == "own", sum(len(part) for part in parts)
    facts |= {"kept": kept, "rotated": [len(part) for part in parts], "untied": untied}
    notes = []
    if tied and not untied and 2 * rotated < hidden:
        notes.append(
            f"only {rotated} of {hidden} channels are rotated: the others differ in their last RMSNorm weights; "
            'head = "own" rotates all but outliers, and stores the LM head separately'
        )
    if untied:
        size = show_size(2 * model.config.vocab_size * hidden)
        notes.append(f"the LM head is stored separately from now on: {size} more at 16 bits")
    return StepReport(facts, notes)


def channel_sizes(model: Any, windows: Any, update: Any = lambda done, total: None) -> Any:
    """Return the mean squared activation of the residual stream's channels relative to each token's mean, float64
    [hidden]: 1 if all are equal.  ``windows``: ids [samples, length].

    The first token of each window is left out.  One channel makes it huge ("massive activations", Sun et al. 2024),
    and its share would depend on the windows' length.
    """
    import torch

    layers, parts = model.model.layers, batches(windows)
    total = torch.zeros(model.config.hidden_size, dtype=torch.float64, device=windows.device)
    tables = positions(model, windows.shape[1])
    for number, part in enumerate(parts):
        stream = embed(model, part)
        for layer in layers:
            stream = block(layer, stream, tables)
            after = stream[:, 1:].float()
            total += (after.square() * token_weights(after)[..., None]).double().sum((0, 1))
        update(number + 1, len(parts))
    return total / (windows[:, 1:].numel() * len(layers))


def similar_channels(norm_weights: Any, kept: Sequence[int]) -> list[list[int]]:
    """Return groups of channels with similar ``norm_weights`` [hidden], without those in ``kept``.  Groups of fewer
    than :data:`PART_LEAST` are dropped."""
    order = [c for c in norm_weights.argsort(stable=True).tolist() if c not in set(kept)]
    parts: list[list[int]] = []
    for channel in order:
        weight = float(norm_weights[channel])
        part = parts[-1] if parts else []
        if not part or weight > RATIO_MOST * float(norm_weights[part[0]]):
            parts.append([channel])
        else:
            part.append(channel)
    return [part for part in parts if len(part) >= PART_LEAST and norm_weights[part[0]] > 0]


def share_norm_weights(model: Any, parts: list[list[int]]) -> float:
    """Give all channels of a part the same last RMSNorm weight: the mean, weighted by the squares of the LM head's
    columns.  Returns the relative change, root mean square over all channels."""
    import torch

    norm_weights = model.model.norm.weight
    before, squares = norm_weights.double().clone(), model.lm_head.weight.double().square().sum(0)
    for part in parts:
        place = torch.tensor(part, device=norm_weights.device)
        weights = squares[place].clamp_min(_TINY)
        norm_weights[place] = ((before[place] * weights).sum() / weights.sum()).to(
            norm_weights.dtype
        )
    changed = (norm_weights.double() - before) / before.abs().clamp_min(_TINY)
    return round(float(changed.square().mean().sqrt()), 6)


def basis(size: int, seed: int, parts: Sequence[Sequence[int]] | None = None) -> Any:
    """Return an orthonormal matrix [size, size], float64, that rotates the channels within each of ``parts`` and leaves
    all others.  None: one part with all channels."""
    import torch

    found = torch.eye(size, dtype=torch.float64)
    for number, part in enumerate([range(size)] if parts is None else parts):
        place = torch.tensor(list(part))
        if len(place):
            found[place[:, None], place] = _mixing(len(place), seed + 1_000_003 * number)
    return found


def _mixing(size: int, seed: int) -> Any:
    need("scipy")
    import torch
    from scipy.linalg import hadamard

    power_of_two = size & -size  # the largest power of two that divides it
    ones = torch.from_numpy(hadamard(power_of_two, dtype=float))
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn(
        size // power_of_two, size // power_of_two, generator=generator, dtype=torch.float64
    )
    rest = torch.linalg.qr(given).Q.contiguous()
    signs = torch.randint(2, (size, 1), generator=generator) * 2 - 1
    return signs * torch.kron(rest, ones / power_of_two**0.5)


def rotate(
    model: Any, basis: Any, update: Any = lambda done, total: None, head: str = "own"
) -> None:
    """Replace the residual stream x by x · ``basis`` [hidden, hidden], in place; RMSNorm weights become 1.

    A tied LM head becomes a matrix of its own, unless ``head`` is "tied".  Then the last RMSNorm weights stay; they
    have to be equal within each part of the basis.
    """
    import torch

    basis = basis.to(model.model.embed_tokens.weight.device)
    family = family_of_torch(model)

    def read(matrix: Any, norm: Any) -> Any:
        """Return the rotated weights of ``matrix`` [out, hidden], which reads the output of ``norm``."""
        return ((matrix.weight.double() * norm_weight(norm, family).double()) @ basis).float()

    embedding = model.model.embed_tokens
    tied = model.config.tie_word_embeddings and head == "tied"
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(read(model.lm_head, model.model.norm))
        model.model.norm.weight.fill_(1 - family.norm_offset)
    embedding.weight = torch.nn.Parameter((embedding.weight.double() @ basis).float())
    if tied:
        model.lm_head.weight = embedding.weight
    for number, layer in enumerate(model.model.layers):
        for name, names in family.readers.items():
            norm = layer.get_submodule(name)
            for matrix in map(layer.get_submodule, names):
                matrix.weight.copy_(read(matrix, norm))
            norm.weight.fill_(1 - family.norm_offset)
        for name in family.writers:
            matrix = layer.get_submodule(name)
            matrix.weight.copy_((basis.T @ matrix.weight.double()).float())
            if matrix.bias is not None:
                matrix.bias.copy_((basis.T @ matrix.bias.double()).float())
        update(number + 1, len(model.model.layers))


ROTATE = StageKind(
    name="rotate",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=12,
    predict=predict,
    changes_embeddings=True,
    preflight=preflight,
    order=order,
)
