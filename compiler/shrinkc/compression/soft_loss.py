"""The loss of a large vocabulary, without keeping its logits.

Logits of 49,152 tokens are most of the memory and much of the time of a small model's training.
The gradients of the hidden state and of the head can be had at once, a few rows at a time.
"""

from __future__ import annotations

from typing import Any

ROWS = 128


def loss_and_gradient(
    hidden: Any,
    head: Any,
    targets: Any,
    teacher: tuple[Any, Any] | None,
    weight: float,
    to_head: Any = None,
) -> tuple[float, Any]:
    """Sum over rows of (1 − w) · CE(target) + w · KL(teacher ‖ student) in nats, and d sum / d hidden.

    ``hidden`` [rows, d] after the final norm, ``head`` [vocab, d], ``targets`` int64 [rows],
    ``teacher`` its hidden states and head, or None (then w is 0).  The gradient of the logits is
    softmax − (1 − w) · onehot − w · softmax(teacher).  Logits are float32, the matrix products are
    of the head's dtype.  d sum / d head is added to ``to_head`` [vocab, d], float32, where that is given.
    """
    import torch
    from torch.nn import functional

    total = 0.0
    with torch.no_grad():
        gradient = torch.empty_like(hidden)
        for at in range(0, len(hidden), ROWS):
            rows = slice(at, at + ROWS)
            wanted = targets[rows, None]
            logits = functional.linear(hidden[rows], head).float()
            logits.sub_(torch.logsumexp(logits, 1, keepdim=True))
            cross = -float(logits.gather(1, wanted).sum(dtype=torch.float64))
            if teacher is None:
                total += cross
                slope = logits.exp_()
            else:
                known = functional.linear(teacher[0][rows], teacher[1]).float()
                known.sub_(torch.logsumexp(known, 1, keepdim=True))
                soft = known.exp()
                divergence = float(known.sub_(logits).mul_(soft).sum(dtype=torch.float64))
                total += (1 - weight) * cross + weight * divergence
                slope = logits.exp_().sub_(soft, alpha=weight)
            slope.scatter_add_(1, wanted, slope.new_full(wanted.shape, weight - 1.0))
            slope = slope.to(head.dtype)
            gradient[rows] = torch.mm(slope, head)
            if to_head is not None:
                to_head += torch.mm(slope.T, hidden[rows])
    return total, gradient
