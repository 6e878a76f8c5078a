"""Measurement of the increase in loss for each change: a removed layer, a narrower layer, or fewer bits.

Every change is measured separately on the same few windows of text: the increase in loss, and the divergence
KL(original ‖ changed) of the predictions, both in nats per token.  The divergence is the expected increase on text that
the model would generate itself.  It needs far fewer tokens to stand out from noise, so a budget uses it.  Standard
errors come from the spread between windows.  Changes are fitted (GPTQ, WANDA scores, the refit of the rest) on other
windows.  Only the layers from the changed one on are computed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from shrinkc.compression.blocks import INPUT_OF, batches, block, embed, positions, second_moments
from shrinkc.compression.calibration import encode_texts
from shrinkc.compression.embedding import embedding_weightings, quantize_embedding
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.gptq import Weighting, damped, quantize_matrix, work_of_matrix
from shrinkc.compression.stages import gptq
from shrinkc.compression.stages.context import Work
from shrinkc.compression.stages.width import (
    channel_scores,
    group_scores,
    highest,
    input_norms,
    refit,
)
from shrinkc.compression.texts import Text
from shrinkc.core.errors import BadData
from shrinkc.core.fingerprint import FILE, Fingerprint
from shrinkc.core.journal import Journal
from shrinkc.core.parsing import as_number, check_fields, parse_json
from shrinkc.core.progress import Reporter, Update
from shrinkc.model import ATTENTION, MLP, NAMES

if TYPE_CHECKING:
    from torch import Tensor

MODULES = tuple(NAMES.values())
WIDTHS = tuple(sorted(gptq.WIDTHS, reverse=True))
NARROW = (0.125, 0.25, 0.5)
GROUPS = (64, 32, 16, 8, 4, 2, 1)
FORMAT = "shrinkc-sensitivity"
VERSION = 6  # of the measurements' definition
FITTED = 16  # windows that changes are fitted to
DAMP = 0.05  # GPTQ's damping, GPTQModel's default
QUANTISER = "GPTQ, asymmetric (shrinkc.compression.gptq)"


@dataclass(frozen=True)
class LayerSensitivity:
    """Costs of changing one layer, in nats per token.

    ``removed``: without the layer.  ``ffn``: share of removed FFN channels -> cost;
    ``kv_group``: without the least important KV head and its query heads, None if there is only
    one; both as the stage width does it.  ``bits``: all matrices at that width;
    ``modules``: matrix -> width -> cost.
    """

    removed: float
    ffn: dict[float, float]
    kv_group: float | None
    bits: dict[int, float]
    modules: dict[str, dict[int, float]]


@dataclass(frozen=True)
class Costs:
    """Costs of all changes of a model; ``embedding``: width -> cost."""

    layers: list[LayerSensitivity]
    embedding: dict[int, float]


@dataclass(frozen=True)
class Sensitivity:
    """``baseline``: loss in nats per token, over ``tokens`` predictions.  ``group_size``: weights that
    share a scale.  ``loss``: increase in loss, ``kl``: divergence.  ``…_error``: their standard errors, None if
    there is one window."""

    baseline: float
    tokens: int
    group_size: int
    dtype: str
    samples: int
    length: int
    loss: Costs
    kl: Costs
    loss_error: Costs | None
    kl_error: Costs | None

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "unit": "nats per token",
            "quantiser": QUANTISER,
            **asdict(self),
        }


def read_sensitivity(file: Path, layers: int) -> Sensitivity:
    """Read :meth:`Sensitivity.to_json` of a model of ``layers`` layers.  Raises BadData."""
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise BadData(
                f"{file} is not a result of 'shrinkc sensitivity'.", "give its sensitivity.json."
            )
        if content.get("version") != VERSION:
            raise BadData(
                f"{file} is of version {content.get('version')}, this shrinkc reads version {VERSION}.",
                "measure again.",
            )
        costs = ("loss", "kl", "loss_error", "kl_error")
        own = {f.name: content[f.name] for f in fields(Sensitivity) if f.name not in costs}
        given: dict[str, Any] = {name: content[name] and _costs_of(content[name]) for name in costs}
        found = Sensitivity(**own, **given)
        check_fields(found)
    except OSError as error:
        raise BadData(f"{file} cannot be read: {error.strerror}.", "check its path.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadData(f"{file} is damaged: {error}.", "measure again.") from error
    if len(found.kl.layers) != layers:
        raise BadData(
            f"{file} was measured on a model of {len(found.kl.layers)} layers, this one has {layers}.",
            "measure this model.",
        )
    return found


def _costs_of(content: Any) -> Costs:
    """Return the costs that are JSON.  Raises ValueError, KeyError, TypeError or AttributeError."""
    layers = [
        LayerSensitivity(
            as_number(layer["removed"]),
            {float(share): as_number(cost) for share, cost in layer["ffn"].items()},
            None if layer["kv_group"] is None else as_number(layer["kv_group"]),
            _by_bits(layer["bits"]),
            {module: _by_bits(layer["modules"][module]) for module in MODULES},
        )
        for layer in content["layers"]
    ]
    return Costs(layers, _by_bits(content["embedding"]))


def _by_bits(content: Any) -> dict[int, float]:
    return {bits: as_number(content[str(bits)]) for bits in WIDTHS}


def measure(
    model: Any, windows: Tensor, fit: Tensor, state: Path, reporter: Reporter
) -> Sensitivity:
    """Measure the float ``model`` on ``windows`` [samples, length] of token ids.

    ``fit`` [any, length]: the windows that changes are fitted to.  ``state``: a file with
    every finished probe, so that an interrupted run can continue.  Raises what
    :class:`~shrinkc.core.journal.Journal` does, such as RunChanged for another model, text or version.
    """
    import torch

    with closing(Journal(state, _made_from(model, windows, fit))) as journal:
        run = _Run(model, windows, fit, journal)
        with torch.no_grad(), reporter.stage("sensitivity") as update:
            run.everything(update)
        return run.result()


def work(facts: ModelFacts, windows: int, length: int) -> Work:
    """Return the work of :func:`measure` with ``windows`` of ``length`` tokens."""
    c = facts.config
    shapes = gptq.module_shapes(c).values()
    head = c.vocab_size * c.hidden_size
    probes = len(WIDTHS) * (len(MODULES) + 1) + len(NARROW) + 2  # of a layer
    # a probe of a layer computes the layers after it, half of them in the mean, and the LM head
    share = (gptq.weights_of(c) / 2 + head) / facts.parameters
    tokens = windows * length * (probes * c.num_layers * share + len(WIDTHS) + 1)
    tokens += 4 * FITTED * length  # second moments, with and without weights of tokens
    numbers = calls = 0.0
    for bits in WIDTHS:
        for n, k in shapes:
            one = work_of_matrix(n, k, bits)
            tokens += one.tokens * n * k / facts.parameters
            numbers, calls = numbers + one.numbers, calls + one.calls
        for _ in range(1 if c.tie_embeddings else 2):
            one = work_of_matrix(c.vocab_size, c.hidden_size, bits, points=True)
            tokens += one.tokens * head / facts.parameters
            numbers, calls = numbers + one.numbers, calls + one.calls
    return Work(tokens, numbers, calls)


def split_text(
    texts: list[Text], tokenizer: Any, samples: int, length: int
) -> tuple[Tensor, Tensor]:
    """Return ``samples`` windows to measure, spread evenly over the texts, and other windows to fit to.

    Raises BadData when the texts are too short for one more window than ``samples``.
    """
    import torch

    ids = encode_texts(texts, tokenizer)
    available = len(ids) // length
    if available <= samples:
        raise BadData(
            f"the text has {len(ids)} tokens; {samples} windows of {length} to measure and "
            f"another one need {(samples + 1) * length}.",
            "give more text, or fewer or shorter windows.",
        )
    every = torch.tensor(ids[: available * length]).view(available, length)
    measured = [i * available // samples for i in range(samples)]
    others = [i for i in range(available) if i not in measured]
    count = min(FITTED, len(others))
    return every[measured], every[[others[i * len(others) // count] for i in range(count)]]


def _made_from(model: Any, windows: Tensor, fit: Tensor) -> Fingerprint:
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().cpu().view(torch.uint8).numpy())
    return {
        "version": VERSION,
        "samples": windows.shape[0],
        "length": windows.shape[1],
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        f"{FILE}model": digest.hexdigest(),
        f"{FILE}measured text": hashlib.sha256(windows.cpu().numpy().tobytes()).hexdigest(),
        f"{FILE}fitted text": hashlib.sha256(fit.cpu().numpy().tobytes()).hexdigest(),
    }


class _Run:
    def __init__(self, model: Any, windows: Tensor, fit: Tensor, journal: Journal) -> None:
        config = model.config
        sizes = (
            config.hidden_size,
            config.intermediate_size,
            model.model.layers[0].self_attn.o_proj.in_features,
        )
        self.group_size = next(g for g in GROUPS if all(size % g == 0 for size in sizes))
        self.model, self.windows, self.fit, self.journal = model, windows, fit, journal
        # probe -> mean loss and mean divergence of each window
        self.found = {r["probe"]: (r["loss"], r["kl"]) for r in journal.records}
        self.layers = list(model.model.layers)
        self.parts = batches(windows)
        self.tables = positions(model, windows.shape[1])
        self.tokens = windows.shape[0] * (windows.shape[1] - 1)

    def everything(self, update: Update) -> None:
        hidden = [embed(self.model, ids) for ids in self.parts]
        fitted = [embed(self.model, ids) for ids in batches(self.fit)]
        self.original = list(self._predictions(hidden, 0))
        count = len(self.layers)
        # a probe costs the layers after it; the LM head costs about as much as ten layers
        total = sum(count - i + 10 for i in range(count)) + count
        done = 0
        for i, layer in enumerate(self.layers):
            new = f"{i} removed" not in self.found  # the last probe of a layer
            if new:
                update(done, total)
            plain, _ = self._second_moments(layer, fitted, weighted=False)  # as in the stage width
            moments, fitted = self._second_moments(layer, fitted)
            for name, change in _changes(layer, moments, plain, self.group_size):
                self._probe(f"{i} {name}", hidden, i, change)
                if new:
                    update(done, total)
            self._probe(f"{i} removed", hidden, i + 1)
            hidden = [block(layer, h, self.tables) for h in hidden]
            done += count - i + 10
            if new:
                update(done, total)
        self._probe("baseline", hidden, count)
        self._embeddings(fitted)
        update(total, total)

    def _predictions(self, hidden: list[Tensor], first: int) -> Iterator[Tensor]:
        """Yield log p of every next token [predictions, vocab] per window, from the states before layer ``first``."""
        import torch

        for h in hidden:
            for layer in self.layers[first:]:
                h = block(layer, h, self.tables)
            for window in self.model.model.norm(h):
                logits = self.model.lm_head(window[:-1]).float()
                yield torch.log_softmax(logits, -1)

    def _second_moments(
        self, layer: Any, hidden: list[Tensor], *, weighted: bool = True
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return matrix -> second moment of its inputs, float64 [k, k], and the states after the layer."""
        names = tuple(dict.fromkeys(INPUT_OF.values()))
        moments, after = second_moments(layer, hidden, self.tables, names, weighted=weighted)
        return {name: moments[source] for name, source in INPUT_OF.items()}, after

    def _probe(
        self, name: str, hidden: list[Tensor], first: int, change: _Change | None = None
    ) -> None:
        """Measure loss and divergence with the weights of ``change``; ``hidden``: states before layer ``first``."""
        if name in self.found:
            return
        loss, kl = [], []
        with _replaced({} if change is None else change()):
            found = self._predictions(hidden, first)
            for ids, original, changed in zip(self.windows, self.original, found, strict=True):
                loss.append(-float(changed.gather(1, ids[1:, None]).mean()))
                kl.append(float((original.exp() * (original - changed)).sum(-1).mean()))
        self.found[name] = loss, kl
        self.journal.add({"probe": name, "loss": loss, "kl": kl})

    def _embeddings(self, final: list[Tensor]) -> None:
        """Measure embedding and LM head at every width; ``final``: final hidden states."""
        import torch

        x = torch.cat([self.model.model.norm(h).flatten(0, 1) for h in final]).float().cpu()
        given = embedding_weightings(self.model, x.T @ x / len(x))
        for bits in WIDTHS:
            if f"embedding {bits}" in self.found:
                continue
            small = {
                one: quantize_embedding(one, weighting, bits=bits, group_size=self.group_size)
                for one, weighting in given
            }
            change = {one: torch.from_numpy(q.dequantized()) for one, q in small.items()}
            with _replaced(change):
                start = [embed(self.model, ids) for ids in self.parts]
                self._probe(f"embedding {bits}", start, 0)

    def result(self) -> Sensitivity:
        count, base = len(self.layers), self.found["baseline"][0]
        samples, length = self.windows.shape
        loss = {
            name: [a - b for a, b in zip(losses, base, strict=True)]
            for name, (losses, _) in self.found.items()
        }
        kl = {name: divergences for name, (_, divergences) in self.found.items()}
        return Sensitivity(
            baseline=mean(base),
            tokens=self.tokens,
            group_size=self.group_size,
            dtype=str(self.model.dtype).removeprefix("torch."),
            samples=samples,
            length=length,
            loss=_costs(loss, count, mean),
            kl=_costs(kl, count, mean),
            loss_error=_costs(loss, count, _standard_error) if samples > 1 else None,
            kl_error=_costs(kl, count, _standard_error) if samples > 1 else None,
        )


def _standard_error(windows: Sequence[float]) -> float:
    return stdev(windows) / math.sqrt(len(windows))


def _costs(
    windows: Mapping[str, Sequence[float]], count: int, figure: Callable[[Sequence[float]], float]
) -> Costs:
    """Return ``figure`` of the values of all windows, for each change of ``count`` layers."""
    of = {name: figure(values) for name, values in windows.items()}
    layers = [
        LayerSensitivity(
            of[f"{i} removed"],
            {share: of[f"{i} ffn {share}"] for share in NARROW},
            of.get(f"{i} kv_group"),
            {bits: of[f"{i} all {bits}"] for bits in WIDTHS},
            {m: {bits: of[f"{i} {m} {bits}"] for bits in WIDTHS} for m in MODULES},
        )
        for i in range(count)
    ]
    return Costs(layers, {bits: of[f"embedding {bits}"] for bits in WIDTHS})


_Change = Callable[[], dict[Any, Any]]  # parameter -> its other values


@contextmanager
def _replaced(weights: Mapping[Any, Any]) -> Iterator[None]:
    """Give the parameters other values within the context."""
    kept = {parameter: parameter.data for parameter in weights}
    try:
        for parameter, value in weights.items():
            parameter.data = value.to(parameter.device, parameter.dtype)
        yield
    finally:
        for parameter, value in kept.items():
            parameter.data = value


def _quantized(weight: Any, weighting: Weighting, bits: int, group_size: int) -> Tensor:
    import torch

    small = quantize_matrix(
        weight.detach().float().cpu(), weighting, bits=bits, group_size=group_size
    )
    return torch.from_numpy(small.dequantized())


def _changes(
    layer: Any, moments: dict[str, Tensor], plain: dict[str, Tensor], group_size: int
) -> Iterator[tuple[str, _Change]]:
    """Yield name and weights of every probe of a layer except its removal.  ``moments`` are for rounding, ``plain``
    (without token weights) for pruning and the refit."""
    weights = {name: layer.get_submodule(name).weight for name in MODULES}

    @cache
    def weighting(name: str) -> Weighting:
        return Weighting.of(damped(moments[name].cpu(), DAMP))

    @cache
    def values(name: str, bits: int) -> Tensor:
        return _quantized(weights[name], weighting(INPUT_OF[name]), bits, group_size)

    def at(bits: int, *names: str) -> dict[Any, Any]:
        return {weights[name]: values(name, bits) for name in names}

    for bits in WIDTHS:
        for name in MODULES:
            yield f"{name} {bits}", partial(at, bits, name)
        yield f"all {bits}", partial(at, bits, *MODULES)

    q, k, v, o, _, _, down = (weights[name] for name in MODULES)
    norms = input_norms(plain)
    scores = channel_scores(down.float(), norms[MLP[-1]])
    for share in NARROW:
        kept = highest(scores, len(scores) - round(share * len(scores)))
        yield f"ffn {share}", partial(_narrowed, down, plain[MLP[-1]], kept)
    groups = layer.self_attn.config.num_key_value_heads
    if groups > 1:
        scores = group_scores(
            q.float(), k.float(), v.float(), o.float(),
            norms[ATTENTION[0]], norms[ATTENTION[-1]], groups,
        )  # fmt: skip
        columns = highest(
            scores.repeat_interleave(o.shape[1] // groups), o.shape[1] - o.shape[1] // groups
        )
        yield "kv_group", partial(_narrowed, o, plain[ATTENTION[-1]], columns)


def _narrowed(weight: Any, moment: Tensor, kept: Tensor) -> dict[Any, Any]:
    """Return ``weight`` with the inputs ``kept`` refitted and all others zero."""
    import torch

    changed = torch.zeros_like(weight)
    changed[:, kept] = refit(weight.float(), moment, kept).to(weight.dtype)
    return {weight: changed}
