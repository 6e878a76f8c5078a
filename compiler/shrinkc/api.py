"""The functions that ``import shrinkc`` offers. The command line calls them too.

They raise the errors of `shrinkc.errors`, whose messages name options as the command line
writes them (``--bits`` for ``bits``).  Nothing is printed.  Programs such as compilers are found in
``env``, by default the environment of this process.  Besides the command line, only this file reads
that environment.
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
    from shrinkc.compression.summary import CompressionResult
    from shrinkc.driver.asking import Machine
    from shrinkc.driver.chatting import Conversation
    from shrinkc.driver.compiling import Compiled
    from shrinkc.driver.plan_request import PlanRequest
    from shrinkc.driver.planned import Planned, Shortfall
    from shrinkc.driver.run_result import RunResult
    from shrinkc.evaluation.compiled_scorer import Engine
    from shrinkc.importer import Checkpoint, Tool
    from shrinkc.report.page import Reported

AnyPath = str | os.PathLike[str]

__all__ = ["chat", "compile", "compress", "evaluate", "load", "open", "plan", "run", "write_report"]


def open(model: AnyPath, adapter: AnyPath | None = None) -> Checkpoint:  # noqa: A001
    """Open a model: read and check its configuration, tokenizer and weight headers, once.

    The result can be given to `plan` and `compile` any number of times.

    Args:
        model: A Hugging Face or GPTQModel directory, a ``.gguf`` file, or an id of the hub with its
            owner.  For planning, a ``config.json`` or a directory without weights is enough.
        adapter: A PEFT LoRA directory.  It replaces an adapter that comes with a GPTQModel directory.

    Returns:
        The opened model.  Its weights are read later, by `compile` or ``load()``.

    Raises:
        ModelNotFound: A file or directory does not exist.
        BadConfig: ``config.json`` is damaged or contradicts itself.
        UnsupportedModel: The model needs something that shrinkc does not support.
        BadTokenizer: The tokenizer is missing, damaged or not supported.
        BadWeights: A weight file is damaged.
        ShapeMismatch: Tensors and configuration disagree.
    """
    from shrinkc.driver.plan_request import open_model

    return open_model(Path(model), None if adapter is None else Path(adapter))


def load(model: AnyPath, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """Load a model as a model of transformers, such as a step of `compress`.

    Integers are dequantised exactly, and a low-rank adapter that comes with them is merged.

    Args:
        model: A Hugging Face or GPTQModel directory, a step, a ``.gguf`` file, or an id of the hub.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: Device of torch.

    Returns:
        The model, for inference.  Its tokenizer is ``AutoTokenizer.from_pretrained(model)``.

    Raises:
        ExtraMissing: torch or transformers is not installed.
        UsageError: The value of an option is not possible.
        ShrinkcError: Whatever `open` raises.
    """
    from shrinkc.checkpoints import DTYPES, check_device
    from shrinkc.checkpoints import load as load_checkpoint
    from shrinkc.core.errors import UsageError

    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype!r} is not possible.", f"allowed: {', '.join(DTYPES)}.")
    check_device(device)
    return load_checkpoint(os.fspath(model), dtype=dtype, device=device).model


def plan(
    model: AnyPath | Checkpoint,
    *,
    target: str = "siracusa",
    bits: int | None = None,
    group_size: int | None = None,
    short_last_group: bool = False,
    asymmetric: bool = False,
    embedding_bits: int | None = None,
    kv_bits: int = 8,
    context: int | None = None,
    l1: int | None = None,
    adapter: AnyPath | None = None,
    engines: str | Sequence[str] | None = None,
    code: str | None = None,
    position: int | None = None,
    clock: float | None = None,
    ram: int | None = None,
    flash: int | None = None,
    hyperram: int | None = None,
    fit: bool = False,
    sensitivity: AnyPath | None = None,
) -> Planned | Shortfall:
    """Say whether a model fits a target, where everything is placed and how fast it is.

    Weights are not read, so a plan takes a moment.

    Args:
        model: A path, an id of the hub, or an opened model (see `open`).
        target: ``"siracusa"``, ``"pulp-open"``, ``"rv32"`` or ``"host"``.
        bits: Bits per weight of the layers: 8, 6, 5, 4, 3 or 2.  None: 8, or the checkpoint's.
        group_size: Weights of an output channel that share a scale.  None: one scale per channel.
        short_last_group: Let the last group of a channel be shorter where ``group_size`` does not divide.
        asymmetric: Store zero points beside the scales.
        embedding_bits: Bits per weight of embedding and LM head, as ``bits``.
        kv_bits: Bits of keys and values in the KV cache: 8 or 4.
        context: Tokens that prompt and answer may take together, from 2 to the model's limit.  None:
            the model's limit, at most 256.
        l1: Bytes of L1 to use.  None: all of the target's.
        adapter: A PEFT LoRA directory, for a ``model`` that is a path.
        engines: Names of the engines that may run matrices, as a sequence or separated by commas.
            None: all of the target's.  The cores are always allowed.
        code: Memory for the code of the decode path on Siracusa, ``"wmem"`` (None) or ``"l2"``.
        position: Cached tokens assumed for the decode estimate, and prompt length for the prefill
            estimate.  None: 64, or the last position.
        clock: Clock of the cluster in MHz, for tokens per second.  None: the simulator's, 72.
        ram: Bytes of RAM of a board, for target ``"rv32"``, together with ``flash``.
        flash: Bytes of its mapped flash, where code, constants and weights lie; for ``"siracusa"`` and
            ``"pulp-open"``, bytes of the off-chip flash.  None: the target's.
        hyperram: Bytes of HyperRAM of ``"siracusa"`` and ``"pulp-open"``.  None: the target's.
        fit: Choose the width of every float matrix so that the model fits with the least estimated loss.
            Of ``bits``, ``embedding_bits``, ``group_size`` and ``asymmetric``, those that are given stay.
        sensitivity: Result of ``shrinkc sensitivity`` (its ``sensitivity.json`` or its directory), from which
            ``fit`` takes losses.  None: they are estimated from the kinds of the matrices.

    Returns:
        `Planned` if the model fits, else `Shortfall`.  ``fits`` says which.

    Raises:
        UsageError: The value of an option is not possible.
        QuantizeError: This model cannot have these widths or groups.
        ShrinkcError: Whatever `open` raises.
    """
    from shrinkc.driver.planning import prepare

    return prepare(
        _request(
            model, target=target, bits=bits, group_size=group_size, short_last_group=short_last_group,
            asymmetric=asymmetric, embedding_bits=embedding_bits, kv_bits=kv_bits, context=context, l1=l1,
            adapter=adapter,
            engines=engines, code=code, position=position, clock=clock, ram=ram, flash=flash, hyperram=hyperram,
            fit=fit, sensitivity=sensitivity,
        )
    )  # fmt: skip


def compile(  # noqa: A001
    model: AnyPath | Checkpoint,
    output: AnyPath,
    *,
    target: str = "siracusa",
    bits: int | None = None,
    group_size: int | None = None,
    short_last_group: bool = False,
    asymmetric: bool = False,
    embedding_bits: int | None = None,
    kv_bits: int = 8,
    context: int | None = None,
    l1: int | None = None,
    adapter: AnyPath | None = None,
    engines: str | Sequence[str] | None = None,
    code: str | None = None,
    ram: int | None = None,
    flash: int | None = None,
    hyperram: int | None = None,
    fit: bool = False,
    sensitivity: AnyPath | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Compiled:
    """Compile a model to a new directory: a C program with its weights.

    If anything fails, nothing is left behind.

    Args:
        model: As for `plan`.
        output: The directory to make.
        target: As for `plan`, like all options from here to ``sensitivity``.
        bits: See `plan`.
        group_size: See `plan`.
        short_last_group: See `plan`.
        asymmetric: See `plan`.
        embedding_bits: See `plan`.
        kv_bits: See `plan`.
        context: See `plan`.
        l1: See `plan`.
        adapter: See `plan`.
        engines: See `plan`.
        code: See `plan`.
        ram: See `plan`.
        flash: See `plan`.
        hyperram: See `plan`.
        fit: See `plan`.
        sensitivity: See `plan`.
        force: Replace ``output`` if shrinkc made every file in it.
        reporter: Receives progress.

    Returns:
        The directory, its number of files, and the plan.

    Raises:
        DoesNotFit: The model does not fit; ``lacks`` says by how much.
        BadWeights: Weights are damaged or too large for the integer model.
        OutputError: ``output`` exists or cannot be written.
        ShrinkcError: Whatever `plan` raises.
    """
    from shrinkc.driver.compiling import compile_model

    request = _request(
        model, target=target, bits=bits, group_size=group_size, short_last_group=short_last_group,
        asymmetric=asymmetric, embedding_bits=embedding_bits, kv_bits=kv_bits, context=context, l1=l1,
        adapter=adapter, engines=engines, code=code, ram=ram, flash=flash, hyperram=hyperram, fit=fit,
        sensitivity=sensitivity,
    )  # fmt: skip
    return compile_model(request, Path(output), force=force, reporter=reporter or Silent())


def run(
    directory: AnyPath,
    *,
    on: Machine = "host",
    prompt: str | None = None,
    chat: bool = False,
    tools: Sequence[Tool] | None = None,
    prompt_ids: Sequence[int] | None = None,
    tokens: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    ignore_eos: bool = False,
    prompt_lookup: int | None = None,
    verify: bool | int = True,
    check: bool = True,
    profile: bool = False,
    trace: bool = False,
    hook_interval: bool = False,
    make_options: Mapping[str, str] | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
    on_text: Callable[[str], None] | None = None,
) -> RunResult:
    """Build and run a compiled directory, and compare its integers with the interpreter's.

    Args:
        directory: A compiled directory (see `compile`).
        on: ``"host"``, ``"qemu"`` or ``"gvsoc"``, of those that the target allows.
        prompt: The text to continue.
        chat: Treat ``prompt`` as a user's message and put it in the model's chat template.
        tools: JSON schemas of functions that the model may call, for the chat template.
        prompt_ids: The prompt as token ids, instead of ``prompt``.
        tokens: Most new tokens.  None: 64, or what the context leaves.
        seed: Seed of the sampler, 0 to 2^32 - 1.
        temperature: 0 takes the most probable token; otherwise 0.02 to 100.
        top_p: Sample only from the most probable tokens with this total probability, above 0 to 1.
        ignore_eos: Continue after an end token.
        prompt_lookup: Most tokens that prompt-lookup decoding drafts per forward pass, 1 to 8.  It needs
            temperature 0 and does not change the result.  None: off.
        verify: True compares everything.  N above 1 compares all layer outputs, but logits and the
            chosen token only for every Nth token and the last.  False compares nothing.
        check: Raise Mismatch if an integer differs.  If False, ``verdict.ok`` of the result says so.
        profile: Count cycles, instructions and stalls of each operation.  Only on gvsoc.
        trace: Also record what each core, transfer and engine does when.  Includes ``profile``.
        hook_interval: Measure the longest time between two calls of the layer hook.  Only on gvsoc, with
            ``verify=False`` and without ``profile``.
        make_options: Variables of the directory's Makefile, such as ``{"SAN": "1"}``.
        timeout: Seconds until the run is stopped.  None: 600, on gvsoc 7200.
        env: Environment in which programs are found.
        reporter: Receives progress.
        on_text: Is called with the prompt, with each piece of the answer, and with a final newline.

    Returns:
        The text, tokens, speed and verdict of the run.

    Raises:
        Mismatch: An integer differs, or nothing was compared.
        UsageError: The value of an option is not possible.
        BadArtifact: The directory is incomplete or damaged.
        ToolMissing: A compiler, emulator or simulator is missing.
        BuildFailed: The C compiler refused the program.
        RunFailed: The program crashed or did not end.
        OutputError: The program has to be built, and the directory cannot be written.
    """
    from shrinkc.driver.asking import RunRequest
    from shrinkc.driver.running import run_directory

    request = RunRequest(
        on, prompt=prompt, chat=chat, tools=tools, prompt_ids=prompt_ids, tokens=tokens, seed=seed,
        temperature=temperature, top_p=top_p, ignore_eos=ignore_eos, verify=int(verify),
        make_options=make_options or {}, timeout=timeout, profile=profile or trace,
        prompt_lookup=prompt_lookup, trace=trace,
        hook_interval=hook_interval,
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
    on: Machine = "host",
    system: str | None = None,
    tools: Sequence[Tool] | None = None,
    tokens: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    prompt_lookup: int | None = None,
    verify: bool = False,
    make_options: Mapping[str, str] | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> Conversation:
    """Begin a conversation with a compiled directory, in its model's chat template.

    Args:
        directory: A compiled directory (see `compile`).
        on: See `run`.
        system: The system message.
        tools: JSON schemas of functions that the model may call, for the chat template.  To give a result, ask
            with ``role="tool"``.
        tokens: Most tokens of one answer.  None: what the context leaves.
        seed: See `run`.
        temperature: See `run`.
        top_p: See `run`.
        prompt_lookup: See `run`.
        verify: Compare each answer with the interpreter's.  ``answer.result.check()`` then raises
            Mismatch if an integer differs.
        make_options: See `run`.
        timeout: Seconds for one answer.  None: 600, on gvsoc 7200.
        env: See `run`.
        reporter: Receives progress.

    Returns:
        A conversation, whose ``ask(message)`` gives an answer.

    Raises:
        UsageError: The model has no chat template, the template has no place for ``system`` or ``tools``, or
            the value of an option is not possible.
        ShrinkcError: Whatever `run` raises.
    """
    from shrinkc.driver.asking import RunRequest
    from shrinkc.driver.chatting import Conversation

    request = RunRequest(
        on, tokens=tokens, seed=seed, temperature=temperature, top_p=top_p, verify=int(verify),
        make_options=make_options or {}, timeout=timeout, prompt_lookup=prompt_lookup, tools=tools,
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
    engine: Engine | None = None,
    base: AnyPath | None = None,
    resume: AnyPath | None = None,
    env: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure the quality of a model: perplexity, tasks, sample texts.

    At least one of ``text``, ``tasks`` and ``samples`` is needed.

    Args:
        model: A compiled directory, a float or GPTQ directory, a ``.gguf`` file, or an id of the hub.
        text: A text file for perplexity.  ``"hub"`` fetches WikiText-2.
        protocol: How the text is cut: ``"wikitext512"``, ``"wikitext2048"``, or ``"wikitext64"`` to
            ``"wikitext256"`` for short contexts.  None: wikitext512, or the longest that fits.
        windows: Windows to measure, from the beginning of the text.  None: all.
        tasks: Tasks of lm-evaluation-harness: ``"NAME"``, ``"NAME=FILE"`` with local data, or
            ``"FILE.yaml"``.
        items: Questions of each task.  None: all.
        samples: Texts to continue.
        chat: Treat the samples as messages in the chat template.
        dtype: ``"float32"`` (None) or ``"bfloat16"``, for a model that is not compiled.
        kv_bits: Round keys and values of a model that is not compiled to 2 to 8 bits.  None: not.
        batch: Sequences at a time, for a model that is not compiled.  None: 8.
        threads: Threads of torch.  None: one for each 128 of the hidden size, at most torch's choice.
        device: Device of torch.  None: ``"cpu"``.
        engine: ``"host"`` (None; needs a C compiler) or ``"interpreter"``, for a compiled directory.
        base: A model with the same tokens.  Predictions of ``text`` are compared with this model's.
        resume: A file that keeps what was measured, so that the same call continues after an
            interruption.  Delete it when the result is safe.
        env: Environment in which programs are found.
        reporter: Receives progress.

    Returns:
        The object that ``shrinkc eval --json`` prints: ``model``, and ``perplexity``, ``tasks`` and ``samples`` if
        they were asked for, each with its protocol and seconds.

    Raises:
        UsageError: The value of an option is not possible for this model.
        BadData: The text or a task's data is too short or not in its format.
        ExtraMissing: The extra ``compress`` or ``lm-eval`` is not installed.
        RunChanged: ``resume`` was begun for another measurement.
        ShrinkcError: Whatever opening this kind of model raises.
    """
    from shrinkc.driver.evaluating import EvalRequest, evaluate_model

    request = EvalRequest(
        os.fspath(model), text=_name(text), protocol=protocol, windows=windows, tasks=tasks,
        items=items, samples=samples, chat=chat, dtype=dtype, kv_bits=kv_bits, batch=batch,
        threads=threads, device=device, engine=engine, base=_name(base),
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
    text: Sequence[str] = (),
    fast: bool = False,
    assignments: Sequence[str] = (),
    tokenizer: Savable | None = None,
    force: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> CompressionResult:
    """Make a model smaller by the stages of a recipe.

    Each stage leaves a directory that loads as a model.  An interrupted run continues after its last
    complete stage when the same call is made again.

    Args:
        model: A Hugging Face directory, a ``.gguf`` file, an id of the hub, or a model of transformers in
            memory together with its ``tokenizer``.
        output: The directory of the run.
        recipe: A TOML file, the name of a shipped recipe, a dictionary of tables such as
            ``{"gptq": {"bits": 4}}``, or a `shrinkc.Recipe`.
        text: Texts for calibration and training instead of the recipe's: files, ``nltk:corpus``, ``hub:dataset`` or
            ``self:tokens``.
        fast: Train less, as the recipe's table ``fast`` says.
        assignments: Changes to the recipe, such as ``"lora.rank=16"``.
        tokenizer: The tokenizer of a ``model`` in memory.
        force: Start over.
        dry_run: Check everything, estimate time and memory, and stop.
        device: Device of torch.
        reporter: Receives progress.

    Returns:
        The directory of the last model, and one row per step with sizes and quality.

    Raises:
        BadRecipe: A key or value of the recipe is wrong.
        ExtraMissing: The extra ``compress`` is not installed.
        BadData: The texts are too short or repeat themselves.
        RunChanged: ``output`` holds a run with other inputs.
        BadStep: A step in ``output`` is damaged.
        BudgetUnreachable: No choice meets the budget.
        StageFailed: A library failed in a stage.
        OutputError: ``output`` cannot be written.
        ShrinkcError: Whatever `open` raises.
    """
    from shrinkc.driver.compressing import compress_model

    return compress_model(
        model, Path(output), recipe, assignments, tokenizer, reporter or Silent(),
        text=text, fast=fast, force=force, dry_run=dry_run, device=device,
    )  # fmt: skip


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
    """Write an HTML page about a compiled directory or a compression run.

    The page needs no network.  The same facts are written as JSON into the same directory.

    Args:
        directory: A compiled directory, or the directory of a compression run.
        output: The page.  None: ``report.html`` in ``directory``.
        position: See `plan`.  Only for a compiled directory, like the next three.
        clock: See `plan`.
        run: A file with the output of ``shrinkc run --json``.  None: the last run with a profile.
        evals: Files that ``shrinkc eval -o`` wrote, in addition to those in ``directory``.
        reporter: Receives progress.

    Returns:
        The paths of both files, and the page.

    Raises:
        BadArtifact: ``directory`` is neither, or was changed after it was compiled.
        BadStep: No step of the run can be read.
        BadData: A given file is not what it should be.
        UsageError: The value of an option is not possible.
        OutputError: A file cannot be written.
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
    for name in ("adapter", "sensitivity"):
        options[name] = None if options[name] is None else Path(options[name])
    return PlanRequest(model, **options)


def _environment(env: Mapping[str, str] | None) -> Mapping[str, str]:
    return dict(os.environ) if env is None else env


def _name(path: AnyPath | None) -> str | None:
    return None if path is None else os.fspath(path)
