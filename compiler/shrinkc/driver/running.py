"""A run of a compiled directory: build, run, give the text as it comes, compare with the interpreter."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, cast

from shrinkc.abi import LOOKUP_MAX, Trace
from shrinkc.build import build_program
from shrinkc.build.make import OPTIONS
from shrinkc.core import artifact
from shrinkc.core.errors import BadArtifact, Mismatch, RunFailed, ShrinkcError, UsageError
from shrinkc.core.output import write_file
from shrinkc.core.progress import Reporter
from shrinkc.driver.estimating import Predicted, predicted_run, profile_chart
from shrinkc.driver.story import OnText, Story
from shrinkc.importer import Tokenizer
from shrinkc.ir.graph import Graph
from shrinkc.ir.serialize import load
from shrinkc.numerics.sampling import TOP_P_ONE, Sampling
from shrinkc.report.timeline import timeline
from shrinkc.simulate import RunOutput, run_program
from shrinkc.simulate.profile import Profile, read_profile
from shrinkc.simulate.proof import (
    Difference,
    Pass,
    Record,
    Request,
    Verdict,
    compare,
    locate,
    op_values,
    parse,
    reference,
)
from shrinkc.targets import MACHINES, TARGETS, Target

Machine = Literal["host", "qemu", "gvsoc"]

DEFAULT_TOKENS = 64
TIMEOUT = {"host": 600.0, "qemu": 600.0, "gvsoc": 7200.0}
TEMPERATURES = (0.02, 100.0)
SEED_MAX = (1 << 32) - 1
PROFILED = "gvsoc"


@dataclass(frozen=True)
class RunRequest:
    """What to run; ``prompt`` and ``prompt_ids`` exclude each other.

    ``chat``: ``prompt`` is a user's message, to be put in the model's chat template.
    """

    machine: Machine
    prompt: str | None = None
    chat: bool = False
    prompt_ids: tuple[int, ...] | None = None
    tokens: int | None = None
    sampling: Sampling = Sampling()
    ignore_eos: bool = False
    verify: bool = True
    make_options: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    profile: bool = False
    lookup: int = 0

    @classmethod
    def from_options(
        cls,
        *,
        machine: str,
        prompt: str | None,
        chat: bool,
        prompt_ids: Sequence[int] | None,
        tokens: int | None,
        seed: int,
        temperature: float,
        top_p: float,
        ignore_eos: bool,
        verify: bool,
        make_options: Mapping[str, str],
        timeout: float | None,
        profile: bool = False,
        lookup: int | None = None,
    ) -> RunRequest:
        """From the values of options; UsageError when one is not possible."""
        if machine not in MACHINES:
            raise UsageError(f"--on {machine} is not possible.", f"allowed: {', '.join(MACHINES)}.")
        if prompt is not None and prompt_ids is not None:
            raise UsageError("--prompt and --prompt-ids exclude each other.", "give one of them.")
        if chat and prompt is None:
            raise UsageError("--chat is about a message.", "give one with --prompt TEXT.")
        if timeout is not None and not timeout > 0:
            raise UsageError(
                f"--timeout {timeout:g} is not possible.",
                "give seconds above 0, or inf for as long as it takes.",
            )
        if profile and machine != PROFILED:
            raise UsageError(
                f"--profile is not possible on {machine}: only the simulated cores of {PROFILED} have "
                "counters.",
                f"give --on {PROFILED}, or leave it out.",
            )
        if lookup is not None:
            _check_lookup(lookup, temperature)
        cores, most = make_options.get("CORES", "1"), max(t.cores for t in TARGETS.values())
        if not (cores.isascii() and cores.isdecimal() and 1 <= int(cores[:9]) <= most):
            raise UsageError(f"--make CORES={cores} is not possible.", f"allowed: 1 to {most}.")
        if wrong := [name for name in make_options if name not in OPTIONS]:
            raise UsageError(
                f"--make {wrong[0]}={make_options[wrong[0]]} is not possible.",
                f"allowed: {'=, '.join(OPTIONS)}=.",
            )
        return cls(
            machine=cast(Machine, machine),
            prompt=prompt,
            chat=chat,
            prompt_ids=None if prompt_ids is None else tuple(prompt_ids),
            tokens=tokens,
            sampling=sampling_of(temperature, top_p, seed),
            ignore_eos=ignore_eos,
            verify=verify,
            make_options=dict(make_options),
            timeout=timeout,
            profile=profile,
            lookup=lookup or 0,
        )


def _check_lookup(lookup: int, temperature: float) -> None:
    if not 1 <= lookup <= LOOKUP_MAX:
        raise UsageError(
            f"--lookup {lookup} is not possible.",
            f"allowed: 1 to {LOOKUP_MAX} tokens; or leave it out, to draft none.",
        )
    if temperature != 0:
        raise UsageError(
            f"--lookup is not possible with --temperature {temperature:g}: drafts are verified against "
            "the likeliest tokens.",
            "give --temperature 0, or leave --lookup out.",
        )


def sampling_of(temperature: float, top_p: float, seed: int) -> Sampling:
    """The device's fixed-point numbers; UsageError outside their ranges."""
    low, high = TEMPERATURES
    if not (temperature == 0 or low <= temperature <= high):
        raise UsageError(
            f"--temperature {temperature:g} is not possible.",
            f"allowed: 0 (the likeliest token) or {low:g} to {high:g}.",
        )
    if not 0 < top_p <= 1:
        raise UsageError(f"--top-p {top_p:g} is not possible.", "allowed: above 0, at most 1.")
    if not 0 <= seed <= SEED_MAX:
        raise UsageError(f"--seed {seed} is not possible.", f"allowed: 0 to {SEED_MAX}.")
    return Sampling(
        inv_temp_q16=round(65536 / temperature) if temperature else 0,
        top_p_q16=max(1, round(TOP_P_ONE * top_p)),
        seed=seed,
    )


def run_directory(
    directory: Path,
    request: RunRequest,
    *,
    env: Mapping[str, str],
    reporter: Reporter,
    on_text: OnText | None = None,
) -> RunResult:
    """Builds and runs the compiled ``directory``, and compares every integer.

    ``env`` says where programs are found (PATH and the like).  A difference is in the result's
    ``verdict``: see :meth:`RunResult.check`.  Raises BadArtifact, UsageError, ToolMissing,
    BuildFailed, OutputError or RunFailed.
    """
    manifest = artifact.read_manifest(directory)
    target = _target_for(directory, manifest, request.machine)
    if request.profile and "PROFILE" not in target.program.options:
        raise UsageError(
            f"--profile is not possible: programs for {target.name} have no counters.",
            "leave it out.",
        )
    with reporter.stage("reading the program"):
        if request.verify:
            artifact.check_files(directory, manifest, (artifact.IR,))
        tokenizer = Tokenizer.of_program(directory, manifest)
        changed = artifact.changed_files(directory, manifest)
    if changed:
        reporter.note(f"note: changed since it was compiled: {', '.join(changed)}")
    asked = device_request(request, manifest, tokenizer)
    if asked.lookup:
        _check_room_for_lookup(directory)
    machine = request.machine
    with reporter.stage(f"building for {target.programs[machine]}"):
        options = dict(request.make_options) | ({"PROFILE": "1"} if request.profile else {})
        build_program(directory, target.programs[machine], env=env, options=options)

    timeout = request.timeout or TIMEOUT[machine]
    device = _Device(directory, target, machine, manifest.context, env, timeout)
    with ExitStack() as waiting:
        update = waiting.enter_context(reporter.stage(f"running on {machine}"))
        # the template's own text is not what was said
        told = () if request.chat else asked.prompt
        story = Story(
            tokenizer, told, asked.new_tokens, on_text, update=update, on_first=waiting.close
        )
        output = device.run(asked, Trace.PROOF if request.verify else Trace.TIME, story=story)
    story.end()
    record = parse(output.lines)
    _check_ending(output, record, machine)
    profile = _profile(directory, output, record) if request.profile else None
    drafts = _drafts(directory, record) if asked.lookup else None

    verdict = None
    if request.verify:
        with reporter.stage("checking against the interpreter"):
            graph = load(directory / artifact.IR)
            want = reference(graph, asked)
            verdict = compare(record, want, graph, tokenizer.decode_table())
        if verdict.first_difference is not None:
            with reporter.stage("looking for the first difference"):
                closer = _look_closer(device, asked, want, graph, verdict.first_difference)
            verdict = replace(verdict, first_difference=closer)
    text = _device_text(tokenizer, asked.prompt, record)
    result = RunResult(
        manifest, machine, asked, text, output.seconds, record, verdict, _reports(output),
        tuple(changed), profile, drafts, partial(_predicted, directory, target, asked, record),
    )  # fmt: skip
    if profile is not None:
        write_file(
            directory / artifact.PROFILE, json.dumps(result.to_json(), ensure_ascii=False) + "\n"
        )
    return result


@dataclass(frozen=True)
class _Device:
    """A built program on its machine."""

    directory: Path
    target: Target
    machine: Machine
    context: int
    env: Mapping[str, str]
    timeout: float

    def run(
        self,
        asked: Request,
        trace: int,
        *,
        dump: tuple[int, int] = (0, 0),
        story: Story | None = None,
    ) -> RunOutput:
        return run_program(
            self.directory,
            self.machine,
            asked.words(self.context, trace, dump),
            env=self.env,
            timeout_s=self.timeout,
            on_line=None if story is None else story.on_line,
            target=self.target,
        )


@dataclass(frozen=True)
class Drafts:
    """What lookup did in a run: its decode passes."""

    passes: tuple[Pass, ...]

    @property
    def drafted(self) -> int:
        """Tokens, in all."""
        return sum(p.tokens - 1 for p in self.passes)

    @property
    def accepted(self) -> int:
        """Of these, tokens that were needed and right."""
        return sum(p.kept - 1 for p in self.passes)

    @property
    def tokens_per_pass(self) -> float:
        """That a pass gave on average; 0 where there was none, because the prefill gave all."""
        return sum(p.kept for p in self.passes) / max(len(self.passes), 1)

    def line(self) -> str:
        """For people."""
        return (
            f"lookup: {self.tokens_per_pass:.2f} tokens per pass ({len(self.passes)} passes), "
            f"{self.accepted} of {self.drafted} drafted tokens accepted"
        )

    def to_json(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "passes": len(self.passes),
            "drafted": self.drafted,
            "accepted": self.accepted,
            "tokens_per_pass": round(self.tokens_per_pass, 3),
        }


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    ``text``: the prompt and what the program made of it.  ``seconds``: wall time, proof output and
    start-up included.  ``record``: what the program printed, as values.  ``verdict``: how many
    values were compared with the interpreter's and how many differ; None without verification.
    ``reports``: lines of the platform about itself.  ``changed``: files that are not as compiled.
    ``drafts``: what lookup did; None without it.
    """

    manifest: artifact.Manifest
    machine: Machine
    asked: Request
    text: str
    seconds: float
    record: Record
    verdict: Verdict | None
    reports: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    profile: Profile | None = None
    drafts: Drafts | None = None
    _predict: Callable[[], Predicted | None] = field(
        default=lambda: None, repr=False, compare=False
    )

    @cached_property
    def predicted(self) -> Predicted | None:
        """What the cost model says of this run's profile; None without a profile, or for a target
        that was not calibrated."""
        return None if self.profile is None else self._predict()

    @property
    def prompt_tokens(self) -> list[int]:
        """Ids of the prompt."""
        return list(self.asked.prompt)

    @property
    def new_tokens(self) -> list[int]:
        """Ids that the program chose, an end token included."""
        return list(self.record.tokens)

    def check(self) -> None:
        """Mismatch where an integer differs, or nothing was compared though it was asked for."""
        if self.verdict is not None and not self.verdict.ok:
            raise _mismatch(self.machine, self.verdict)

    @property
    def cycles(self) -> dict[str, object] | None:
        """Of the simulated SoC, of the prefill and of each decode pass, which without lookup gives a
        token; the other machines have no clock that means anything."""
        if self.machine != "gvsoc":
            return None
        return {"prefill": self.record.prefill_time, "decode": self.record.decode_times}

    def _beside(self) -> Profile | None:
        """The profile with what was predicted."""
        if self.profile is None or self.predicted is None:
            return self.profile
        return self.profile.beside(*self.predicted.ops())

    def timeline(self) -> str:
        """The profile as an SVG document; UsageError where the run had none."""
        if self.profile is None:
            raise UsageError("a timeline is made of a profile.", "give --profile too.")
        known = self.predicted
        charts = [
            profile_chart("prefill", self.profile.prefill, None if known is None else known.prefill)
        ]
        if (decode := self.profile.decode) is not None:
            title = f"decode step, mean of {decode.steps}"
            charts.append(profile_chart(title, decode, None if known is None else known.decode))
        name = f"{self.manifest.model} on {self.machine}, prompt of {len(self.asked.prompt)} tokens"
        return timeline(name, charts)

    def lines(self) -> list[str]:
        """A summary for people, the platform's reports first, the verdict last."""
        new, prompt = len(self.record.tokens), len(self.asked.prompt)
        line = f"{self.machine}: {prompt} prompt and {new} new tokens in {self.seconds:.2f} s"
        if self.machine == "gvsoc":
            out = [*self.reports, f"{line} of simulation"]
        else:
            speed = new / max(self.seconds, 1e-9)
            out = [*self.reports, f"{line} ({speed:.1f} tokens/s, start and proof output included)"]
        decode = self.record.decode_times
        if self.machine == "gvsoc" and self.record.prefill_time is not None:
            line = f"cycles: prefill {self.record.prefill_time}"
            line += f" ({self.record.prefill_time / prompt:.0f} per prompt token)"
            if decode:
                line += f", decode {sum(decode) / (new - 1):.0f} per token on average"
            out.append(line)
        if self.drafts is not None:
            out.append(self.drafts.line())
        if (profile := self._beside()) is not None:
            out += profile.lines()
        if self.verdict is None:
            out.append("not verified: --no-verify was given")
        else:
            word = "verified" if self.verdict.ok else "NOT verified"
            out.append(
                f"{word}: {self.verdict.compared} values compared, "
                f"{self.verdict.mismatched} mismatched"
            )
        return out

    def to_json(self) -> dict[str, object]:
        """The same for programs."""
        profile = self._beside()
        return {
            "target": self.machine,
            "model": self.manifest.model,
            "prompt_tokens": list(self.asked.prompt),
            "new_tokens": self.record.tokens,
            "text": self.text,
            "cycles": self.cycles,
            "profile": None if profile is None else profile.to_json(),
            "lookup": None if self.drafts is None else self.drafts.to_json(),
            "seconds": round(self.seconds, 3),
            "verdict": None if self.verdict is None else asdict(self.verdict),
        }


def _predicted(directory: Path, target: Target, asked: Request, record: Record) -> Predicted | None:
    prompt = len(asked.prompt)
    passes = record.passes or [Pass(1, 1)] * len(record.decode_times)
    starts = itertools.accumulate((p.kept for p in passes), initial=prompt)
    steps = [(p.tokens, at) for p, at in zip(passes, starts, strict=False)]
    return predicted_run(directory, load(directory / artifact.IR), target, prompt, steps)


def _target_for(directory: Path, manifest: artifact.Manifest, machine: Machine) -> Target:
    """What the program was compiled for; UsageError where that does not run on ``machine``."""
    target = TARGETS.get(manifest.target)
    if target is None:
        raise BadArtifact(
            f"{directory / artifact.MANIFEST} names the target '{manifest.target}', which is not "
            f"one of {', '.join(TARGETS)}.",
            "compile the model again.",
        )
    if machine not in target.runs_on:
        others = [t.name for t in TARGETS.values() if t.machine == machine]
        raise UsageError(
            f"{directory} was compiled for {target.name} and does not run on {machine}.",
            f"allowed: --on {' or '.join(target.runs_on)}; or compile the model with "
            f"--target {' or --target '.join(others)}.",
        )
    return target


def _profile(directory: Path, output: RunOutput, record: Record) -> Profile:
    """BadArtifact where the program knows of no profile, because an older shrinkc compiled it."""
    profile = read_profile(output.lines, record.prefill_time, record.decode_times)
    if profile is None:
        raise BadArtifact(
            f"{directory} gives no profile: it was compiled by a shrinkc that had none.",
            "compile the model again.",
        )
    return profile


def _check_room_for_lookup(directory: Path) -> None:
    """UsageError where a pass of the program has no room for a draft."""
    try:
        plan = json.loads((directory / artifact.PLAN).read_text(encoding="utf-8"))
        verified = int(plan["verified"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(
            f"{directory / artifact.PLAN} does not say how many tokens a pass can verify: {error}.",
            "compile the model again.",
        ) from error
    if verified < 2:
        raise UsageError(
            f"--lookup is not possible: a pass of {directory} has no room to verify a draft.",
            "leave it out; or compile the model with more --l1, a shorter --context, or --engines cores, "
            "whose head needs the least room.",
        )


def _drafts(directory: Path, record: Record) -> Drafts:
    """BadArtifact where the program knows of no lookup, because an older shrinkc compiled it."""
    if len(record.passes) != len(record.decode_times):
        raise BadArtifact(
            f"{directory} drafts nothing: it was compiled by a shrinkc that had no --lookup.",
            "compile the model again.",
        )
    return Drafts(tuple(record.passes))


def _reports(output: RunOutput) -> tuple[str, ...]:
    """What the platform said of itself, such as the stacks' depths of a build with STACKS=1."""
    return tuple(line for line in output.lines if line.startswith("platform: "))


def device_request(
    request: RunRequest, manifest: artifact.Manifest, tokenizer: Tokenizer
) -> Request:
    """What the device is asked; UsageError with the numbers where the context is too short."""
    if request.prompt_ids is not None:
        prompt = request.prompt_ids
        beyond = [i for i in prompt if not 0 <= i < manifest.vocab_size]
        if beyond:
            raise UsageError(
                f"--prompt-ids: {beyond[0]} is not a token of this model.",
                f"allowed: 0 to {manifest.vocab_size - 1}.",
            )
    elif request.chat:
        prompt = tuple(tokenizer.encode_chat(request.prompt or ""))
    else:
        prompt = tuple(tokenizer.encode(request.prompt or ""))
    if not prompt:
        raise UsageError(
            "the prompt has no tokens, and the model has no token to begin with.",
            "give a --prompt.",
        )
    room = manifest.context - len(prompt)
    if room < 1:
        raise UsageError(
            f"the prompt takes {len(prompt)} tokens and the program was compiled for a context of "
            f"{manifest.context}, which leaves no room for an answer.",
            f"use a prompt of at most {manifest.context - 1} tokens, or compile with a longer "
            "--context.",
        )
    tokens = min(DEFAULT_TOKENS, room) if request.tokens is None else request.tokens
    if not 1 <= tokens <= room:
        raise UsageError(
            f"--tokens {tokens} is not possible: the context of {manifest.context} less a prompt "
            f"of {len(prompt)} leaves {room}.",
            f"allowed: 1 to {room}; or compile with a longer --context.",
        )
    return Request(prompt, tokens, request.sampling, request.ignore_eos, request.lookup)


def _device_text(tokenizer: Tokenizer, prompt: tuple[int, ...], record: Record) -> str:
    """The prompt and what the device's own decode table made of the new tokens."""
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
        f"the program on {machine} ended with {output.exit_code} after {len(record.tokens)} "
        f"tokens; its last lines:\n{last}",
        "'--make SAN=1 --on host' builds a program that says where it went wrong.",
    )


def _look_closer(
    device: _Device, asked: Request, want: Record, graph: Graph, found: Difference
) -> Difference:
    """Runs again with every value of the layer whose hash differs, to name op and index."""
    if found.layer is None:
        return found
    try:
        again = device.run(asked, Trace.PROOF | Trace.DUMP, dump=(found.step, found.layer))
        dumps = parse(again.lines).dumps
    except ShrinkcError:
        return found  # the first run's word stands
    values = op_values(graph, asked, want, found.step, found.layer)
    return locate(dumps, values, graph, found.step, found.layer) or found


def _mismatch(machine: Machine, verdict: Verdict) -> Mismatch:
    if verdict.first_difference is None:
        return Mismatch(
            "nothing was compared, which proves nothing.", "ask for at least one new token."
        )
    d = verdict.first_difference
    layer = "" if d.layer is None else f", layer {d.layer}"
    return Mismatch(
        f"{verdict.mismatched} of {verdict.compared} values on {machine} differ from the "
        f"interpreter's, first at step {d.step}{layer}, {d.op}[{d.index}]: got {d.got}, expected "
        f"{d.expected}.",
        "if nothing in the directory was changed, this is a defect; please report it with the "
        "model and this command line.",
    )
