"""Quantisation of embedding and LM head, separate or tied.

The LM head multiplies the final hidden states x, so an error δ of a row costs ``δᵀ H δ`` with ``H = E[x xᵀ]``.  A row
of the embedding enters the network directly, so its error costs ``δᵀ δ``.  A tied matrix is weighted with both.
:mod:`shrinkc.compression.gptq` rounds (Frantar et al. 2022, "GPTQ").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.compression.gptq import Weighting, damped, quantize_matrix
from shrinkc.importer.embedding_sidecar import HEAD_SIDECAR, SIDECAR
from shrinkc.importer.model import QuantizedWeight, Zero

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TIED_DAMP = 1.0  # share of the plain error in the weighting of a tied embedding
HEAD_DAMP = 0.01  # of a separate LM head: numerical safety


def embedding_zero(bits: int) -> Zero:
    """Return the kind of zero points: integers up to 4 bits, where they take a quarter of an offset's bytes."""
    return Zero.POINT if bits <= 4 else Zero.ANY


def quantize_embeddings(
    model: PreTrainedModel, windows: Tensor, *, bits: int, group_size: int
) -> dict[str, QuantizedWeight]:
    """Return file name -> quantised matrix, for the embedding and for the LM head if it is separate.

    ``windows``: int64 token ids [samples, length]; ``bits`` 2, 3, 4 or 8; ``group_size`` divides the
    hidden size.
    """
    given = embedding_weightings(model, head_moment(model, windows))
    return {
        file: quantize_embedding(matrix, weighting, bits=bits, group_size=group_size)
        for file, (matrix, weighting) in zip((SIDECAR, HEAD_SIDECAR), given, strict=False)
    }


def embedding_weightings(model: PreTrainedModel, moment: Tensor) -> list[tuple[Tensor, Weighting]]:
    """Return the embedding, and the LM head if it is separate, each with the weighting of its errors.

    ``moment`` [hidden, hidden]: see :func:`head_moment`."""
    import torch

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if model.config.tie_word_embeddings:
        return [(embedding, Weighting.of(damped(moment, TIED_DAMP)))]
    plain = Weighting.of(torch.eye(len(moment)))
    return [(embedding, plain), (head, Weighting.of(damped(moment, HEAD_DAMP)))]


def quantize_embedding(
    matrix: Tensor, weighting: Weighting, *, bits: int, group_size: int
) -> QuantizedWeight:
    """Quantise the embedding or LM head ``matrix`` [vocab, hidden]."""
    points = embedding_zero(bits) is Zero.POINT
    weight = matrix.detach().float().cpu()
    return quantize_matrix(weight, weighting, bits=bits, group_size=group_size, points=points)


def head_moment(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Return ``E[x xᵀ]`` of the LM head's input x over all positions, float32 [hidden, hidden]."""
    import torch

    size = model.config.hidden_size
    total = torch.zeros(size, size, dtype=torch.float64)
    with torch.no_grad():
        for window in windows:
            x = model.model(window[None].to(model.device)).last_hidden_state[0].double().cpu()
            total += x.T @ x
    return (total / windows.numel()).float()
