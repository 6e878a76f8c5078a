"""Stage ``rotate``: the residual stream in another orthonormal basis, whose channels are more alike.

A norm without gains gives a rotated stream as the stream rotated, so what a block computes stays what it was where
gains go into the matrices behind them, and each matrix is rotated on the side on which it touches the stream
(Ashkboos et al. 2024, "SliceGPT" and "QuaRot").  The rows of a matrix that reads the stream then have no outliers,
which is what one scale per row suffers from; nothing is computed or stored beside them.

Between an embedding that is the head as well and its second use stand the last norm's gains, which cannot go into it.
Channels with like gains are turned among themselves there, and their gains become one; or the head becomes a table of
its own.

Channels that are far larger than the rest can keep their place.  Turned as well, what norms silence there, with gains
of a thousandth of the others', becomes a direction of all channels that every row has to miss: GPTQ, which knows the
directions of its inputs, rounds best so, but of each integer that is changed later something of it comes back.

The basis of the others is a Hadamard matrix of the largest power of two that divides their number, with random signs,
and what is left of it is mixed by a random orthonormal matrix: every channel becomes a sum of all, where there is a
power of two of them with weights of one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from shrinkc.checkpoints import load, need, save, stored_dtype, torch_dtype
from shrinkc.compression.blocks import READERS, WRITERS, batches, block, embed, rope, token_weights
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Checked, OneOf
from shrinkc.compression.facts import ModelFacts, predicted
from shrinkc.compression.stages.context import Stage, StageKind, StepContext, StepReport, Work
from shrinkc.core.errors import BadRecipe
from shrinkc.core.words import show_size

# Of a head that stays tied: how many times the least of the gains that become one the largest may be, and how many
# channels are turned among themselves at least, so that outliers are spread.
GAINS_ALIKE, PART_LEAST = 1.07, 4
_TINY = 1e-30  # of a sum of squares, or a gain


@dataclass(frozen=True)
class Settings(Checked):
    """Which channels are rotated.  The seed is that of the run."""

    head: Annotated[str, OneOf("own", "tied")] = "own"
    """For a model whose LM head is its embedding.  ``own``: the LM head is stored separately,
    which takes more bytes, and results stay the same.  ``tied``: LM head and embedding stay one
    matrix.  Only channels whose weights in the last RMSNorm differ by at most 7 % are rotated.
    Results change a little."""
    outlier: float = 0.0
    """Channels whose mean squared activation is above this multiple of the average are not
    rotated.  0 rotates all; 5 is recommended before ``reconstruct``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.outlier == 0 or self.outlier >= 1):
            raise BadRecipe(f"outlier = {self.outlier}; 0 (no channel), or 1 and more is allowed.")

    @property
    def needs_calibration(self) -> bool:
        """Whether it looks at what a text does to the stream."""
        return self.outlier > 0


def order(settings: Settings, before: Sequence[Stage]) -> Iterator[str]:
    """Stages whose work is in the basis that goes."""
    for own in before:
        if own.kind == "awq" or getattr(own.settings, "method", "") == "n:m":
            yield f"mixes the inputs that [{own.name}] has changed; put [{own.name}] after it"


def predict(settings: Settings, facts: ModelFacts) -> ModelFacts:
    """With a head of its own, where it is asked for."""
    return facts if settings.head == "tied" else predicted(facts, tie_embeddings=False)


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """A matrix takes as long as ``hidden_size`` tokens, in float64; and the text is looked at in float32."""
    looked = calibration.samples * calibration.length if settings.outlier else 0
    return Work(2.0 * facts.config.hidden_size + looked)


def run(settings: Settings, step: StepContext) -> StepReport:
    import torch

    loaded = load(step.source, dtype="float32", device=step.device)
    model, stored = loaded.model, torch_dtype(stored_dtype(step.source))
    tied = bool(model.config.tie_word_embeddings)
    hidden, facts = model.config.hidden_size, dict[str, Any]()
    with torch.no_grad(), step.reporter.stage("rotate") as update:
        kept: list[int] = []
        if settings.outlier:
            windows = step.calibration.windows(loaded.tokenizer).to(step.device)
            sizes = channel_sizes(model, windows, update)
            kept = (sizes > settings.outlier).nonzero().flatten().tolist()
        parts = [[c for c in range(hidden) if c not in kept]]
        if tied and settings.head == "tied":
            parts = like_gains(model.model.norm.weight, kept)
            facts["gains_changed"] = share_gains(model, parts)
        rotate(model, basis(hidden, step.seed, parts), update, settings.head)
    save(model.to(stored), loaded.tokenizer, step.out)
    untied, turned = tied and settings.head == "own", sum(len(part) for part in parts)
    facts |= {"kept": kept, "turned": [len(part) for part in parts], "untied": untied}
    notes = []
    if tied and not untied and 2 * turned < hidden:
        notes.append(
            f"only {turned} of {hidden} channels are turned, since the last norm's gains of the others are alike to "
            'few; head = "own" turns all that are not far larger than the rest, for a table more'
        )
    if untied:
        size = show_size(2 * model.config.vocab_size * hidden)
        notes.append(f"the head is no longer the embedding: a table more, {size} at 16 bit")
    return StepReport(facts, notes)


def channel_sizes(model: Any, windows: Any, update: Any = lambda done, total: None) -> Any:
    """The squares of the residual stream's channels, float64 [hidden], means over tokens and blocks, relative to the
    mean of a token's channels: 1 where all are alike.  ``windows`` [samples, length] of ids.

    Without the first token of each window, which one channel makes huge ("massive activations", Sun et al. 2024): how
    much it would count depends on the windows' length.
    """
    import torch

    layers, parts = model.model.layers, batches(windows)
    total = torch.zeros(model.config.hidden_size, dtype=torch.float64, device=windows.device)
    tables = rope(model, windows.shape[1])
    for number, part in enumerate(parts):
        stream = embed(model, part)
        for layer in layers:
            stream = block(layer, stream, tables)
            after = stream[:, 1:].float()
            total += (after.square() * token_weights(after)[..., None]).double().sum((0, 1))
        update(number + 1, len(parts))
    return total / (windows[:, 1:].numel() * len(layers))


def like_gains(gains: Any, kept: Sequence[int]) -> list[list[int]]:
    """Channels whose ``gains`` [hidden] are alike, but for those that are ``kept``; those of which fewer than
    :data:`PART_LEAST` are alike are in none."""
    order = [c for c in gains.argsort(stable=True).tolist() if c not in set(kept)]
    parts: list[list[int]] = []
    for channel in order:
        gain = float(gains[channel])
        part = parts[-1] if parts else []
        if not part or gain > GAINS_ALIKE * float(gains[part[0]]):
            parts.append([channel])
        else:
            part.append(channel)
    return [part for part in parts if len(part) >= PART_LEAST and gains[part[0]] > 0]


def share_gains(model: Any, parts: list[list[int]]) -> float:
    """Makes the last gains of each part one: their mean, weighted with the squares of what the head has of a channel.
    How far gains have moved, relative to what they were, root mean square over all channels."""
    import torch

    gains = model.model.norm.weight
    before, squares = gains.double().clone(), model.lm_head.weight.double().square().sum(0)
    for part in parts:
        place = torch.tensor(part, device=gains.device)
        weights = squares[place].clamp_min(_TINY)
        gains[place] = ((before[place] * weights).sum() / weights.sum()).to(gains.dtype)
    changed = (gains.double() - before) / before.abs().clamp_min(_TINY)
    return round(float(changed.square().mean().sqrt()), 6)


def basis(size: int, seed: int, parts: Sequence[Sequence[int]] | None = None) -> Any:
    """An orthonormal matrix [size, size], float64, that turns the channels of each of ``parts`` among themselves and
    leaves the others where they are; None: all among one another.  Within the largest power of two that
    divides the channels of a part, entries have one size."""
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

    whole = size & -size  # the largest power of two that divides it
    ones = torch.from_numpy(hadamard(whole, dtype=float))
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn(size // whole, size // whole, generator=generator, dtype=torch.float64)
    rest = torch.linalg.qr(given).Q.contiguous()
    signs = torch.randint(2, (size, 1), generator=generator) * 2 - 1
    return signs * torch.kron(rest, ones / whole**0.5)


def rotate(
    model: Any, basis: Any, update: Any = lambda done, total: None, head: str = "own"
) -> None:
    """The residual stream x of ``model`` becomes x · ``basis`` [hidden, hidden], in place; gains of norms become 1.

    A ``head`` that is the embedding becomes a table of its own, or stays ``"tied"`` and the last gains what they are,
    which has to be one within what the basis turns.
    """
    import torch

    basis = basis.to(model.model.embed_tokens.weight.device)

    def read(matrix: Any, norm: Any) -> Any:
        """[out, hidden] of what ``norm`` hands on."""
        return ((matrix.weight.double() * norm.weight.double()) @ basis).float()

    table, tied = model.model.embed_tokens, model.config.tie_word_embeddings and head == "tied"
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(read(model.lm_head, model.model.norm))
        model.model.norm.weight.fill_(1)
    table.weight = torch.nn.Parameter((table.weight.double() @ basis).float())
    if tied:
        model.lm_head.weight = table.weight
    for number, layer in enumerate(model.model.layers):
        for name, names in READERS.items():
            norm = layer.get_submodule(name)
            for matrix in map(layer.get_submodule, names):
                matrix.weight.copy_(read(matrix, norm))
            norm.weight.fill_(1)
        for name in WRITERS:
            matrix = layer.get_submodule(name)
            matrix.weight.copy_((basis.T @ matrix.weight.double()).float())
        update(number + 1, len(model.model.layers))


ROTATE = StageKind(
    name="rotate",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=12,
    predict=predict,
    changes_tables=True,
    order=order,
)
