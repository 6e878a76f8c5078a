"""Lowering of a float or quantised model to the integer IR: fuse, choose fixed-point formats, quantise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from shrinkc.core.errors import QuantizeError
from shrinkc.engines import ON_CORES, Choices
from shrinkc.importer.model import FloatLayer, FloatModel, QuantizedWeight, Weight, dense
from shrinkc.ir.graph import Graph
from shrinkc.ir.key_order import order_keys
from shrinkc.ir.linear import CMAX, LowRank, QLinear
from shrinkc.ir.ops import (
    Attention,
    Embed,
    Linear,
    NormAdd,
    NormQuant,
    Op,
    Quant,
    RopeCache,
    Sample,
    SiluMul,
    Type,
    vector_type,
)
from shrinkc.ir.ops.attention import EXTRA_BITS_MAX, dot_max, weight_bits
from shrinkc.ir.rules import check
from shrinkc.ir.steps import Step
from shrinkc.model import (
    EMBEDDING,
    FIELDS,
    HEAD,
    SLOT_MODULES,
    LlamaConfig,
    family_of,
    layer_windows,
    local_rope_layers,
    module_name,
)
from shrinkc.numerics.fixed import INT32_MAX, QMAX
from shrinkc.numerics.vectors import rotation_bits, square_pre_shift
from shrinkc.quantize.bounds import (
    NORM_INPUT_FRAC_MAX,
    Gain,
    frac_for,
    norm_eps,
    norm_exponent_max,
    norm_kappa,
    norm_slack,
    norm_slack_of_shares,
    residual_frac,
    rope_tables,
    row_bound,
    stored_unit,
)
from shrinkc.quantize.expected import (
    GATE_ROOM,
    LOGIT_ROOM,
    ExpectedSizes,
    Squares,
    block_frac,
    heads_frac,
    largest_size,
    squares_of,
)
from shrinkc.quantize.formats import QuantOptions, check_sizes, grouped_inputs
from shrinkc.quantize.limits import WeightLimits, largest
from shrinkc.quantize.smoothing import smoothed
from shrinkc.quantize.sources import Source, source_of
from shrinkc.quantize.weights import Output, check_groups, convert_matrix, quantize_matrix
from shrinkc.storage import ADAPTER_BITS, KV_BITS

GATE_MAX = INT32_MAX - (1 << 15)  # rounding to the sigmoid's input adds up to half a unit
GATE_FRAC_MAX = 40  # keeps the shifts in range if all gate weights are 0 and the bound is 0


PASS = (
    Step(Embed, "embed", ("token",), False),
    Step(NormQuant, "attn_in.q", ("embed",), True),
    Step(Linear, "qkv", ("attn_in.q",), True, "qkv"),
    Step(RopeCache, "q8", ("qkv",), True),
    Step(Attention, "attn", ("q8",), True),
    Step(Quant, "o_in.q", ("attn",), True),
    Step(Linear, "mid", ("o_in.q", "embed"), True, "o"),
    Step(NormQuant, "mlp_in.q", ("mid",), True),
    Step(SiluMul, "h", ("mlp_in.q",), True, "gate_up"),
    Step(Quant, "down_in.q", ("h",), True),
    Step(Linear, "out", ("down_in.q", "mid"), True, "down"),
    Step(NormQuant, "final.q", ("out",), False),
    Step(Linear, "logits", ("final.q",), False, "head"),
    Step(Sample, "next", ("logits",), False),
)
"""The steps of the graph that ``lower`` makes, for planning before the graph exists."""


def pass_of(config: LlamaConfig) -> tuple[Step, ...]:
    """Return the steps of a model's graph: PASS, or with a norm after each block."""
    if not family_of(config).post_norms:
        return PASS
    out: list[Step] = []
    for step in PASS:
        if step.op is Linear and len(step.inputs) == 2:
            x, residual = step.inputs
            product = f"{step.name}_in"
            out.append(Step(Linear, product, (x,), True, step.matrix))
            out.append(Step(NormAdd, step.name, (product, residual), True))
        else:
            out.append(step)
    return tuple(out)


class _Lowering:
    def __init__(
        self, model: FloatModel, options: QuantOptions, context: int, choices: Choices
    ) -> None:
        self.model, self.options, self.config = model, options, model.config
        self.choices = choices
        c = self.config
        check_sizes(c, options.kv_bits)
        self.windows = layer_windows(c, context)
        self.local_rope = local_rope_layers(c)
        self.family = family_of(c)
        self.mlp_norm = next(n.name for n in self.family.norms if n.field == "mlp_norm")
        self.scale = math.sqrt(c.hidden_size) if self.family.embedding_scaled else 1.0
        cos, sin = rope_tables(c, context)
        check_groups(
            grouped_inputs(c, _quantised_modules(model), options),
            options.group_size,
            options.short_last_group,
        )
        self.graph = Graph(
            name=model.source,
            vocab=c.vocab_size,
            hidden=c.hidden_size,
            num_layers=c.num_layers,
            heads=c.num_heads,
            kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            ffn=c.intermediate_size,
            context=context,
            bos_id=-1 if c.bos_id is None else c.bos_id,
            eos_ids=c.eos_ids,
            rope_cos=cos,
            rope_sin=sin,
        )
        self.limits = WeightLimits()
        self.embedding = dense(model.embedding)
        self.res_frac = residual_frac(largest(self.embedding) * self.scale)
        k = c.hidden_size
        eps = norm_eps(c, self.res_frac, k)
        self.slack = max(norm_slack(k, eps), norm_slack_of_shares(k, eps))
        self.limits.check(self.res_frac, {_tensor(EMBEDDING, model.embedding): model.embedding})
        self.expected: ExpectedSizes | None = None
        if self.family.post_norms:
            self.expected = ExpectedSizes(self.embedding, self.scale)

    def emit(self, op: Op, type_: Type) -> str:
        self.graph.ops.append(op)
        self.graph.types[op.out] = type_
        return op.out

    def matrix(self, source: Source, out: Output, gain: np.ndarray | None = None) -> QLinear:
        """Quantise a matrix and its adapter, for inputs gain * x."""
        weight, form = source.weight, self.options.format_of(source.name)
        engine = self.choices.engine(source.name)

        def main(limit: int) -> QLinear:
            if isinstance(weight, QuantizedWeight):
                return convert_matrix(source.name, weight, out, limit=limit, engine=engine)
            return quantize_matrix(
                source.name, weight, out, bits=form.bits, group=form.group,
                asymmetric=form.asymmetric, limit=limit, engine=engine,
            )  # fmt: skip

        w = main(CMAX)
        if source.adapter is None:
            return w
        a, b = source.adapter.a, source.adapter.b
        a_out = replace(out, frac=frac_for(row_bound(a, gain)))
        if source.order is not None:
            a = a[:, source.order]

        def adapter_a(limit: int) -> QLinear:
            return quantize_matrix(
                f"{source.name}.a", a, a_out, bits=ADAPTER_BITS, limit=limit, shares_input=w
            )

        # both read the same activations, so both take the smaller activation range
        qa = adapter_a(w.x_bits or w.cmax)
        if (qa.x_bits, qa.cmax) != (w.x_bits, w.cmax):
            w = main(qa.x_bits or qa.cmax)
            qa = adapter_a(w.x_bits or w.cmax)
        b_out = Output(2.0**-qa.frac / QMAX, w.frac)
        w.low_rank = LowRank(qa, quantize_matrix(f"{source.name}.b", b, b_out, bits=ADAPTER_BITS))
        return w

    def check(
        self,
        index: int,
        slot: str,
        layer: FloatLayer,
        source: Source,
        frac: int,
        norm: tuple[str, np.ndarray] | None = None,
    ) -> None:
        """Record tensors that make the results of a matrix with ``frac`` fraction bits too large.

        ``norm`` is (name, weights) of the RMSNorm before the matrix."""
        names = {m: module_name(index, m) for m in SLOT_MODULES[slot]}
        gain = None if norm is None else norm[1]
        before = None if norm is None else {f"model.layers.{index}.{norm[0]}.weight": norm[1]}
        if source.adapter is not None:
            found = {n: layer.adapters[m] for m, n in names.items() if m in layer.adapters}
            a = {f"{n}.lora_A.weight": x.a for n, x in found.items()}
            b = {f"{n}.lora_B.weight (times alpha / r)": x.b for n, x in found.items()}
            fits = self.limits.check(frac_for(row_bound(source.adapter.a, gain)), a, before)
            if not fits or not self.limits.check(frac_for(source.adapter_bound(gain)), b, a):
                frac = frac_for(row_bound(dense(source.weight), gain))
        biases = {f"{n}.bias": layer.biases[m] for m, n in names.items() if m in layer.biases}
        if biases and not self.limits.check(frac_for(source.bias_bound()), biases):
            frac = frac_for(row_bound(dense(source.weight), gain))
        weights: dict[str, Weight] = {m: getattr(layer, FIELDS[m]) for m in names}
        self.limits.check(frac, {_tensor(names[m], w): w for m, w in weights.items()}, before)

    def norm(
        self, x: str, layer: int, tag: str, w: QLinear, gain: Gain, order: np.ndarray | None
    ) -> str:
        k = self.config.hidden_size
        op = NormQuant(
            f"{tag}.q", (x,), layer, norm_eps(self.config, self.res_frac, k), square_pre_shift(k),
            gain.q if order is None else gain.q[order], _perm(order),
        )  # fmt: skip
        return self.emit(op, vector_type(w))

    def quant(self, x: str, layer: int, tag: str, w: QLinear, order: np.ndarray | None) -> str:
        return self.emit(Quant(f"{tag}.q", (x,), layer, _perm(order)), vector_type(w))

    def linear(
        self,
        x: str,
        layer: int,
        tag: str,
        w: QLinear,
        residual: str | None = None,
        bias: np.ndarray | None = None,
    ) -> str:
        inputs = (x,) if residual is None else (x, residual)
        return self.emit(Linear(tag, inputs, layer, w, bias), Type("i32", w.n, frac=w.frac))

    def after_norm(self, source: Source, norm: np.ndarray) -> Squares | None:
        """Return the expected mean squares of a matrix's results after an RMSNorm of the residual stream.

        None for a family whose formats are chosen from upper bounds."""
        if self.expected is None:
            return None
        return squares_of(dense(source.weight), self.expected.normalised(norm))

    def input_format(self, gain: Gain, frac: int, expected: Squares | None) -> Output:
        """Return scale and format of a matrix that reads a NormQuant of the residual stream."""
        k = self.config.hidden_size
        exponent_max = None if expected is not None else norm_exponent_max(k, self.slack)
        return Output(norm_kappa(k) * gain.unit, frac, exponent_max)

    def norm_add(self, y: str, residual: str, layer: int, tag: str, weights: np.ndarray) -> str:
        """Add the RMSNorm of a block's result to the residual stream."""
        k, gain = self.config.hidden_size, Gain.of(weights)
        unit = math.sqrt(k) * gain.unit * 2.0**self.res_frac
        exponent = math.floor(math.log2(unit)) - 14
        eps = norm_eps(self.config, self.graph.types[y].frac, k)
        factor = min(round(unit * 2.0**-exponent), (1 << 15) - 1)
        op = NormAdd(tag, (y, residual), layer, eps, square_pre_shift(k), gain.q, factor, exponent)
        return self.emit(op, Type("i32", k, frac=self.res_frac))

    def layer(self, index: int, f: FloatLayer, x: str) -> str:
        c, name = self.config, f"layer{index}"
        f = smoothed(f, c)
        hd, h, kv = c.head_dim, c.num_heads, c.num_kv_heads
        nq = h * hd

        source, gain = source_of(f, index, "qkv"), Gain.of(f.attn_norm)
        frac = frac_for(self.slack * source.bound(gain=f.attn_norm))
        expected = self.after_norm(source, f.attn_norm)
        if expected is not None:
            frac = heads_frac(*np.split(expected, [nq + kv * hd]))
        if f.q_norm is not None:
            frac = min(frac, NORM_INPUT_FRAC_MAX)
        w = self.matrix(source, self.input_format(gain, frac, expected), f.attn_norm)
        qkv_frac = w.frac
        self.check(index, "qkv", f, source, qkv_frac, ("input_layernorm", f.attn_norm))
        q = self.norm(x, index, f"{name}.attn_in", w, gain, source.order)
        y = self.linear(q, index, f"{name}.qkv", w, bias=source.fixed_bias(qkv_frac))
        saturated = INT32_MAX * 2.0**-qkv_frac / self.slack
        bounds = [
            min(bound, saturated)
            for bound in source.stored_bounds(w, f.attn_norm, (nq, nq + kv * hd))
        ]
        kv_bits = self.options.kv_bits
        # a cache of 4 bits holds rotated values, and the result is rotated back
        rotated = 0 if kv_bits == KV_BITS[0] else rotation_bits(hd)
        growth = rotated - rotated // 2
        k_unit, v_unit = (
            stored_unit(self.slack * b * 2.0 ** (qkv_frac + bits), kv_bits)
            for b, bits in zip(bounds[1:], (0, growth), strict=True)
        )
        cache = RopeCache(f"{name}.q8", (y,), index, h, kv, hd, k_unit, v_unit)
        if kv_bits != KV_BITS[0]:
            cache.key_order = np.tile(np.arange(hd, dtype=np.uint8), (kv, 1))
        units = 2.0 ** (-2 * qkv_frac)  # of q times k, / QMAX**2
        if f.q_norm is not None and f.k_norm is not None:
            q_gain, k_gain = (Gain.of(n, np.int16) for n in (f.q_norm, f.k_norm))
            cache.q_gain, cache.k_gain = q_gain.q, k_gain.q
            cache.eps = norm_eps(c, qkv_frac, hd)
            cache.pre_shift = square_pre_shift(hd)
            largest_k = norm_slack(hd, cache.eps) * 2.0 ** (31 + cache.pre_shift)
            cache.k_unit = stored_unit(largest_k, kv_bits)
            units = (norm_kappa(hd) * QMAX) ** 2 * q_gain.unit * k_gain.unit
        if self.local_rope:
            cache.table = int(self.local_rope[index])
        heads = self.emit(cache, Type("heads8", nq, frac=qkv_frac))
        # values of low-bit weights leave bits of an int32 unused: the result gets them as fraction bits
        largest_v = math.ceil(self.slack * bounds[2] * 2.0**qkv_frac) + 1
        unused = 30 - largest_v.bit_length()
        extra = min(EXTRA_BITS_MAX, unused - rotated if rotated else max(0, unused))
        mean_frac = qkv_frac + extra + growth
        dot_shift = max(0, dot_max(hd, kv_bits).bit_length() - 15)
        units *= 2.0 ** (dot_shift + cache.k_unit)
        kappa = math.log2(math.e) * units / (math.sqrt(c.query_scalar or hd) * QMAX**2)
        exponent = math.floor(math.log2(kappa)) - 14
        y = self.emit(
            Attention(
                f"{name}.attn", (heads,), index, h, kv, hd,
                scale_mantissa=round(kappa * 2.0**-exponent),
                scale_exponent=exponent,
                dot_shift=dot_shift,
                weight_bits=weight_bits(self.graph.context, kv_bits),
                v_unit=v_unit,
                extra_bits=extra,
                window=(self.windows[index] or None) if self.windows else None,
            ),
            Type("i32", nq, frac=mean_frac),
        )  # fmt: skip
        source = source_of(f, index, "o")
        self.check(index, "o", f, source, source.plain_frac())
        frac = self.res_frac
        if expected is not None:
            mixed = np.repeat(expected[nq + kv * hd :].reshape(kv, hd), h // kv, axis=0).reshape(-1)
            frac = block_frac(dense(source.weight), mixed)
        w = self.matrix(source, Output(2.0**-mean_frac * 128 / (QMAX * QMAX), frac))
        q = self.quant(y, index, f"{name}.o_in", w, source.order)
        if f.attn_post_norm is None:
            x = self.linear(q, index, f"{name}.mid", w, x, source.fixed_bias(self.res_frac))
        else:
            y = self.linear(q, index, f"{name}.mid_in", w)
            x = self.norm_add(y, x, index, f"{name}.mid", f.attn_post_norm)
            if self.expected is not None:
                self.expected.add(f.attn_post_norm)

        ffn = c.intermediate_size
        down, source, gain = (
            source_of(f, index, "down"),
            source_of(f, index, "gate_up"),
            Gain.of(f.mlp_norm),
        )
        expected = self.after_norm(source, f.mlp_norm)
        if down.order is not None:
            # reorder the rows of gate and up instead of the inputs of down, at no cost
            source = source.with_rows(np.concatenate([down.order, ffn + down.order]))
        # use all 31 bits, because the products keep only their high words
        largest_gate, gate_max = self.slack * source.bound(gain=f.mlp_norm), GATE_MAX
        if expected is not None:
            largest_gate, gate_max = GATE_ROOM * largest_size(expected), INT32_MAX
        gu_frac = min(frac_for(largest_gate) + 1, GATE_FRAC_MAX)

        def gate_up(frac: int) -> tuple[QLinear, list[float]]:
            """Return the quantised matrix, and the largest |gate| and |up| that it can compute."""
            made = self.matrix(source, self.input_format(gain, frac, expected), f.mlp_norm)
            bounds = source.stored_bounds(made, f.mlp_norm, (ffn,))
            sizes = [self.slack * bound * 2.0**made.frac + 1 for bound in bounds]
            return made, sizes if expected is None else [min(size, INT32_MAX) for size in sizes]

        w, bounds = gate_up(gu_frac)
        while max(bounds) > gate_max:  # rounding has increased the norm of a row
            w, bounds = gate_up(w.frac - 1)
        gu_frac = w.frac
        self.check(index, "gate_up", f, source, gu_frac, (self.mlp_norm, f.mlp_norm))
        q = self.norm(x, index, f"{name}.mlp_in", w, gain, source.order)
        y = self.linear(q, index, f"{name}.gate_up", w)
        # the device saturates neither gate * sigmoid, whose high word is at most half the gate, nor up
        shift, up_shift = (
            min(15, math.floor(math.log2(INT32_MAX / size))) for size in (bounds[0] / 2, bounds[1])
        )
        h_frac = 2 * gu_frac - 33 + shift + up_shift
        y = self.emit(
            SiluMul(
                f"{name}.h",
                (y,),
                index,
                gu_frac - 16,
                shift,
                up_shift,
                1 if self.family.gelu else None,
            ),
            Type("i32", ffn, frac=h_frac),
        )
        self.check(index, "down", f, down, down.plain_frac())
        frac = self.res_frac
        if expected is not None:
            gate, up = np.split(expected, 2)
            frac = block_frac(dense(down.weight), gate * up / 4)
        w = self.matrix(down, Output(2.0**-h_frac / QMAX, frac))
        q = self.quant(y, index, f"{name}.down_in", w, None)
        if f.mlp_post_norm is None:
            return self.linear(q, index, f"{name}.out", w, x)
        y = self.linear(q, index, f"{name}.out_in", w)
        if self.expected is not None:
            self.expected.add(f.mlp_post_norm)
        return self.norm_add(y, x, index, f"{name}.out", f.mlp_post_norm)

    def embedding_or_head(self, name: str, weight: Weight, out: Output) -> QLinear:
        form, engine = self.options.format_of(name), self.choices.engine(name)
        if isinstance(weight, QuantizedWeight):
            return convert_matrix(name, weight, out, engine=engine)
        return quantize_matrix(name, weight, out, bits=form.bits, group=form.group, engine=engine)

    def run(self, progress: Callable[[int, int], None] | None) -> Graph:
        c, m = self.config, self.model
        k = c.hidden_size
        gain = Gain.of(m.final_norm)
        weight = m.embedding if m.head is None else m.head
        order = weight.order if isinstance(weight, QuantizedWeight) else None
        if isinstance(m.embedding, QuantizedWeight) and m.embedding.order is not None:
            raise QuantizeError(
                "the embedding's columns are stored in another order than the model's (act-order).",
                "quantise the embedding without act-order.",
            )
        bound = row_bound(self.embedding if m.head is None else dense(m.head), m.final_norm)
        expected: Squares | None = None
        if self.expected is not None:
            expected = squares_of(dense(weight), self.expected.normalised(m.final_norm))
            bound = LOGIT_ROOM * largest_size(expected)
        head = self.embedding_or_head(
            "head", weight, self.input_format(gain, min(20, frac_for(bound)), expected)
        )
        self.limits.check(
            head.frac, {_tensor(EMBEDDING if m.head is None else HEAD, weight): weight},
            {"model.norm.weight": m.final_norm},
        )  # fmt: skip
        embed = head
        if m.head is not None:
            embed = self.embedding_or_head("embedding", m.embedding, Output(1.0, self.res_frac))
        unit = float(embed.row_scale[0]) / float(embed.r[0]) * 2.0**self.res_frac * self.scale
        shift = math.floor(math.log2((2.0**31 - 1) / unit)) - 32
        x = self.emit(
            Embed("embed", ("token",), -1, embed, round(unit * 2.0 ** (32 + shift)), shift),
            Type("i32", k, frac=self.res_frac),
        )
        for i, f in enumerate(m.layers):
            x = self.layer(i, f, x)
            if progress is not None:
                progress(i + 1, c.num_layers)
        q = self.norm(x, -1, "final", head, gain, order)
        y = self.emit(
            Linear("logits", (q,), -1, head), Type("logits", c.vocab_size, frac=head.frac)
        )
        self.emit(Sample("next", (y,), -1, head.frac - 16), Type("token", 1))
        self.limits.refuse(self.graph.name)
        if self.options.kv_bits != KV_BITS[0]:
            order_keys(self.graph)
        check(self.graph)
        return self.graph


def _tensor(module: str, weight: Weight) -> str:
    """Return a module's name in messages: the tensor, or the module if its weight is several tensors."""
    return module if isinstance(weight, QuantizedWeight) else f"{module}.weight"


def _perm(order: np.ndarray | None) -> np.ndarray | None:
    return None if order is None else order.astype(np.uint16)


def _quantised_modules(model: FloatModel) -> set[str]:
    weights: dict[str, Weight | None] = {EMBEDDING: model.embedding, HEAD: model.head}
    for i, layer in enumerate(model.layers):
        weights |= {module_name(i, m): getattr(layer, field) for m, field in FIELDS.items()}
    return {name for name, w in weights.items() if isinstance(w, QuantizedWeight)}


def lower(
    model: FloatModel,
    options: QuantOptions,
    context: int,
    progress: Callable[[int, int], None] | None = None,
    choices: Choices = ON_CORES,
) -> Graph:
    """Quantise ``model`` for a context of ``context`` tokens and check the graph with every IR rule.

    ``choices`` says which engine runs each matrix; the engine decides the stored groups and padding.
    ``progress`` is called with (layers done, layers).  Raises QuantizeError for impossible widths or groups,
    and BadWeights that names every tensor with too large values.
    """
    return _Lowering(model, options, context, choices).run(progress)
