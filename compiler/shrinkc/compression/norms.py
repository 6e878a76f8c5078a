"""RMS norms whose gains are trained, each relative to what it was.

Gains of one model differ by a factor of 100,000: SmolLM2's norms silence a channel of huge activations by a gain of
1e-5 among others of 0.3.  Adam moves a parameter by about the learning rate, whatever its size, so the gain itself
must not be one.  A gain of 0 stays 0.
"""

from __future__ import annotations

from typing import Any

_CHANGE = "change"


def train_norms(model: Any) -> None:
    """Replaces all RMS norms of the model by such whose gains are trained; at first these are what they were."""
    for name, module in list(model.named_modules()):
        if name.endswith("norm"):
            model.set_submodule(name, _trained(module))


def gains(model: Any) -> dict[str, Any]:
    """Name of a norm -> its gains now, float32, of those that :func:`train_norms` made."""
    return {name: m.gain().detach() for name, m in model.named_modules() if hasattr(m, "gain")}


def is_change(name: str, found: dict[str, Any]) -> bool:
    """Whether the parameter ``name`` is what is trained of one of :func:`gains`."""
    module, _, kind = name.rpartition(".")
    return kind == _CHANGE and module in found


def _trained(norm: Any) -> Any:
    import torch

    epsilon: float = norm.variance_epsilon

    class Norm(torch.autograd.Function):  # type: ignore[misc]
        """``x / rms(x) * gain`` [..., channels] of x in its dtype, computed in float32.  Of arrays of x's size
        only x is kept for the way back."""

        @staticmethod
        def forward(ctx: Any, x: Any, gain: Any) -> Any:
            ctx.save_for_backward(x, gain)
            wide = x.float()
            by = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))
            return (wide * by).mul_(gain).to(x.dtype)

        @staticmethod
        def backward(ctx: Any, slope: Any) -> Any:
            x, gain = ctx.saved_tensors
            wide, slope = x.float(), slope.float()
            by = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))
            normed = wide * by
            to_gain = (slope * normed).flatten(0, -2).sum(0)
            slope = slope * gain
            along = (slope * normed).mean(-1, keepdim=True)
            return slope.sub_(normed.mul_(along)).mul_(by).to(x.dtype), to_gain

    class TrainedNorm(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            begin = norm.weight.detach().float()
            self.register_buffer("begin", begin, persistent=False)
            self.change = torch.nn.Parameter(torch.zeros_like(begin))

        def gain(self) -> Any:
            """float32 [channels]"""
            return self.begin * (1 + self.change)

        def forward(self, x: Any) -> Any:
            return Norm.apply(x, self.gain())

    return TrainedNorm()
