"""Result of a run: text, measurements and verification."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from shrinkc.core import artifact
from shrinkc.core.errors import Mismatch, UsageError
from shrinkc.core.words import show_rounded
from shrinkc.driver.asking import Machine
from shrinkc.driver.estimating import Predicted, profile_chart
from shrinkc.pictures.timeline import timeline
from shrinkc.simulate.profile import Profile
from shrinkc.simulate.proof import Pass, Record, Request, Verdict
from shrinkc.simulate.trace import Trace


@dataclass(frozen=True)
class Drafts:
    """Decode passes of a run with --prompt-lookup."""

    passes: tuple[Pass, ...]

    @property
    def drafted(self) -> int:
        """Total number of drafted tokens."""
        return sum(p.tokens - 1 for p in self.passes)

    @property
    def accepted(self) -> int:
        """Number of drafted tokens that were needed and right."""
        return sum(p.kept - 1 for p in self.passes)

    @property
    def tokens_per_pass(self) -> float:
        """Mean number of tokens per decode pass; 0 if the prefill gave all tokens."""
        return sum(p.kept for p in self.passes) / max(len(self.passes), 1)

    def line(self) -> str:
        """Return a summary."""
        return (
            f"prompt lookup: {self.tokens_per_pass:.2f} tokens per forward pass ({len(self.passes)} "
            f"passes), {self.accepted} of {self.drafted} drafted tokens accepted"
        )

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        return {
            "passes": len(self.passes),
            "drafted": self.drafted,
            "accepted": self.accepted,
            "tokens_per_pass": round(self.tokens_per_pass, 3),
        }


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        text: The prompt and the generated text.
        seconds: Wall-clock time, with start-up and the output for verification.
        verdict: ``compared`` values, ``mismatched`` among them, and ``ok``.  None without verification.
        profile: Cycles, instructions and stalls of each operation.  None without ``profile``.
        drafts: What prompt-lookup decoding drafted and accepted.  None without it.
        manifest: The manifest of the compiled directory.
        machine: Where it ran.
        asked: The request to the program.
        record: The program's output as values.
        reports: Lines that the platform printed about itself.
        changed: Files that differ from the compiled ones.
        heard: Seconds from the start to each token.
        predicted: The cost model's estimate of the profile, or None.
        trace: Times of each core and unit; its ``to_json()`` is a file for ui.perfetto.dev.  None
            without ``trace``.
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
    heard: tuple[float, ...] = ()
    predicted: Predicted | None = None
    trace: Trace | None = None

    def __repr__(self) -> str:
        proof = "not verified"
        if (v := self.verdict) is not None:
            proof = f"{v.compared} values checked, {v.mismatched} differ"
        new = len(self.record.tokens)
        return f"<RunResult {self.manifest.model} on {self.machine}: {new} new tokens, {proof}>"

    @property
    def prompt_tokens(self) -> list[int]:
        """Token ids of the prompt."""
        return list(self.asked.prompt)

    @property
    def cached_tokens(self) -> int:
        """Number of prompt tokens that were in the KV cache, from the conversation so far."""
        return self.asked.cached

    @property
    def new_tokens(self) -> list[int]:
        """Token ids that the program chose, with an end token."""
        return list(self.record.tokens)

    def check(self) -> None:
        """Check the verdict, if there is one.

        Raises:
            Mismatch: An integer differs, or nothing was compared.
        """
        if self.verdict is not None and not self.verdict.ok:
            raise _mismatch(self.machine, self.verdict)

    @property
    def cycles(self) -> dict[str, object] | None:
        """Simulated cycles of ``prefill`` and of each forward pass of ``decode``.  None except on gvsoc."""
        if self.machine != "gvsoc":
            return None
        return {"prefill": self.record.prefill_time, "decode": self.record.decode_times}

    @property
    def instructions(self) -> dict[str, object] | None:
        """Executed instructions of ``prefill`` and of each forward pass of ``decode``.  None except for a board's
        program on qemu, whose other programs have no clock."""
        if self.machine != "qemu" or not self.record.prefill_time:
            return None
        return {"prefill": self.record.prefill_time, "decode": self.record.decode_times}

    @property
    def speed(self) -> dict[str, dict[str, float] | None] | None:
        """Tokens per second of wall-clock time.  None on gvsoc.

        ``prefill`` includes start-up and the first new token, ``decode`` has the tokens after it, or is
        None.  Both include the output for verification.
        """
        if self.machine == "gvsoc" or not self.heard:
            return None

        def part(tokens: int, seconds: float) -> dict[str, float]:
            rate = tokens / max(seconds, 1e-9)
            return {
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(rate, 1),
            }

        first, last, more = self.heard[0], self.heard[-1], len(self.heard) - 1
        return {
            "prefill": part(len(self.asked.prompt) - self.cached_tokens, first),
            "decode": part(more, last - first) if more else None,
        }

    @property
    def hook_interval(self) -> int | None:
        """Longest time between two calls of the layer hook, in simulated cycles.  None if it was not measured."""
        return self.record.hook_interval

    def _beside(self) -> Profile | None:
        """Return the profile with estimates."""
        if self.profile is None or self.predicted is None:
            return self.profile
        return self.profile.with_predictions(*self.predicted.ops())

    def timeline(self) -> str:
        """Return the profile as SVG.

        Raises:
            UsageError: The run had no profile.
        """
        if self.profile is None:
            raise UsageError("a timeline needs a profile.", "add --profile.")
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
        """Return a summary: the platform's reports, times or cycles, and the verification."""
        new, prompt = len(self.record.tokens), len(self.asked.prompt)
        cached = f" ({self.cached_tokens} in the KV cache)" if self.cached_tokens else ""
        head = f"{self.machine}: {prompt} prompt tokens{cached}, {new} new tokens"
        if self.machine == "gvsoc":
            out = [*self.reports, f"{head}, {self.seconds:.0f} s of simulation"]
        else:
            rates = [
                f"{name} {show_rounded(part['tokens_per_second'])} tokens/s"
                for name, part in (self.speed or {}).items()
                if part is not None
            ]
            parts = ["start-up"] * (not self.asked.more)
            parts += ["output for verification"] * (self.verdict is not None)
            what = f" with {' and '.join(parts)}" if parts else ""
            out = [*self.reports, f"{head}, {self.seconds:.2f} s{what}"]
            if rates:
                out.append(", ".join(rates))
        if (prefill := self.record.prefill_time) and self.machine in ("gvsoc", "qemu"):
            unit = "cycles" if self.machine == "gvsoc" else "instructions"
            fed = prompt - self.cached_tokens
            line = f"prefill {prefill / fed:,.0f} {unit} per token"
            if decode := self.record.decode_times:
                line += f", decode {sum(decode) / (new - 1):,.0f} {unit} per token"
            out.append(f"{line} ({'GVSoC, a simulator' if self.machine == 'gvsoc' else 'QEMU'})")
        if self.hook_interval is not None:
            out.append(
                f"longest time between two calls of the layer hook: {self.hook_interval:,} cycles"
            )
        if self.drafts is not None:
            out.append(self.drafts.line())
        if (profile := self._beside()) is not None:
            out += profile.lines()
        if self.trace is not None:
            out += self.trace.lines()
        return [*out, self._verified()]

    def _verified(self) -> str:
        """Return a line about the comparison with the interpreter."""
        verdict, new = self.verdict, len(self.record.tokens)
        if verdict is None:
            return "not verified (--no-verify)"
        if not verdict.ok:
            return f"NOT verified: {verdict.mismatched:,} of {verdict.compared:,} values differ"
        what = "all layer outputs, logits and tokens equal the reference interpreter's"
        if verdict.every > 1:
            asked = len(range(0, new - 1, verdict.every)) + 1
            what = (
                f"all layer outputs, and logits and choice of {asked} of {new} tokens "
                f"(--verify every:{verdict.every}), equal the reference interpreter's"
            )
        return f"verified bit for bit: {what} ({verdict.compared:,} values checked)"

    def to_json(self) -> dict[str, object]:
        """Return the object that ``--json`` prints."""
        profile = self._beside()
        return {
            "target": self.machine,
            "model": self.manifest.model,
            "prompt_tokens": list(self.asked.prompt),
            "new_tokens": self.record.tokens,
            "text": self.text,
            "cycles": self.cycles,
            "instructions": self.instructions,
            "hook_interval": self.hook_interval,
            "profile": None if profile is None else profile.to_json(),
            "prompt_lookup": None if self.drafts is None else self.drafts.to_json(),
            "seconds": round(self.seconds, 3),
            "speed": self.speed,
            "verdict": None if self.verdict is None else asdict(self.verdict),
        }


def _mismatch(machine: Machine, verdict: Verdict) -> Mismatch:
    if verdict.first_difference is None:
        return Mismatch(
            "nothing was compared, so nothing is verified.", "ask for at least one new token."
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
