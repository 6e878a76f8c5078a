"""Cross-entropy and KL divergence for a large vocabulary, without storing the logits of all rows.

Logits of 49,152 tokens are most of the memory and much of the time of a small model's training.
Loss and gradients of hidden states and LM head are computed together, for one block of rows at a time.
"""

from __future__ import annotations

from typing import Any

# Rows per matrix product; their logits are stored in the LM head's dtype.
BLOCK = 256
# Rows of probabilities that a CPU computes together: 3 MB for 49,152 tokens, which fit its cache.
ROWS = 16


def loss_and_gradient(
    hidden: Any,
    head: Any,
    targets: Any,
    teacher: tuple[Any, Any] | None,
    weight: float,
    head_gradient: Any = None,
) -> tuple[float, Any]:
    """Return the sum over rows of (1 − w) · CE(target) + w · KL(teacher ‖ student) in nats, and d sum / d hidden.

    ``hidden`` [rows, d]: after the final norm.  ``head`` [vocab, d].  ``targets``: int64 [rows].  ``teacher``: its
    hidden states and LM head, or None (then w is 0).  The gradient of the logits is softmax − (1 − w) · onehot −
    w · softmax(teacher).  Losses are computed in float32, matrix products in the LM head's dtype.
    If ``head_gradient`` [vocab, d] float32 is given, d sum / d head is added to it.
    """
    import torch
    from torch.nn import functional

    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    gradient = torch.empty_like(hidden)
    count = ROWS if hidden.device.type == "cpu" else BLOCK
    with torch.no_grad():
        for at in range(0, len(hidden), BLOCK):
            block = slice(at, at + BLOCK)
            logits = functional.linear(hidden[block], head)
            teacher_logits = (
                None if teacher is None else functional.linear(teacher[0][block], teacher[1])
            )
            for first in range(0, len(logits), count):
                rows = slice(first, first + count)
                total += _loss_of_rows(
                    logits[rows],
                    targets[block][rows],
                    None if teacher_logits is None else teacher_logits[rows],
                    weight,
                )
            torch.mm(logits, head, out=gradient[block])
            if head_gradient is not None:
                head_gradient += torch.mm(logits.T, hidden[block])
    return float(total), gradient


def _loss_of_rows(logits: Any, targets: Any, teacher_logits: Any, weight: float) -> Any:
    """Return the loss of some rows as a float64 tensor, and replace ``logits`` by its gradient."""
    import torch

    wanted = targets[:, None]
    logs = torch.log_softmax(logits, 1, dtype=torch.float32)
    loss = -(1 - weight) * logs.gather(1, wanted).sum(dtype=torch.float64)
    if teacher_logits is None:
        gradient = logs.exp_()
    else:
        soft_logs = torch.log_softmax(teacher_logits, 1, dtype=torch.float32)
        soft = soft_logs.exp()
        divergences = torch.linalg.vecdot(soft, soft_logs.sub_(logs))
        loss += weight * divergences.sum(dtype=torch.float64)
        gradient = logs.exp_().sub_(soft, alpha=weight)
    if weight != 1:
        gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, weight - 1.0))
    logits.copy_(gradient)
    return loss
