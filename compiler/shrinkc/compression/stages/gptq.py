"""Stage ``gptq``: quantises the matrices of the layers with GPTQ, and embedding and LM head with our own GPTQ.

GPTQModel or AutoRound do the layers in a child process (``gptq_worker``), whose output is kept as a log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import numpy as np

from shrinkc.checkpoints import need
from shrinkc.compression.checks import Between, Checked, MultipleOf, NotEmpty, OneOf
from shrinkc.compression.child import run_child
from shrinkc.compression.embedding import embedding_zero
from shrinkc.compression.facts import FLOAT_BYTES, vector_values
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.core.errors import BadRecipe
from shrinkc.importer import load_config
from shrinkc.importer.model import Zero
from shrinkc.model import EMBEDDING, HEAD, LlamaConfig, matrix_shapes

if TYPE_CHECKING:
    from shrinkc.compression.calibration import Calibration
    from shrinkc.compression.facts import ModelFacts
    from shrinkc.importer import Formats

# the widths that GPTQModel supports
WIDTHS = (2, 3, 4, 8)
EMBEDDING_WIDTHS = (*WIDTHS, 16)
GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)  # group sizes that GPTQModel's kernels support
GROUP_MIN = 8  # least group size of embedding and LM head
WORKER = "shrinkc.compression.stages.gptq_worker"
LAYER = "model.layers.{}."
_BATCH = 8  # windows of a step of AutoRound
# GPTQModel's work: ranges that it tries; passes over the weights and calls of torch per range and per column.  Also
# passes of our own GPTQ of embedding and LM head.  A power costs as much as 15 plain passes.  Four passes over groups
# and blocks, which fit caches, cost as much as one pass over a matrix.
_RANGES, _RANGE_PASSES, _RANGE_CALLS = 80, 6, 26
_COLUMN_PASSES, _COLUMN_CALLS = 64, 30
_EMBEDDING_PASSES = 200

Width = Annotated[int, OneOf(*WIDTHS)]
Group = Annotated[int, OneOf(*GROUPS)]
Groups = Group | Annotated[tuple[Group, ...], NotEmpty()]
EmbeddingGroupSize = Annotated[int, Between(GROUP_MIN, 1024), MultipleOf(8)]


class Override(TypedDict, total=False):
    """Settings of one matrix that replace those for all."""

    bits: Width
    group_size: Group
    sym: bool
    desc_act: bool


class EmbeddingFormat(TypedDict, total=False):
    """Settings of embedding and LM head; 16 bits: not quantised."""

    bits: Annotated[int, OneOf(*EMBEDDING_WIDTHS)]
    group_size: EmbeddingGroupSize | Annotated[tuple[EmbeddingGroupSize, ...], NotEmpty()]


@dataclass(frozen=True)
class Settings(Checked):
    """Settings of the quantisation of matrices, embedding and LM head."""

    bits: Width = 4
    """Bits per weight."""
    group_size: Groups = 128
    """Inputs that share a scale; -1 for one scale per output channel.  Of a list, the first that
    divides the inputs of all matrices is taken."""
    sym: bool = True
    """Symmetric, without zero points."""
    desc_act: bool = False
    """Quantise the most active inputs first, and store their order."""
    act_group_aware: bool | None = None
    """Order whole groups by activity, which stores nothing.  Default: where it is possible, which
    needs ``gptaq = 0``."""
    damp: Annotated[float, Between(1e-9, 0.999)] = 0.05
    """Share of the Hessian's mean diagonal that is added to it."""
    mse: Annotated[float, Between(0, 8)] = 2.4
    """MSE clipping: exponent of the rounding error that is minimised for each group; 0 covers the
    whole range."""
    gptaq: Annotated[float, Between(0, 1)] = 0.25
    """How much of the error of earlier matrices is corrected too (alpha of GPTAQ, Li et al. 2025);
    0 is plain GPTQ."""
    method: Annotated[str, OneOf("gptq", "autoround")] = "gptq"
    """``autoround`` trains the rounding of one layer at a time; ``damp``, ``mse``, ``gptaq`` and
    input orders then do not apply."""
    iterations: Annotated[int, Between(1, 10_000)] = 200
    """With ``autoround``: steps for each layer, of 8 windows."""
    modules: Mapping[str, Annotated[Override, NotEmpty()]] = field(default_factory=dict)
    """Other settings for some modules, see below."""
    embeddings: EmbeddingFormat = field(default_factory=EmbeddingFormat)
    """Bits and group size of embedding and LM head, see below."""

    def __post_init__(self) -> None:
        super().__post_init__()
        orders = [self.desc_act, *(o.get("desc_act") for o in self.modules.values())]
        if self.method == "autoround" and (self.act_group_aware or any(orders)):
            raise BadRecipe(
                "desc_act and act_group_aware are GPTQ's; method = 'autoround' has no order of inputs."
            )
        if self.act_group_aware and (self.desc_act or -1 in as_tuple(self.group_size)):
            raise BadRecipe(
                "act_group_aware = true needs groups and desc_act = false: it is another "
                "way to the same end."
            )
        if self.act_group_aware and self.gptaq:
            raise BadRecipe("act_group_aware = true needs gptaq = 0: GPTAQ has no order of groups.")
        for pattern in self.modules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise BadRecipe(
                    f'modules."{pattern}" is no regular expression: {error}.'
                ) from error

    @property
    def embedding_bits(self) -> int:
        """Bits of embedding and LM head; 16: not quantised."""
        return int(self.embeddings.get("bits", 16))

    @property
    def embedding_group_sizes(self) -> tuple[int, ...]:
        """Group sizes of embedding and LM head, the first choice first."""
        return as_tuple(self.embeddings.get("group_size", 64))

    @property
    def embedding_group_size(self) -> int:
        """The first choice; the only one once the settings are resolved."""
        return self.embedding_group_sizes[0]

    def of(self, module: str) -> dict[str, Any]:
        """Return ``bits, group_size, sym, desc_act`` of the module with that full name."""
        own = {key: getattr(self, key) for key in Override.__annotations__}
        return {**own, **self.override(module)}

    def override(self, module: str) -> Override:
        """Return the override for the module with that full name; {} if there is none."""
        matching = (o for p, o in self.modules.items() if re.fullmatch(_regex(p), module))
        return next(matching, Override())

    @property
    def group_aware(self) -> bool:
        """``act_group_aware``, given or implied."""
        plain = self.method == "gptq" and not self.gptaq
        possible = plain and not self.desc_act and self.group_size != -1
        return possible if self.act_group_aware is None else self.act_group_aware

    def dynamic(self) -> dict[str, dict[str, Any]]:
        """Return the overrides in GPTQModel's form, whose patterns match from the start of a name."""
        found = {}
        for pattern, override in self.modules.items():
            rule: dict[str, Any] = {**override}
            one = replace(self, modules={}, act_group_aware=None, **override)
            if self.group_aware and not one.group_aware:
                rule["act_group_aware"] = False
            found[f"+:^{_regex(pattern)}$"] = rule
        return found


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _regex(pattern: str) -> str:
    return rf"(?:.*\.)?(?:{pattern})"


def module_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Map the full name of every matrix of the layers to ``(outputs, inputs)``."""
    shapes = matrix_shapes(config).items()
    return {name: shape for name, shape in shapes if name not in (EMBEDDING, HEAD)}


def resolve(settings: Settings, facts: ModelFacts) -> tuple[Settings, list[str]]:
    """Resolve each list of group sizes to the first that divides; return notes for those that are not first.

    If none divides, the last one stays, and :func:`preflight` refuses it.
    """
    shapes = module_shapes(facts.config)
    inputs = {k for name, (_, k) in shapes.items() if "group_size" not in settings.override(name)}
    embeddings, notes = settings.embeddings.copy(), list[str]()
    if "group_size" in embeddings:
        embeddings["group_size"], notes = first_dividing(
            "embeddings.group_size", settings.embedding_group_sizes, {facts.config.hidden_size}
        )
    group_size, more = first_dividing("group_size", as_tuple(settings.group_size), inputs)
    return replace(settings, group_size=group_size, embeddings=embeddings), notes + more


def first_dividing(key: str, groups: tuple[int, ...], sizes: set[int]) -> tuple[int, list[str]]:
    """Return the first of ``groups`` that divides all ``sizes``, else the last, and a note if it is not the first."""
    fitting = (g for g in groups if all(g == -1 or k % g == 0 for k in sizes))
    chosen = next(fitting, groups[-1])
    if chosen == groups[0]:
        return chosen, []
    return chosen, [
        f"{key} = {chosen}, of {', '.join(map(str, groups))} the first that divides "
        f"{' and '.join(map(str, sorted(sizes)))} inputs"
    ]


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Return problems: group sizes that do not divide, partly filled words, a quantised model."""
    settings, _ = resolve(settings, facts)
    problems = []
    if settings.method == "autoround":
        need("auto_round")
    if facts.quantized:
        problems.append(
            "the model is quantised already; start from its float version, or leave the stage out"
        )
    shapes = module_shapes(facts.config)
    wrong: dict[str, list[int]] = {}  # problem -> layers, for one message per problem
    for name, (n, k) in shapes.items():
        layer, _, module = name.removeprefix("model.layers.").partition(".")
        for text in _shape_problems(module, n, k, settings.of(name)):
            wrong.setdefault(text, []).append(int(layer))
    for text, layers in wrong.items():
        where = "every layer" if len(layers) == facts.config.num_layers else f"layers {layers}"
        problems.append(f"{text} (in {where})")
    for pattern in settings.modules:
        if not any(re.fullmatch(_regex(pattern), name) for name in shapes):
            problems.append(
                f'modules."{pattern}" matches no matrix; they are called, for instance, '
                f"{next(iter(shapes))}"
            )
    hidden = facts.config.hidden_size
    if settings.embedding_bits < 16 and hidden % settings.embedding_group_size:
        fitting = [g for g in GROUPS if g > 0 and hidden % g == 0]
        problems.append(
            f"embeddings.group_size = {settings.embedding_group_size} does not divide the {hidden} inputs "
            f"of embedding and head; these do: {', '.join(map(str, fitting))}"
        )
    return problems


def _shape_problems(module: str, n: int, k: int, s: Mapping[str, Any]) -> Iterator[str]:
    if s["group_size"] != -1 and k % s["group_size"]:
        fitting = [g for g in GROUPS if g == -1 or k % g == 0]
        yield (
            f"group_size = {s['group_size']} does not divide the {k} inputs of {module}; these do: "
            f"{', '.join(map(str, fitting))}"
        )
    for what, size in (("inputs", k), ("outputs", n)):
        # qweight packs along the inputs, qzeros along the outputs, both in words of 32 bits
        if size * s["bits"] % 32:
            yield f"the {size} {what} of {module} at {s['bits']} bit do not fill 32-bit words"


def predict(settings: Settings, facts: ModelFacts) -> ModelFacts:
    settings, _ = resolve(settings, facts)
    c = facts.config
    packed = FLOAT_BYTES * vector_values(c)
    bits = {}
    for name, (n, k) in module_shapes(c).items():
        s = settings.of(name)
        packed += matrix_bytes(n, k, **s)
        bits[name] = s["bits"]
    for name in _embeddings(c):
        packed += embedding_bytes(
            c.vocab_size, c.hidden_size, settings.embedding_bits, settings.embedding_group_size
        )
        if settings.embedding_bits < 16:
            bits[name] = settings.embedding_bits
    on_disk = packed + _other_bytes(facts)
    return replace(facts, quantized=True, bytes_on_disk=on_disk, packed_bytes=packed, bits=bits)


def _other_bytes(facts: ModelFacts) -> int:
    """Return the bytes of a float model's directory that are not weights (of 32 or 16 bits)."""
    sizes = (facts.bytes_on_disk - size * facts.parameters for size in (4, 2))
    return next((left for left in sizes if left >= 0), 0)


def kept(settings: Settings, facts: ModelFacts) -> int:
    """Return the bytes of the float32 model with quantised embeddings and of GPTQModel's output, with tokenizers."""
    c = facts.config
    embeddings = len(_embeddings(c)) * c.vocab_size * c.hidden_size
    start = 4 * facts.parameters * (settings.embedding_bits < 16)
    # GPTQModel always saves zero points and the inputs' order (32 bits each)
    extra = sum(2 * n * k // 16 + 4 * k for n, k in module_shapes(c).values())
    matrices = sum(matrix_bytes(n, k, **settings.of(m)) for m, (n, k) in module_shapes(c).items())
    return start + matrices + extra + 4 * embeddings + 2 * _other_bytes(facts)


def _embeddings(config: Any) -> tuple[str, ...]:
    return ("model.embed_tokens",) if config.tie_embeddings else ("model.embed_tokens", "lm_head")


def formats(settings: Settings, config: Any) -> Formats:
    """Return the formats of the checkpoint's matrices, like ``Checkpoint.formats``; ``settings`` are resolved."""
    found: Formats = {}
    for name, (_, k) in module_shapes(config).items():
        s = settings.of(name)
        found[name] = (
            s["bits"],
            k if s["group_size"] == -1 else s["group_size"],
            Zero.MIDDLE if s["sym"] else Zero.POINT,
        )
    if settings.embedding_bits < 16:
        bits = settings.embedding_bits
        one = (bits, settings.embedding_group_size, embedding_zero(bits))
        found |= dict.fromkeys(_embeddings(config), one)
    return found


def matrix_bytes(n: int, k: int, *, bits: int, group_size: int, sym: bool, desc_act: bool) -> int:
    """Return the stored bytes of a matrix [n, k]: integers, 16-bit scales, zero points, the inputs' order."""
    scales = n * (1 if group_size == -1 else -(-k // group_size))
    zeros = 0 if sym else -(-scales * bits // 8)
    return -(-n * k * bits // 8) + 2 * scales + zeros + (2 * k if desc_act else 0)


def embedding_bytes(vocab: int, hidden: int, bits: int, group_size: int) -> int:
    """Return the stored bytes of an embedding or LM head; below 16 bits with a scale and a zero point per group."""
    scales = 0 if bits == 16 else vocab * -(-hidden // group_size)
    zero = bits if embedding_zero(bits) is Zero.POINT else 16
    return vocab * hidden * bits // 8 + scales * 2 + -(-scales * zero // 8)


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work.  Every layer runs twice, and Hessians take as long.  GPTAQ also runs the float layer, and
    multiplies the difference of the inputs.

    Columns are rounded one after the other, with a few calls each, and the others of their block are corrected.
    Before that, ranges are searched twice: of the whole matrix and of each group.
    """
    tokens = calibration.samples * calibration.length
    if settings.method == "autoround":
        # forward and backward, and each block's inputs and outputs once more
        batch = min(_BATCH, calibration.samples) * settings.iterations
        return Work(calibration.length * (3.0 * batch + 2.0 * calibration.samples))
    numbers = calls = products = 0.0
    for name, (n, k) in module_shapes(facts.config).items():
        one = work_of_matrix(settings, n, k, settings.of(name)["group_size"])
        numbers, calls, products = (
            numbers + one.numbers, calls + one.calls, products + one.tokens * n * k
        )  # fmt: skip
    if settings.embedding_bits < 16:
        c = facts.config
        numbers += len(_embeddings(c)) * c.vocab_size * c.hidden_size * _EMBEDDING_PASSES
    passes = 5.5 if settings.gptaq else 4.0
    return Work(passes * tokens + products / weights_of(facts.config), numbers, calls)


def work_of_matrix(settings: Settings, n: int, k: int, group_size: int) -> Work:
    """Return the work of rounding a matrix [n, k]; its tokens are through this matrix only."""
    # ranges are searched for the whole matrix, and for each group
    searches = 1 + (1 if group_size == -1 else k / group_size)
    ranges = _RANGES * bool(settings.mse)
    return Work(
        (5.0 if settings.gptaq else 2.0) * k,
        n * k * (_COLUMN_PASSES + 2 * _RANGE_PASSES * ranges),
        _COLUMN_CALLS * k + _RANGE_CALLS * ranges * searches,
    )


def weights_of(config: LlamaConfig) -> int:
    """Return the number of weights of all matrices of the layers."""
    return sum(n * k for n, k in module_shapes(config).values())


def kept_layers(settings: Any, facts: ModelFacts) -> int:
    """Return the bytes of all layers in float32: the state of stages that process layer after layer."""
    return 4 * weights_of(facts.config)


def mean_inputs(config: LlamaConfig) -> float:
    """Return the mean number of inputs over all weights: n · k · k operations per matrix take as long as that many
    tokens."""
    return sum(n * k * k for n, k in module_shapes(config).values()) / weights_of(config)


def memory(settings: Settings, facts: ModelFacts, calibration: Calibration) -> int:
    """Return the bytes that GPTAQ stores: the inputs of a layer's matrices in the float model, as float32."""
    if settings.method != "gptq" or not settings.gptaq:
        return 0
    c = facts.config
    read = 2 * c.hidden_size + c.num_heads * c.head_dim + c.intermediate_size
    return 4 * calibration.samples * calibration.length * read


def run(settings: Settings, step: StepContext) -> StepReport:
    """Write a GPTQModel checkpoint to ``step.out``.  Raises StageFailed with the log's end."""
    windows, calibration = saved_windows(step)
    request = {
        **asdict(settings),
        "batch": _BATCH,
        "scratch": str(step.scratch),
        "calibration": calibration,
        "act_group_aware": settings.group_aware,
        "dynamic": settings.dynamic(),
        "differing": _differing(settings, load_config(step.source)),
        "embeddings": {
            "bits": settings.embedding_bits,
            "group_size": settings.embedding_group_size,
        },
        # on a CPU GPTQ needs float32; AutoRound can multiply float32 weights in bfloat16 ("mixed")
        "dtype": "float32" if step.device == "cpu" else step.dtype,
        "mixed": step.dtype == "bfloat16",
    }
    log = run_worker(step, "gptq", "gptq", request)
    return _report(settings, request, windows, log)


def saved_windows(step: StepContext, samples: int | None = None) -> tuple[dict[str, int], str]:
    """Write the first ``samples`` calibration windows, or all, to a file; return their sizes and the file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(step.source, local_files_only=True)
    windows = step.calibration.windows(tokenizer)[:samples]
    file = step.scratch / "calibration.npy"
    np.save(file, windows.numpy())
    return {"samples": windows.shape[0], "length": windows.shape[1]}, str(file)


def run_worker(step: StepContext, task: str, title: str, request: Mapping[str, Any]) -> str:
    """Run a stage's task in ``gptq_worker`` and return the name of its log.  Raises StageFailed with the log's end."""
    log = step.log_dir / f"{title.partition(':')[0]}.log"
    common = {
        "task": task, "source": str(step.source), "out": str(step.out), "seed": step.seed,
        "threads": step.threads, "device": step.device,
    }  # fmt: skip
    with step.reporter.stage(title) as update:
        run_child(WORKER, {**common, **request}, log=log, threads=step.threads, update=update)
    return log.name


def _differing(settings: Settings, config: LlamaConfig) -> dict[str, dict[str, Any]]:
    """Map the full name of each module with an override to its ``bits, group_size, sym, desc_act``."""
    usual = replace(settings, modules={}).of("")
    found = {name: settings.of(name) for name in module_shapes(config)}
    return {name: own for name, own in found.items() if own != usual}


def _report(
    settings: Settings, request: dict[str, Any], windows: dict[str, int], log: str
) -> StepReport:
    ours = ("desc_act", "damp", "mse", "gptaq", "act_group_aware")
    own = ours if settings.method == "gptq" else ("iterations",)
    parameters = {key: request[key] for key in ("method", "bits", "group_size", "sym", *own)}
    parameters |= {
        "modules": {name: dict(override) for name, override in settings.modules.items()},
        "embeddings": request["embeddings"],
        "calibration": windows,
        "log": log,
    }
    return StepReport(parameters)


GPTQ = StageKind(
    name="gptq",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=16,
    predict=predict,
    quantises=True,
    preflight=preflight,
    resolve=resolve,
    child_seconds=10.0,
    memory=memory,
    kept=kept,
)
