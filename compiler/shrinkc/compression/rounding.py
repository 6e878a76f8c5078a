"""Matrices and embeddings with quantised weights that are trained with a straight-through estimator."""

from __future__ import annotations

from typing import Any

import numpy as np

from shrinkc.importer.model import QuantizedWeight

# least factor of a scale, so that it stays positive
FACTOR_MIN = 0.05
# Largest distance of an initial latent from its integer.  GPTQ's error correction can choose an integer that is not
# the nearest one; the limit (below 0.5) makes training start from the quantised model all the same.
LATENT_OFFSET_MAX = 0.45
ROUNDING_PASSES = 18  # over the latents, of a forward and a backward pass


def nearest(latent: Any, bits: int) -> Any:
    """Round latents to the integers of the grid, in float32."""
    return latent.round().clamp_(0, 2**bits - 1)


class _Grid:
    """Quantisation grid of ``weight``: computes weights from latents and scale changes, and the gradients of both.

    ``integer_zeros``: zero points are integers, as in GPTQ's matrices.
    """

    def __init__(self, weight: QuantizedWeight, device: str, integer_zeros: bool) -> None:
        import torch

        self.bits, self.group, self.inputs = weight.bits, weight.group, weight.q.shape[1]
        self.scale = torch.from_numpy(weight.scale).to(device)
        zero = torch.from_numpy(-weight.offset / weight.scale).to(device)
        self.zero = zero.round() if integer_zeros else zero

    def per_weight(self, per_group: Any) -> Any:
        """Repeat values of groups for each weight: [out, groups] -> [out, in]."""
        return per_group.repeat_interleave(self.group, 1)[:, : self.inputs]

    def initial_latents(
        self, weight: QuantizedWeight, floats: np.ndarray | None, order: Any
    ) -> Any:
        """Return the initial latents of ``weight``; the weights before quantisation, ``floats`` [out, in], determine
        on which side of its integer a latent starts."""
        import torch

        latent = torch.from_numpy(weight.q).to(self.scale.device).float()
        if floats is not None:
            given = torch.from_numpy(np.ascontiguousarray(floats)).float().to(self.scale.device)
            given = given if order is None else given[:, order]
            exact = given / self.per_weight(self.scale) + self.per_weight(self.zero)
            latent += (exact - latent).clamp_(-LATENT_OFFSET_MAX, LATENT_OFFSET_MAX)
        return latent

    def _groups(self, x: Any) -> list[tuple[Any, Any]]:
        """Return views of ``x`` [out, in], each with its slice of the groups: all whole groups [out, groups, group],
        and a shorter last group if there is one."""
        full = self.inputs // self.group
        parts = [(x[:, : full * self.group].unflatten(1, (full, self.group)), slice(full))]
        if full * self.group < self.inputs:
            parts.append((x[:, None, full * self.group :], slice(full, None)))
        return parts

    def codes(self, latent: Any) -> Any:
        """Return integers minus zero points, [out, in]."""
        codes = nearest(latent.detach(), self.bits)
        for part, groups in self._groups(codes):
            part.sub_(self.zero[:, groups, None])
        return codes

    def weights(self, latent: Any, change: Any, dtype: Any) -> Any:
        """Return the dequantised weights [out, in] in ``dtype``."""
        return self._scaled(self.codes(latent), change).to(dtype)

    def _scaled(self, x: Any, change: Any) -> Any:
        """Multiply ``x`` [out, in] by the scales of its groups, in place."""
        scale = self.scale * (1 + change).clamp_min(FACTOR_MIN)
        for part, groups in self._groups(x):
            part.mul_(scale[:, groups, None])
        return x

    def gradients(
        self, latent: Any, change: Any, grad: Any, integers: bool = True
    ) -> tuple[Any, Any]:
        """Return the gradients of ``latent`` (None without ``integers``) and ``change``.

        ``grad``: gradient of the weights, float32 [out, in]; it is overwritten."""
        import torch

        inputs = self.codes(latent).mul_(grad)
        to_change = torch.cat([part.sum(2) for part, _ in self._groups(inputs)], 1)
        to_change.mul_(self.scale).mul_(change > FACTOR_MIN - 1)
        if not integers:
            return None, to_change
        # outside of the grid a latent has no gradient, since its integer cannot change
        inside = torch.clamp(latent, 0, 2**self.bits - 1, out=inputs) == latent
        return self._scaled(grad, change).mul_(inside), to_change


def rounded(
    weight: QuantizedWeight,
    floats: np.ndarray | None,
    dtype: str,
    device: str,
    *,
    integers: bool = True,
    bias: Any = None,
) -> Any:
    """Return a linear layer with trainable scales and ``integers``, which starts as ``weight`` [out, in].

    ``floats`` [out, in]: the weights before quantisation, see :meth:`_Grid.initial_latents`.  ``bias`` [out] is not
    trained.
    """
    import torch

    from shrinkc.checkpoints import torch_dtype

    grid, compute = _Grid(weight, device, integer_zeros=True), torch_dtype(dtype)
    order = None
    if weight.order is not None:
        order = torch.from_numpy(weight.order.astype("int64")).to(device)

    class Product(torch.autograd.Function):  # type: ignore[misc]
        """x · Wᵀ.  The backward pass computes W again: storing all W would take as much memory as the model."""

        @staticmethod
        def forward(ctx: Any, x: Any, latent: Any, change: Any) -> Any:
            ctx.save_for_backward(x, latent, change)
            return x @ grid.weights(latent, change, compute).T

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x, latent, change = ctx.saved_tensors
            to_x = grad @ grid.weights(latent, change, compute)
            to_w = (grad.flatten(0, -2).T @ x.flatten(0, -2)).float()
            return to_x, *grid.gradients(latent, change, to_w, ctx.needs_input_grad[1])

    class Rounded(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.latent = torch.nn.Parameter(grid.initial_latents(weight, floats, order), integers)
            self.change = torch.nn.Parameter(torch.zeros_like(grid.scale))
            given = None if bias is None else bias.detach().to(compute)
            self.register_buffer("bias", given, persistent=False)

        def forward(self, x: Any) -> Any:
            x = x.to(compute)
            # the columns are in stored order
            out = Product.apply(x if order is None else x[..., order], self.latent, self.change)
            return out if self.bias is None else out + self.bias

    return Rounded()


def rounded_embedding(
    weight: QuantizedWeight,
    floats: np.ndarray | None,
    dtype: str,
    device: str,
    factor: float = 1.0,
) -> Any:
    """Return a module with trainable integers and scales: an embedding for ids, an LM head for hidden states.

    The embedding is multiplied by ``factor``.

    The forward pass and the next read of ``weight`` use one tensor.  So the gradients of both uses of a tied matrix
    are added before the backward pass through the rounding.
    """
    import torch

    from shrinkc.checkpoints import torch_dtype

    grid, compute = _Grid(weight, device, integer_zeros=False), torch_dtype(dtype)

    class EmbeddingFunction(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, latent: Any, change: Any) -> Any:
            ctx.save_for_backward(latent, change)
            return grid.weights(latent, change, compute)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            latent, change = ctx.saved_tensors
            return grid.gradients(latent, change, grad.to(torch.float32, copy=True))

    class RoundedEmbedding(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.latent = torch.nn.Parameter(grid.initial_latents(weight, floats, None))
            self.change = torch.nn.Parameter(torch.zeros_like(grid.scale))
            self.embedded: Any = None

        def forward(self, x: Any) -> Any:
            if x.is_floating_point():
                return torch.nn.functional.linear(x.to(compute), self.weight)
            self.embedded = EmbeddingFunction.apply(self.latent, self.change)
            found = torch.nn.functional.embedding(x, self.embedded)
            return found if factor == 1 else found * torch.tensor(factor, dtype=found.dtype)

        @property
        def weight(self) -> Any:
            """Weights [vocab, hidden] for an LM head: the tensor of the preceding embedding, or a new one."""
            weight, self.embedded = self.embedded, None
            return EmbeddingFunction.apply(self.latent, self.change) if weight is None else weight

    return RoundedEmbedding()
