"""What ``import shrinkc`` offers: the functions that the command line calls too.

Every function raises the errors of :mod:`shrinkc.errors`; their messages name options as the
command line writes them (``--bits`` for ``bits``).  Nothing prints; ``reporter`` hears what is going
on.  Programs (make, compilers, simulators) are found by ``env``, by default the environment of this
process: this file is, beside the command line, the only one that reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shrinkc.core.progress import Reporter, Silent

if TYPE_CHECKING:
    from shrinkc.checkpoints import Savable
    from shrinkc.compression.recipe import RecipeSource
    from shrinkc.compression.run import CompressionResult
    from shrinkc.driver.chatting import Conversation
    from shrinkc.driver.compiling import Compiled
    from shrinkc.driver.plan_request import PlanRequest
    from shrinkc.driver.planned import Planned, Shortfall
    from shrinkc.driver.run_result import RunResult
    from shrinkc.importer import Checkpoint
    from shrinkc.report.page import Reported

AnyPath = str | os.PathLike[str]

__all__ = ["chat", "compile", "compress", "evaluate", "open", "plan", "run", "write_report"]


def open(model: AnyPath, adapter: AnyPath | None = None) -> Checkpoint:  # noqa: A001
    """Open a model: its configuration, tokenizer and headers are read, and checked, once.

    ``model`` is a Hugging Face or GPTQModel directory, a ``.gguf`` file, or an id of the hub with its
    owner (of which weights are fetched when it is compiled); to be planned, a
    ``config.json`` alone will do, or a directory without weights (then ``notes`` say what is
    missing, and ``whole`` is False).  ``adapter`` is a PEFT LoRA directory that is kept as a side
    path; it takes the place of one that comes with a GPTQModel directory.

    The result has ``config`` (sizes), ``formats`` (how matrices are stored), ``tokenizer``,
    ``ranks``, ``repeats`` and ``load()``, which reads the weights; it can be given to :func:`plan`
    and :func:`compile` any number of times.

    Raises ModelNotFound, BadConfig, UnsupportedModel, BadTokenizer, BadWeights or ShapeMismatch.
    """
    from shrinkc.driver.opening import open_model

    return open_model(Path(model), None if adapter is None else Path(adapter))


def plan(
    model: AnyPath | Checkpoint,
    *,
    target: str = "siracusa",
    bits: int | None = None,
    group: int | None = None,
    short_last_group: bool = False,
    asymmetric: bool = False,
    head_bits: int | None = None,
    context: int | None = None,
    l1: int | None = None,
    adapter: AnyPath | None = None,
    engines: str | Sequence[str] | None = None,
    code: str | None = None,
    position: int | None = None,
    clock: float | None = None,
) -> Planned | Shortfall:
    """Say whether a model fits, and where everything would lie, without reading its weights.

    ``model`` is what :func:`open` takes or gave.  ``target``: a name of :data:`shrinkc.targets.TARGETS`.
    ``bits`` per weight of the layers, ``head_bits`` of embedding and head (8, 4, 3 or 2; None: 8, or
    the checkpoint's).  ``group``: weights of a row that share a scale (None: a whole row);
    ``short_last_group`` lets the last one of a row be shorter; ``asymmetric``: zero points beside
    the scales.  ``context``: positions (tokens) that prompt and answer may take together (None: the
    model's, at most 256).  ``l1``: bytes of L1 to use (None: all).  ``adapter``: of a path that is
    not open yet.  ``engines``: those of the target that may run matrices, as names or a text with commas
    between them (None: all); the cores always may.  ``code``: the memory that the decode path's code lies in
    (siracusa: wmem, which None is, or l2).  ``position`` of the decode step whose speed is stated, after as
    many tokens (None: 64, or the last), ``clock`` in MHz (None: the simulator's default).

    The result's ``fits`` tells the two kinds apart.  A :class:`Planned` has ``plan`` (used and
    available bytes per level, buffers, tiles), ``weight_bytes``, ``copy_bytes``, ``context``, ``speed`` (cycles of a
    decode step and of the prefill; None for a target that was not calibrated) and ``command``, the
    command line that compiles it.  A :class:`Shortfall` has ``lacks``, per level ``need``, ``have``
    and ``largest`` in bytes, ``alternatives`` that were checked to fit, and ``error``, the
    DoesNotFit that :func:`compile` raises.

    Raises what :func:`open` raises, UsageError for an option's value, QuantizeError for widths or
    groups that this model cannot have.
    """
    from shrinkc.driver.planning import prepare

    return prepare(
        _request(
            model, target=target, bits=bits, group=group, short_last_group=short_last_group,
            asymmetric=asymmetric, head_bits=head_bits, context=context, l1=l1, adapter=adapter,
            engines=engines, code=code, position=position, clock=clock,
        )
    )  # fmt: skip


def compile(  # noqa: A001
    model: AnyPath | Checkpoint,
    output: AnyPath,
    *,
    target: str = "siracusa",
    bits: int | None = None,
    group: int | None = None,
    short_last_group: bool = False,
    asymmetric: bool = False,
    head_bits: int | None = None,
    context: int | None = None,
    l1: int | None = None,
    adapter: AnyPath | None = None,
    engines: str | Sequence[str] | None = None,
    code: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Compiled:
    """Compile a model to the new directory ``output``: a C program with its weights.

    Options are those of :func:`plan`.  ``force`` replaces a directory that shrinkc made.  Whatever
    goes wrong leaves nothing half-written.  The result has ``output``, the number of ``files``, and
    ``prepared``, the plan.

    Raises what :func:`plan` raises, DoesNotFit (with ``lacks``), BadWeights, and OutputError where
    the directory is there already or cannot be written.
    """
    from shrinkc.driver.compiling import compile_model

    request = _request(
        model, target=target, bits=bits, group=group, short_last_group=short_last_group,
        asymmetric=asymmetric, head_bits=head_bits, context=context, l1=l1, adapter=adapter,
        engines=engines, code=code,
    )  # fmt: skip
    return compile_model(request, Path(output), force=force, reporter=reporter or Silent())


def run(
    directory: AnyPath,
    *,
    on: str = "host",
    prompt: str | None = None,
    chat: bool = False,
    prompt_ids: Sequence[int] | None = None,
    tokens: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    ignore_eos: bool = False,
    lookup: int | None = None,
    verify: bool | int = True,
    check: bool = True,
    profile: bool = False,
    make_options: Mapping[str, str] | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
    on_text: Callable[[str], None] | None = None,
) -> RunResult:
    """Build and run a compiled directory, and compare every integer with the interpreter's.

    ``on``: "host", "qemu" or "gvsoc".  ``prompt`` is the text to go on from, with ``chat`` a message
    in the model's chat template; ``prompt_ids`` are token ids instead.  ``tokens``: most new ones
    (None: 64, or what the context leaves).  ``temperature`` 0 takes the likeliest token; else 0.02
    to 100, from the likeliest tokens that have the probability ``top_p`` together, drawn by
    ``seed`` (0 to 2^32 - 1).  ``ignore_eos`` goes on after an end token.  ``lookup`` (1 to 8, with
    temperature 0; None: off): up to so many tokens, those that followed the same words before, are
    drafted and verified in one pass; the tokens stay the same.  ``make_options``: variables of the
    directory's Makefile, e.g. {"SAN": "1"}.  ``timeout``: seconds (None: 600, on gvsoc 7200).
    ``verify``: with N above 1 the interpreter follows the run's tokens, every layer's output is
    compared, but logits and choice of every Nth token and the last one alone.
    ``profile`` (gvsoc): also cycles, instructions and stalls of every operation, as ``profile``.
    ``on_text`` is given the prompt in one piece, then the pieces of the answer as they come, and a
    line's end last.

    The result has ``text``, ``prompt_tokens``, ``new_tokens`` (ids), ``seconds``, ``speed`` (of prefill
    and decode, not on gvsoc), ``cycles`` (on gvsoc), ``drafts`` (with ``lookup``:
    ``tokens_per_pass``, and how many tokens were ``drafted`` and ``accepted``), and ``verdict``: how
    many values were ``compared`` and how many ``mismatched``; it is None without ``verify``.

    Raises Mismatch when an integer differs (not with ``check`` False: then ``verdict.ok`` says
    it), UsageError, BadArtifact, ToolMissing, BuildFailed, OutputError or RunFailed.
    """
    from shrinkc.driver.asking import RunRequest
    from shrinkc.driver.running import run_directory

    request = RunRequest.from_options(
        machine=on, prompt=prompt, chat=chat, prompt_ids=prompt_ids, tokens=tokens, seed=seed,
        temperature=temperature, top_p=top_p, ignore_eos=ignore_eos, verify=verify,
        make_options=make_options or {}, timeout=timeout, profile=profile, lookup=lookup,
    )  # fmt: skip
    result = run_directory(
        Path(directory), request, env=_environment(env), reporter=reporter or Silent(),
        on_text=on_text,
    )  # fmt: skip
    if check:
        result.check()
    return result


def chat(
    directory: AnyPath,
    *,
    on: str = "host",
    system: str | None = None,
    tokens: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    lookup: int | None = None,
    verify: bool = False,
    make_options: Mapping[str, str] | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> Conversation:
    """Begin a conversation with a compiled directory, in its model's chat template.

    ``system`` is what the model is told before all messages.  ``tokens``: most of one answer (None:
    what the context leaves).  ``timeout``: seconds for one answer.  ``verify`` compares every answer
    with the interpreter's; its ``result.check()`` raises Mismatch.  ``on``, ``seed``, ``temperature``,
    ``top_p``, ``lookup`` and ``make_options`` are those of :func:`run`.

    The result's ``ask(message, on_text)`` gives an Answer: ``text``, ``ended`` ("end": by the model;
    "tokens": by ``tokens``; "context": it is full), ``forgotten``, how many of the oldest exchanges were
    left out for it because the context was full, and ``result``, the run.  ``exchanges`` are the
    messages and answers that are not forgotten.

    Raises UsageError (also where the model has no chat template), BadArtifact, BadTokenizer,
    ToolMissing, BuildFailed or OutputError.
    """
    from shrinkc.driver.asking import RunRequest
    from shrinkc.driver.chatting import Conversation

    request = RunRequest.from_options(
        machine=on, prompt=None, chat=False, prompt_ids=None, tokens=tokens, seed=seed,
        temperature=temperature, top_p=top_p, ignore_eos=False, verify=verify,
        make_options=make_options or {}, timeout=timeout, lookup=lookup,
    )  # fmt: skip
    return Conversation(
        Path(directory), request, system, env=_environment(env), reporter=reporter or Silent()
    )


def evaluate(
    model: AnyPath,
    *,
    text: AnyPath | None = None,
    protocol: str | None = None,
    windows: int | None = None,
    tasks: Sequence[str] = (),
    items: int | None = None,
    samples: Sequence[str] = (),
    chat: bool = False,
    dtype: str | None = None,
    kv_bits: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    engine: str | None = None,
    base: AnyPath | None = None,
    resume: AnyPath | None = None,
    env: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure a model: a compiled directory, a float or GPTQ directory, a ``.gguf`` file, a hub id.

    At least one of: ``text``, a file for perplexity ("hub" fetches WikiText-2), cut by ``protocol``
    ("wikitext512" or "wikitext2048"; "wikitext64" to "wikitext256" are for short contexts; None: the
    first, or what fits) into ``windows`` of as many tokens (None: all);
    ``tasks`` of lm-evaluation-harness, each "NAME", "FILE.yaml" or "NAME=FILE" with a local file of data, of
    which ``items`` questions are asked (None: all); ``samples``, texts to go on from (with ``chat``, messages).

    A compiled directory runs on ``engine`` "host" (default; needs a C compiler) or "interpreter",
    and must have been compiled for a context of a window.  What is not compiled needs torch (the
    extra ``compress``), with ``dtype`` "float32" (default) or "bfloat16", keys and values rounded to ``kv_bits``
    (2 to 8; None: as they are), ``batch`` sequences at a time, ``threads`` (None: one for each 128 of the hidden
    size, at most torch's choice) and ``device``.

    ``base``: a model of the same tokens, such as the one that ``model`` was made from, whose predictions of
    ``text`` those of ``model`` are compared with; ``dtype``, ``threads``, ``device`` and ``engine`` are for both.

    ``resume``: a file that keeps what was scored as it is scored, with which the same call goes on after an
    interruption and gives the same numbers; delete it when the result is where it belongs.

    Returns what ``shrinkc eval --json`` prints: ``model``, and of what was asked for
    ``perplexity`` (in which ``base`` says how far the predictions are apart), ``tasks`` and
    ``samples``, each with its protocol and seconds.

    Raises UsageError, BadData, ExtraMissing, RunChanged when ``resume`` was begun for something else, and
    what the model's kind raises.
    """
    from shrinkc.driver.evaluating import EvalRequest, evaluate_model

    request = EvalRequest.from_options(
        model=os.fspath(model), text=_name(text), protocol=protocol, windows=windows,
        tasks=tasks, items=items, sample=samples, chat=chat, dtype=dtype, kv_bits=kv_bits,
        batch=batch, threads=threads, device=device, engine=engine, base=_name(base),
    )  # fmt: skip
    return evaluate_model(
        request, env=_environment(env), reporter=reporter or Silent(),
        resume=None if resume is None else Path(resume),
    )  # fmt: skip


def compress(
    model: AnyPath | Savable,
    output: AnyPath,
    *,
    recipe: RecipeSource,
    assignments: Sequence[str] = (),
    tokenizer: Savable | None = None,
    force: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> CompressionResult:
    """Make a model smaller by a recipe, in steps that each leave a directory that loads.

    ``model``: a Hugging Face directory, a ``.gguf`` file, an id of the hub, or a model of transformers with
    its ``tokenizer`` (both are saved in a temporary directory, from which the run reads them).  ``recipe``: a
    TOML file, a shipped one ("reference", "small", "siracusa"), a dictionary of tables such as
    {"gptq": {"bits": 4}}, or a :class:`shrinkc.Recipe`; ``assignments`` change it, e.g. "lora.rank=16".
    A run in ``output`` that was interrupted goes on after its last complete step; ``force`` starts over,
    ``dry_run`` checks everything and stops.  ``device`` is torch's.  Needs the extra ``compress``.

    The result has ``final``, the directory of the last model, and ``rows``: per step its layers,
    bytes and, where the recipe measures it, perplexity.

    Raises BadRecipe, ExtraMissing, BadData, RunChanged, BadStep, BudgetUnreachable, StageFailed,
    OutputError, and what :func:`open` raises.
    """
    from shrinkc.driver.compressing import CompressRequest, compress_model

    request = CompressRequest(
        model, Path(output), recipe, tuple(assignments), tokenizer, force, dry_run, device
    )
    return compress_model(request, reporter or Silent())


def write_report(
    directory: AnyPath,
    output: AnyPath | None = None,
    *,
    position: int | None = None,
    clock: float | None = None,
    run: AnyPath | None = None,
    evals: Sequence[AnyPath] = (),
    reporter: Reporter | None = None,
) -> Reported:
    """Write a page of HTML, which needs nothing else, about what compile or compress made.

    ``output``: the page (None: ``report.html`` in ``directory``); the same as JSON lies beside it.  Of a
    compiled directory: ``position`` and ``clock`` as in :func:`plan`; ``run``, a file with what
    ``shrinkc run --json`` printed (None: the last run with a profile); ``evals``, files with what
    ``shrinkc eval`` wrote, beside those in the directory.

    The result has ``html``, ``json``, ``bytes`` of the file, and ``page``, which both hold.

    Raises BadArtifact where ``directory`` is neither, or not as it was compiled, BadStep where no step of a
    run can be read, BadData for a file that is none of what it should be, UsageError, OutputError.
    """
    from shrinkc.core.errors import UsageError
    from shrinkc.report.compiled import compiled_page
    from shrinkc.report.compressed import run_page
    from shrinkc.report.page import write_page

    folder, reporter = Path(directory), reporter or Silent()
    page = run_page(folder)
    if page is None:
        page = compiled_page(
            folder, position=position, clock_mhz=clock, run=None if run is None else Path(run),
            evals=[*map(Path, evals)], reporter=reporter,
        )  # fmt: skip
    elif (position, clock, run, *evals) != (None, None, None):
        raise UsageError(
            f"{directory} is a compression run, to which --position, --clock, --run and --eval mean nothing.",
            "leave them out.",
        )
    return write_page(page, folder, None if output is None else Path(output), reporter)


def _request(model: AnyPath | Checkpoint, **options: Any) -> PlanRequest:
    from shrinkc.driver.plan_request import PlanRequest

    if isinstance(model, (str, os.PathLike)):
        model = Path(model)
    adapter = options.pop("adapter")
    return PlanRequest.from_options(
        model=model, adapter=None if adapter is None else Path(adapter), **options
    )


def _environment(env: Mapping[str, str] | None) -> Mapping[str, str]:
    return dict(os.environ) if env is None else env


def _name(path: AnyPath | None) -> str | None:
    return None if path is None else os.fspath(path)
