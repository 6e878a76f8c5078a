"""The loss of a large vocabulary, without keeping the logits of all rows.

Logits of 49,152 tokens are most of the memory and much of the time of a small model's training.
The gradients of the hidden state and of the head can be had at once, a block of rows at a time.
"""

from __future__ import annotations

from typing import Any

# Rows whose matrix products are done at once: logits of them are kept in the head's dtype.
BLOCK = 256
# Rows whose probabilities a CPU computes at once, so that its cache holds them: 3 MB of 49,152 tokens.
ROWS = 16


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

    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    gradient = torch.empty_like(hidden)
    count = ROWS if hidden.device.type == "cpu" else BLOCK
    with torch.no_grad():
        for at in range(0, len(hidden), BLOCK):
            block = slice(at, at + BLOCK)
            logits = functional.linear(hidden[block], head)
            known = None if teacher is None else functional.linear(teacher[0][block], teacher[1])
            for first in range(0, len(logits), count):
                rows = slice(first, first + count)
                total += _slope(
                    logits[rows],
                    targets[block][rows],
                    None if known is None else known[rows],
                    weight,
                )
            torch.mm(logits, head, out=gradient[block])
            if to_head is not None:
                to_head += torch.mm(logits.T, hidden[block])
    return float(total), gradient


def _slope(logits: Any, targets: Any, known: Any, weight: float) -> Any:
    """The loss of some rows, a float64 tensor; ``logits`` become its gradient.  ``known``: the teacher's, or None."""
    import torch

    wanted = targets[:, None]
    logs = torch.log_softmax(logits, 1, dtype=torch.float32)
    loss = -(1 - weight) * logs.gather(1, wanted).sum(dtype=torch.float64)
    if known is None:
        slope = logs.exp_()
    else:
        soft_logs = torch.log_softmax(known, 1, dtype=torch.float32)
        soft = soft_logs.exp()
        divergences = torch.linalg.vecdot(soft, soft_logs.sub_(logs))
        loss += weight * divergences.sum(dtype=torch.float64)
        slope = logs.exp_().sub_(soft, alpha=weight)
    if weight != 1:
        slope.scatter_add_(1, wanted, slope.new_full(wanted.shape, weight - 1.0))
    logits.copy_(slope)
    return loss
