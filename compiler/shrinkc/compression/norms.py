"""Training of RMSNorm weights relative to their initial values.

The weights of one model differ by a factor of 100,000: SmolLM2 suppresses a channel of huge activations by a weight
of 1e-5 where others are 0.3.  Adam moves every parameter by about the learning rate, so the weight itself must not be
the parameter.  A weight of 0 stays 0.
"""

from __future__ import annotations

from typing import Any

from shrinkc.model import Family

_CHANGE = "change"


def train_norms(model: Any, family: Family) -> None:
    """Replace every RMSNorm of the model, or of a layer, by a trainable one with the same weights."""
    for name, module in list(model.named_modules()):
        if name.endswith("norm"):
            model.set_submodule(name, _trained(module, family.norm_offset))


def norm_weights(model: Any) -> dict[str, Any]:
    """Return name -> current weights as a checkpoint stores them, float32, of the norms that :func:`train_norms`
    made."""
    return {
        name: m.current_weight().detach() - m.offset
        for name, m in model.named_modules()
        if hasattr(m, "current_weight")
    }


def is_change(name: str, found: dict[str, Any]) -> bool:
    """Return whether ``name`` is the parameter of one of the norms ``found`` by :func:`norm_weights`."""
    module, _, kind = name.rpartition(".")
    return kind == _CHANGE and module in found


def _trained(norm: Any, offset: float) -> Any:
    """Return a trainable norm; ``offset`` is added to the weights that ``norm`` has."""
    import torch

    epsilon: float = getattr(norm, "variance_epsilon", None) or norm.eps

    class Norm(torch.autograd.Function):  # type: ignore[misc]
        """``x / rms(x) * weight`` [..., channels] in the dtype of x, computed in float32.  Only x is kept for the
        backward pass, to save memory."""

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any) -> Any:
            ctx.save_for_backward(x, weight)
            wide = x.float()
            by = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))
            return (wide * by).mul_(weight).to(x.dtype)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            x, weight = ctx.saved_tensors
            wide, grad = x.float(), grad.float()
            by = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))
            normed = wide * by
            to_weight = (grad * normed).flatten(0, -2).sum(0)
            grad = grad * weight
            along = (grad * normed).mean(-1, keepdim=True)
            return grad.sub_(normed.mul_(along)).mul_(by).to(x.dtype), to_weight

    class TrainedNorm(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.offset = offset
            begin = norm.weight.detach().float() + offset
            self.register_buffer("begin", begin, persistent=False)
            self.change = torch.nn.Parameter(torch.zeros_like(begin))

        def current_weight(self) -> Any:
            """Return the weights, float32 [channels]."""
            return self.begin * (1 + self.change)

        def forward(self, x: Any) -> Any:
            return Norm.apply(x, self.current_weight())

    return TrainedNorm()
