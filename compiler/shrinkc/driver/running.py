"""Run of a compiled directory: build, run, stream the text, compare with the interpreter."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from shrinkc.abi import Trace
from shrinkc.build import build_program
from shrinkc.core import artifact
from shrinkc.core.errors import BadArtifact, RunFailed, ShrinkcError, UsageError
from shrinkc.core.output import write_file
from shrinkc.core.progress import Reporter
from shrinkc.driver.asking import TIMEOUT, Machine, RunRequest, device_request
from shrinkc.driver.estimating import Predicted, predicted_run, read_plan, target_of
from shrinkc.driver.run_result import Drafts, RunResult
from shrinkc.driver.story import OnText, Story
from shrinkc.importer import Tokenizer
from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.serialize import load
from shrinkc.simulate import KeptProgram, RunOutput, run_program
from shrinkc.simulate.profile import Profile, read_profile
from shrinkc.simulate.proof import (
    Difference,
    Pass,
    Record,
    Request,
    compare,
    followed,
    locate,
    op_values,
    parse,
    reference,
)
from shrinkc.simulate.trace import Trace as RunTrace
from shrinkc.simulate.trace import read_trace
from shrinkc.targets import TARGETS, Target


def run_directory(
    directory: Path,
    request: RunRequest,
    *,
    env: Mapping[str, str],
    reporter: Reporter,
    on_text: OnText | None = None,
) -> RunResult:
    """Build and run the compiled ``directory``, and compare its integers with the interpreter's.

    ``env``: environment in which programs are found.  A difference does not raise an error: see
    :meth:`RunResult.check`.  Raises BadArtifact, UsageError, ToolMissing, BuildFailed, OutputError or
    RunFailed.
    """
    program = Program.open(directory, request, env=env, reporter=reporter)
    for note in request.notes():
        reporter.note(note)
    asked = device_request(request, program.manifest, program.tokenizer)
    if asked.prompt_lookup:
        _check_room_for_lookup(directory)
    program.build(reporter)
    # the template's text is not shown
    told = () if request.chat else asked.prompt
    return program.run(asked, told=told, reporter=reporter, on_text=on_text)


@dataclass(frozen=True)
class Program:
    """Compiled directory with checked files, which can be run any number of times.

    ``request``: settings of all its runs.  ``changed``: files that were changed after compiling.
    """

    directory: Path
    request: RunRequest
    manifest: artifact.Manifest
    target: Target
    tokenizer: Tokenizer
    changed: tuple[str, ...]
    env: Mapping[str, str]

    @classmethod
    def open(
        cls, directory: Path, request: RunRequest, *, env: Mapping[str, str], reporter: Reporter
    ) -> Program:
        """Read and check the files.  Raises BadArtifact, or UsageError if ``request`` does not suit the program."""
        manifest = artifact.read_manifest(directory)
        target = _target_for(directory, manifest, request.machine)
        if int(request.make_options.get("CORES", "1")) > target.cores:
            raise UsageError(
                f"--make CORES={request.make_options['CORES']} is not possible: {directory} was compiled for a board "
                f"with {target.cores} core.",
                "leave it out.",
            )
        if request.profile and "PROFILE" not in target.program.options:
            option = "--trace" if request.trace else "--profile"
            raise UsageError(
                f"{option} is not possible: programs for {target.name} cannot count cycles.",
                "leave it out.",
            )
        with reporter.stage("reading the program"):
            if request.verify:
                artifact.check_files(directory, manifest, (artifact.IR,))
            tokenizer = Tokenizer.of_program(directory, manifest)
            changed = tuple(artifact.changed_files(directory, manifest))
        if changed:
            reporter.note(f"note: changed since it was compiled: {', '.join(changed)}")
        return cls(directory, request, manifest, target, tokenizer, changed, env)

    def build(self, reporter: Reporter) -> None:
        """Build the program if needed.  Raises ToolMissing, BuildFailed or OutputError."""
        request, name = self.request, self.target.programs[self.request.machine]
        options = dict(request.make_options) | ({"PROFILE": "1"} if request.profile else {})
        options |= {"TRACE": "1"} if request.trace else {}
        with reporter.stage(f"building for {name}"):
            build_program(self.directory, name, env=self.env, options=options)

    def run(
        self,
        asked: Request,
        *,
        told: tuple[int, ...] = (),
        session: Session | None = None,
        reporter: Reporter,
        on_text: OnText | None = None,
    ) -> RunResult:
        """Run the built program once; ``on_text`` receives the text of ``told`` and then of the new tokens.

        ``session``: the program and interpreter that have the KV cache of the run before, and get that of this one.
        Raises RunFailed, or BadArtifact if the program is too old for the request.
        """
        request, directory = self.request, self.directory
        with ExitStack() as waiting:
            update = waiting.enter_context(reporter.stage(f"running on {request.machine}"))
            story = Story(
                self.tokenizer, told, asked.new_tokens, on_text, update=update,
                on_first=waiting.close,
            )  # fmt: skip
            trace: int = Trace.PROOF if request.verify else Trace.TIME
            trace |= Trace.HOOK if request.hook_interval else 0
            output = self._run(asked, trace, story=story, session=session)
        story.end()
        record = parse(output.lines)
        _check_ending(output, record, request.machine)
        profile = _profile(directory, output, record) if request.profile else None
        spans = _trace(directory, output) if request.trace else None
        if request.hook_interval and record.hook_interval is None:
            raise BadArtifact(
                f"{directory} cannot measure --hook-interval: an older version of shrinkc compiled it.",
                "compile the model again.",
            )
        drafts = _drafts(directory, record) if asked.prompt_lookup else None

        verdict = None
        if request.verify:
            with reporter.stage("checking against the interpreter"):
                graph = load(directory / artifact.IR) if session is None else session.graph
                interpreter = None if session is None else session.interpreter
                want = followed(graph, asked, record.tokens, request.verify, interpreter)
                every = 1 if want is None else request.verify
                want = want or reference(graph, asked)  # after a difference, compare everything
                verdict = compare(record, want, graph, self.tokenizer.decode_table())
                verdict = replace(verdict, every=every)
            if verdict.first_difference is not None:
                with reporter.stage("looking for the first difference"):
                    closer = self._look_closer(asked, want, graph, verdict.first_difference)
                verdict = replace(verdict, first_difference=closer)
        text = _device_text(self.tokenizer, asked.prompt, record)
        result = RunResult(
            self.manifest, request.machine, asked, text, output.seconds, record, verdict,
            _reports(output), self.changed, profile, drafts, tuple(story.seconds),
            None if profile is None else _predicted(directory, self.target, asked, record),
            spans,
        )  # fmt: skip
        if profile is not None:
            write_file(
                directory / artifact.PROFILE,
                json.dumps(result.to_json(), ensure_ascii=False) + "\n",
            )
        return result

    def _run(
        self,
        asked: Request,
        trace: int,
        *,
        dump: tuple[int, int] = (0, 0),
        story: Story | None = None,
        session: Session | None = None,
    ) -> RunOutput:
        words = asked.words(self.manifest.context, trace, dump)
        timeout_s = self.request.timeout or TIMEOUT[self.request.machine]
        on_line = None if story is None else story.on_line
        if session is not None:
            return session.program.run(words, timeout_s=timeout_s, on_line=on_line)
        return run_program(
            self.directory, self.request.machine, words, env=self.env, timeout_s=timeout_s, on_line=on_line,
            target=self.target,
        )  # fmt: skip

    def _look_closer(
        self, asked: Request, want: Record, graph: Graph, found: Difference
    ) -> Difference:
        """Run again with all values of the layer whose hash differs, to find op and index."""
        if found.layer is None:
            return found
        whole = replace(asked, kept=0, more=False)
        try:
            again = self._run(whole, Trace.PROOF | Trace.DUMP, dump=(found.step, found.layer))
            dumps = parse(again.lines).dumps
        except ShrinkcError:
            return found  # keep the first run's finding
        values = op_values(graph, asked, want, found.step, found.layer)
        return locate(dumps, values, graph, found.step, found.layer) or found


class Session:
    """A program that is kept running and the interpreter that checks it, with equal KV caches.

    Attributes:
        tokens: Those in the caches, and the last token of the run.
    """

    def __init__(self, program: Program) -> None:
        """Start the built program.  Raises ToolMissing, UsageError or BadArtifact."""
        self._of = program
        self.tokens: list[int] = []
        self.program = KeptProgram(
            program.directory, program.request.machine, env=program.env, target=program.target
        )

    @cached_property
    def graph(self) -> Graph:
        """The program's integer model."""
        return load(self._of.directory / artifact.IR)

    @cached_property
    def interpreter(self) -> Interpreter:
        """The interpreter of the conversation."""
        return Interpreter(self.graph)

    def run(self, asked: Request, *, reporter: Reporter, on_text: OnText | None) -> RunResult:
        """Run, and process only the tokens behind those that the prompt has in common with :attr:`tokens`.

        After an exception, close it.
        """
        pairs = zip(self.tokens, asked.prompt[:-1], strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        asked = replace(asked, kept=common, more=True)
        result = self._of.run(asked, session=self, reporter=reporter, on_text=on_text)
        equal = result.verdict is None or result.verdict.ok
        self.tokens = [*asked.prompt, *result.record.tokens] if equal else []
        return result

    def close(self) -> None:
        """End the program."""
        self.program.close()


def _predicted(directory: Path, target: Target, asked: Request, record: Record) -> Predicted | None:
    prompt = len(asked.prompt)
    passes = record.passes or [Pass(1, 1)] * len(record.decode_times)
    starts = itertools.accumulate((p.kept for p in passes), initial=prompt)
    steps = [(p.tokens, at) for p, at in zip(passes, starts, strict=False)]
    return predicted_run(directory, load(directory / artifact.IR), target, prompt, steps)


def _target_for(directory: Path, manifest: artifact.Manifest, machine: Machine) -> Target:
    """Return the program's target.  Raises UsageError if it does not run on ``machine``."""
    target = target_of(directory, manifest)
    if machine not in target.runs_on:
        others = [t.name for t in TARGETS.values() if t.machine == machine]
        raise UsageError(
            f"{directory} was compiled for {target.name} and does not run on {machine}.",
            f"allowed: --on {' or '.join(target.runs_on)}; or compile the model with "
            f"--target {' or --target '.join(others)}.",
        )
    return target


def _profile(directory: Path, output: RunOutput, record: Record) -> Profile:
    """Return the run's profile.  Raises BadArtifact if the program is too old to have one."""
    profile = read_profile(output.lines, record.prefill_time, record.decode_times)
    if profile is None:
        raise BadArtifact(
            f"{directory} cannot be profiled: an older version of shrinkc compiled it.",
            "compile the model again.",
        )
    return profile


def _trace(directory: Path, output: RunOutput) -> RunTrace:
    """Return the run's trace.  Raises BadArtifact if the program is too old to have one."""
    trace = read_trace(output.lines)
    if trace is None:
        raise BadArtifact(
            f"{directory} cannot be traced: an older version of shrinkc compiled it.",
            "compile the model again.",
        )
    return trace


def _check_room_for_lookup(directory: Path) -> None:
    """Raise UsageError if a forward pass of the program has no room for a draft."""
    plan = read_plan(directory / artifact.PLAN)
    if plan.verified < 2:
        more = "more --ram or a shorter --context."
        if not plan.board:
            more = (
                "more --l1, a shorter --context, or --engines cores, which needs the least memory."
            )
        raise UsageError(
            f"--prompt-lookup is not possible: {directory} has no memory to verify drafted tokens.",
            f"leave it out; or compile the model with {more}",
        )


def _drafts(directory: Path, record: Record) -> Drafts:
    """Return the run's drafts.  Raises BadArtifact if the program is too old for --prompt-lookup."""
    if len(record.passes) != len(record.decode_times):
        raise BadArtifact(
            f"{directory} cannot use --prompt-lookup: an older version of shrinkc compiled it.",
            "compile the model again.",
        )
    return Drafts(tuple(record.passes))


def _reports(output: RunOutput) -> tuple[str, ...]:
    """Return the platform's reports, such as stack depths of a build with STACKS=1."""
    return tuple(line for line in output.lines if line.startswith("platform: "))


def _device_text(tokenizer: Tokenizer, prompt: tuple[int, ...], record: Record) -> str:
    """Return the prompt, and the new tokens decoded with the device's table."""
    table = tokenizer.decode_table()
    data = b"".join([*(table[t] for t in prompt), *record.pieces])
    if tokenizer.strip_leading_space and data.startswith(b" "):
        data = data[1:]
    return data.decode("utf-8", errors="replace")


def _check_ending(output: RunOutput, record: Record, machine: Machine) -> None:
    if output.exit_code == 0 and record.complete:
        return
    last = "\n".join([*output.errors[-4:], *output.lines[-4:]])
    raise RunFailed(
        f"the program on {machine} ended with exit code {output.exit_code} after {len(record.tokens)} "
        f"tokens; its last lines:\n{last}",
        "run it with '--on host --make SAN=1' to see where it went wrong.",
    )
