"""Stage ``rotate``: the residual stream in another orthonormal basis, so that no channel is far larger than the rest.

A norm without gains gives a rotated stream as the stream rotated, so what a block computes stays what it was where
gains go into the matrices behind them, and each matrix is rotated on the side on which it touches the stream
(Ashkboos et al. 2024, "SliceGPT" and "QuaRot").  The rows of a matrix that reads the stream then have no outliers,
which is what one scale per row suffers from; nothing is computed or stored beside them.  A head that is the embedding
as well becomes a table of its own, because the last gains come between the two.

The basis is a Hadamard matrix of the largest power of two that divides the hidden size, with random signs, and what is
left of the size is mixed by a random orthonormal matrix: every channel becomes a sum of all, where the size is a power
of two with weights of one size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shrinkc.checkpoints import load, save, stored_dtype, torch_dtype
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import ModelFacts, predicted
from shrinkc.compression.stages.context import StepContext, StepReport
from shrinkc.core.words import show_size
from shrinkc.model import ATTENTION, MLP


@dataclass(frozen=True)
class Settings:
    """There is nothing to choose: the seed is that of the run."""

    @property
    def needs_calibration(self) -> bool:
        """It looks at weights only."""
        return False


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    return []


def predict(settings: Settings, facts: ModelFacts) -> ModelFacts:
    """With a head of its own."""
    return predicted(facts, tie_embeddings=False)


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> float:
    """A matrix takes as long as ``hidden_size`` tokens, in float64."""
    return 2.0 * facts.config.hidden_size


def run(settings: Settings, step: StepContext) -> StepReport:
    """Rotates every matrix, and writes the checkpoint."""
    import torch

    loaded = load(step.source, dtype="float32", device=step.device)
    model, stored = loaded.model, torch_dtype(stored_dtype(step.source))
    tied = bool(model.config.tie_word_embeddings)
    with torch.no_grad(), step.reporter.stage("rotate") as update:
        rotate(model, basis(model.config.hidden_size, step.seed), update)
    save(model.to(stored), loaded.tokenizer, step.out)
    if not tied:
        return StepReport({"untied": False})
    size = 2 * model.config.vocab_size * model.config.hidden_size
    return StepReport(
        {"untied": True},
        [f"the head is no longer the embedding: a table more, {show_size(size)} at 16 bit"],
    )


def basis(size: int, seed: int) -> Any:
    """An orthonormal matrix [size, size], float64; within a block of the largest power of two that divides ``size`` its
    entries have one size."""
    import torch

    whole = size & -size  # the largest power of two that divides it
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < whole:
        top, bottom = torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)
        hadamard = torch.cat([top, bottom])
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn(size // whole, size // whole, generator=generator, dtype=torch.float64)
    rest = torch.linalg.qr(given).Q.contiguous()
    signs = torch.randint(2, (size, 1), generator=generator) * 2 - 1
    return signs * torch.kron(rest, hadamard / whole**0.5)


def rotate(model: Any, basis: Any, update: Any = lambda done, total: None) -> None:
    """The residual stream x of ``model`` becomes x · ``basis`` [hidden, hidden], in place; gains of norms become 1, and
    a tied head a table of its own."""
    import torch

    basis = basis.to(model.model.embed_tokens.weight.device)

    def read(matrix: Any, norm: Any) -> Any:
        """[out, hidden] of what ``norm`` hands on."""
        return ((matrix.weight.double() * norm.weight.double()) @ basis).float()

    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(read(model.lm_head, model.model.norm))
    model.model.norm.weight.fill_(1)
    table = model.model.embed_tokens
    table.weight = torch.nn.Parameter((table.weight.double() @ basis).float())
    q, k, v, o = ATTENTION
    gate, up, down = MLP
    for number, layer in enumerate(model.model.layers):
        for norm, names in (
            (layer.input_layernorm, (q, k, v)),
            (layer.post_attention_layernorm, (gate, up)),
        ):
            for name in names:
                matrix = layer.get_submodule(name)
                matrix.weight.copy_(read(matrix, norm))
            norm.weight.fill_(1)
        for name in (o, down):
            matrix = layer.get_submodule(name)
            matrix.weight.copy_((basis.T @ matrix.weight.double()).float())
        update(number + 1, len(model.model.layers))
