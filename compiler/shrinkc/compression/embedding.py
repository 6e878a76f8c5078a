"""Quantise the table of token vectors: embedding, head, or the one table that is both.

As a head the table multiplies the final hidden states x, so an error δ of a row costs ``δᵀ H δ``
with ``H = E[x xᵀ]``.  As an embedding the row itself enters the network, so its error counts as it
is: ``δᵀ δ``.  A table that is both is weighted with both (Frantar et al. 2022, "GPTQ", does the
rest: :mod:`shrinkc.compression.gptq`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.compression.gptq import Weighting, damped, quantize_matrix
from shrinkc.importer.embedding_sidecar import HEAD_SIDECAR, SIDECAR
from shrinkc.importer.model import QuantizedWeight, Zero

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

TIED_DAMP = 1.0  # share of the plain error in the weighting of a table that is embedding and head
HEAD_DAMP = 0.01  # of one that is a head only: numerical safety


def table_zero(bits: int) -> Zero:
    """Where zero is in a table of that width.

    Up to 4 bit a whole zero point takes a quarter of what an offset takes on the device.
    """
    return Zero.POINT if bits <= 4 else Zero.ANY


def quantize_tables(
    model: LlamaForCausalLM, windows: Tensor, *, bits: int, group_size: int
) -> dict[str, QuantizedWeight]:
    """File name -> quantised table: the embedding, and then, if it is another one, the head.

    ``windows``: int64 token ids [samples, length]; ``bits`` 2, 3, 4 or 8; ``group_size`` divides the
    hidden size.
    """
    given = table_weightings(model, head_moment(model, windows))
    return {
        file: quantize_table(table, weighting, bits=bits, group_size=group_size)
        for file, (table, weighting) in zip((SIDECAR, HEAD_SIDECAR), given, strict=False)
    }


def table_weightings(model: LlamaForCausalLM, moment: Tensor) -> list[tuple[Tensor, Weighting]]:
    """The embedding, and then, if it is another one, the head, each with what its errors cost; ``moment``
    [hidden, hidden] as :func:`head_moment` gives it."""
    import torch

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if model.config.tie_word_embeddings:
        return [(embedding, Weighting.of(damped(moment, TIED_DAMP)))]
    plain = Weighting.of(torch.eye(len(moment)))
    return [(embedding, plain), (head, Weighting.of(damped(moment, HEAD_DAMP)))]


def quantize_table(
    table: Tensor, weighting: Weighting, *, bits: int, group_size: int
) -> QuantizedWeight:
    """One table [vocab, hidden]."""
    points = table_zero(bits) is Zero.POINT
    weight = table.detach().float().cpu()
    return quantize_matrix(weight, weighting, bits=bits, group_size=group_size, points=points)


def head_moment(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """``E[x xᵀ]`` of the head's input x over all positions: float32 [hidden, hidden]."""
    import torch

    size = model.config.hidden_size
    total = torch.zeros(size, size, dtype=torch.float64)
    with torch.no_grad():
        for window in windows:
            x = model.model(window[None].to(model.device)).last_hidden_state[0].double().cpu()
            total += x.T @ x
    return (total / windows.numel()).float()
