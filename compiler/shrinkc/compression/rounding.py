"""Layers with quantised weights that are trained with a straight-through estimator: matrices and embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from shrinkc.importer.model import QuantizedWeight

# A scale stays positive: the least that its factor can become.
FACTOR_MIN = 0.05
# How far from its integer a latent begins at most: the model begins as it was quantised, whatever the
# rounding of its neighbours was made up for in a weight.
BEGIN_MAX = 0.45
ROUNDING_PASSES = 18  # over the latents, of a forward and a backward pass


def nearest(latent: Any, bits: int) -> Any:
    """The integers of latents, float32."""
    return latent.round().clamp_(0, 2**bits - 1)


class _Grid:
    """The integers and scales of ``weight``, and what the gradient of a weight is to both.

    ``whole``: zero points are integers, as those of GPTQ's matrices are.
    """

    def __init__(self, weight: QuantizedWeight, device: str, whole: bool) -> None:
        import torch

        self.bits, self.group, self.inputs = weight.bits, weight.group, weight.q.shape[1]
        self.scale = torch.from_numpy(weight.scale).to(device)
        zero = torch.from_numpy(-weight.offset / weight.scale).to(device)
        self.zero = zero.round() if whole else zero

    def spread(self, per_group: Any) -> Any:
        """[out, groups] -> [out, in]"""
        return per_group.repeat_interleave(self.group, 1)[:, : self.inputs]

    def begin(self, weight: QuantizedWeight, floats: np.ndarray | None, order: Any) -> Any:
        """The latents of ``weight``; ``floats`` [out, in], what it was quantised from, says on which side of
        its integer a latent begins."""
        import torch

        latent = torch.from_numpy(weight.q).to(self.scale.device).float()
        if floats is not None:
            given = torch.from_numpy(np.ascontiguousarray(floats)).float().to(self.scale.device)
            given = given if order is None else given[:, order]
            exact = given / self.spread(self.scale) + self.spread(self.zero)
            latent += (exact - latent).clamp_(-BEGIN_MAX, BEGIN_MAX)
        return latent

    def _by_group(self, x: Any) -> list[tuple[Any, Any]]:
        """Views of ``x`` [out, in], and of what has a value per group [out, groups] the columns that are theirs:
        whole groups [out, groups, group], and a short last one."""
        whole = self.inputs // self.group
        parts = [(x[:, : whole * self.group].unflatten(1, (whole, self.group)), slice(whole))]
        if whole * self.group < self.inputs:
            parts.append((x[:, None, whole * self.group :], slice(whole, None)))
        return parts

    def codes(self, latent: Any) -> Any:
        """Integers less zero points."""
        codes = nearest(latent.detach(), self.bits)
        for part, groups in self._by_group(codes):
            part.sub_(self.zero[:, groups, None])
        return codes

    def weights(self, latent: Any, change: Any, dtype: Any) -> Any:
        """[out, in] in ``dtype``."""
        return self._scaled(self.codes(latent), change).to(dtype)

    def _scaled(self, x: Any, change: Any) -> Any:
        """``x`` [out, in], times each group's scale, in place."""
        scale = self.scale * (1 + change).clamp_min(FACTOR_MIN)
        for part, groups in self._by_group(x):
            part.mul_(scale[:, groups, None])
        return x

    def gradients(
        self, latent: Any, change: Any, slope: Any, integers: bool = True
    ) -> tuple[Any, Any]:
        """Of ``latent``, None without ``integers``, and of ``change`` from ``slope`` [out, in], float32, that of the
        weights, which is overwritten."""
        import torch

        inputs = self.codes(latent).mul_(slope)
        to_change = torch.cat([part.sum(2) for part, _ in self._by_group(inputs)], 1)
        to_change.mul_(self.scale).mul_(change > FACTOR_MIN - 1)
        if not integers:
            return None, to_change
        # beyond the grid an integer cannot change
        inside = torch.clamp(latent, 0, 2**self.bits - 1, out=inputs) == latent
        return self._scaled(slope, change).mul_(inside), to_change


def rounded(
    weight: QuantizedWeight,
    floats: np.ndarray | None,
    dtype: str,
    device: str,
    *,
    integers: bool = True,
) -> Any:
    """A linear layer [out, in] whose scales are trained, and its ``integers``; at first it is ``weight``.

    ``floats`` [out, in], what it was quantised from, says on which side of its integer a latent begins.
    """
    import torch

    from shrinkc.checkpoints import torch_dtype

    grid, compute = _Grid(weight, device, whole=True), torch_dtype(dtype)
    order = None
    if weight.order is not None:
        order = torch.from_numpy(weight.order.astype("int64")).to(device)

    class Product(torch.autograd.Function):  # type: ignore[misc]
        """x · Wᵀ.  W is computed again in the backward pass: all W together would be as large as the model."""

        @staticmethod
        def forward(ctx: Any, x: Any, latent: Any, change: Any) -> Any:
            ctx.save_for_backward(x, latent, change)
            return x @ grid.weights(latent, change, compute).T

        @staticmethod
        def backward(ctx: Any, slope: Any) -> Any:
            x, latent, change = ctx.saved_tensors
            to_x = slope @ grid.weights(latent, change, compute)
            to_w = (slope.flatten(0, -2).T @ x.flatten(0, -2)).float()
            return to_x, *grid.gradients(latent, change, to_w, ctx.needs_input_grad[1])

    class Rounded(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.latent = torch.nn.Parameter(grid.begin(weight, floats, order), integers)
            self.change = torch.nn.Parameter(torch.zeros_like(grid.scale))

        def forward(self, x: Any) -> Any:
            x = x.to(compute)
            # the columns lie in stored order
            return Product.apply(x if order is None else x[..., order], self.latent, self.change)

    return Rounded()


def rounded_embedding(
    weight: QuantizedWeight, floats: np.ndarray | None, dtype: str, device: str
) -> Any:
    """An embedding of ids, and a head of hidden states, [vocab, hidden], whose integers and scales are trained.

    What is embedded and ``weight`` after it are one tensor, so that the gradients of both uses of a tied table
    are added up before they go through the rounding.
    """
    import torch

    from shrinkc.checkpoints import torch_dtype

    grid, compute = _Grid(weight, device, whole=False), torch_dtype(dtype)

    class EmbeddingFunction(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, latent: Any, change: Any) -> Any:
            ctx.save_for_backward(latent, change)
            return grid.weights(latent, change, compute)

        @staticmethod
        def backward(ctx: Any, slope: Any) -> Any:
            latent, change = ctx.saved_tensors
            return grid.gradients(latent, change, slope.to(torch.float32, copy=True))

    class RoundedEmbedding(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.latent = torch.nn.Parameter(grid.begin(weight, floats, None))
            self.change = torch.nn.Parameter(torch.zeros_like(grid.scale))
            self.made: Any = None

        def forward(self, x: Any) -> Any:
            if x.is_floating_point():
                return torch.nn.functional.linear(x.to(compute), self.weight)
            self.made = EmbeddingFunction.apply(self.latent, self.change)
            return torch.nn.functional.embedding(x, self.made)

        @property
        def weight(self) -> Any:
            """The table as a head takes it: what was embedded with, once for each time."""
            made, self.made = self.made, None
            return EmbeddingFunction.apply(self.latent, self.change) if made is None else made

    return RoundedEmbedding()
