"""Requests of a run: from option values to the input words of the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from shrinkc.abi import LOOKUP_MAX
from shrinkc.build.make import OPTIONS
from shrinkc.core import artifact
from shrinkc.core.errors import UsageError
from shrinkc.core.words import listed
from shrinkc.importer import Tokenizer, Tool
from shrinkc.numerics.sampling import TOP_P_ONE, Sampling
from shrinkc.simulate.proof import Request
from shrinkc.targets import MACHINES, TARGETS

Machine = Literal["host", "qemu", "gvsoc"]

DEFAULT_TOKENS = 64
TIMEOUT = {"host": 600.0, "qemu": 600.0, "gvsoc": 7200.0}
TEMPERATURES = (0.02, 100.0)
SEED_MAX = (1 << 32) - 1
PROFILED = "gvsoc"


@dataclass(frozen=True)
class RunRequest:
    """Options of :func:`shrinkc.run`, by name; ``machine`` is its ``on``.

    ``verify``: 0: nothing; 1: every integer; N: logits and the chosen token only for every Nth token.
    ``trace``: only with ``profile``.  ``hook_interval``: only on gvsoc, without ``verify`` and ``profile``.
    ``tools``: of a prompt in the chat template, or of a conversation.
    """

    machine: Machine
    prompt: str | None = None
    chat: bool = False
    prompt_ids: Sequence[int] | None = None
    tokens: int | None = None
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    ignore_eos: bool = False
    verify: int = 1
    make_options: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    profile: bool = False
    prompt_lookup: int | None = None
    trace: bool = False
    hook_interval: bool = False
    tools: Sequence[Tool] | None = None

    def __post_init__(self) -> None:
        """Raise UsageError if a value is not possible."""
        if self.machine not in MACHINES:
            raise UsageError(
                f"--on {self.machine} is not possible.", f"allowed: {', '.join(MACHINES)}."
            )
        if self.prompt is not None and self.prompt_ids is not None:
            raise UsageError(
                "--prompt and --prompt-ids cannot be used together.", "give one of them."
            )
        if self.chat and self.prompt is None:
            raise UsageError("--chat needs a message.", "give one with --prompt TEXT.")
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError(
                f"--timeout {self.timeout:g} is not possible.",
                "allowed: seconds above 0, or inf for no limit.",
            )
        if self.verify < 0:
            raise UsageError(
                f"--verify every:{self.verify} is not possible.",
                "allowed: all, or every:N with N of at least 1; --no-verify turns verification off.",
            )
        if self.profile and self.machine != PROFILED:
            option = "--trace" if self.trace else "--profile"
            raise UsageError(
                f"{option} is not possible on {self.machine}: only the simulator {PROFILED} counts cycles.",
                f"add --on {PROFILED}, or leave {option} out.",
            )
        if self.hook_interval:
            self._check_hook_interval()
        if self.prompt_lookup is not None:
            _check_lookup(self.prompt_lookup, self.temperature)
        make = self.make_options
        cores, most = make.get("CORES", "1"), max(t.cores for t in TARGETS.values())
        if not (cores.isascii() and cores.isdecimal() and 1 <= int(cores[:9]) <= most):
            raise UsageError(f"--make CORES={cores} is not possible.", f"allowed: 1 to {most}.")
        if wrong := [name for name in make if name not in OPTIONS]:
            raise UsageError(
                f"--make {wrong[0]}={make[wrong[0]]} is not possible.",
                f"allowed: {'=, '.join(OPTIONS)}=.",
            )
        _ = self.sampling

    def _check_hook_interval(self) -> None:
        if self.machine != PROFILED:
            raise UsageError(
                f"--hook-interval is not possible on {self.machine}: only the simulator {PROFILED} counts cycles.",
                f"add --on {PROFILED}, or leave --hook-interval out.",
            )
        if self.verify or self.profile:
            other = "--profile or --trace" if self.profile else "verification"
            raise UsageError(
                f"--hook-interval is not possible with {other}, whose output takes time between two calls of the hook.",
                "leave them out."
                if self.profile
                else "add --no-verify; or leave --hook-interval out.",
            )

    @cached_property
    def sampling(self) -> Sampling:
        """Return the sampling settings in the device's fixed-point numbers."""
        return sampling_of(self.temperature, self.top_p, self.seed)

    def asked(self, prompt: Sequence[int], tokens: int) -> Request:
        """Return the request to continue ``prompt`` with at most ``tokens``."""
        return Request(
            tuple(prompt), tokens, self.sampling, self.ignore_eos, self.prompt_lookup or 0
        )

    def notes(self) -> list[str]:
        """Return notes about effects that the user may not expect."""
        sampling = self.sampling
        if sampling.inv_temp_q16:
            return []
        given = {"--seed": sampling.seed != 0, "--top-p": sampling.top_p_q16 != TOP_P_ONE}
        idle = [name for name, changed in given.items() if changed]
        if not idle:
            return []
        does = "does" if len(idle) == 1 else "do"
        return [
            f"note: {listed(idle)} {does} nothing at temperature 0, which takes the most probable token"
        ]


def _check_lookup(lookup: int, temperature: float) -> None:
    if not 1 <= lookup <= LOOKUP_MAX:
        raise UsageError(
            f"--prompt-lookup {lookup} is not possible.",
            f"allowed: 1 to {LOOKUP_MAX} tokens; or leave it out for ordinary decoding.",
        )
    if temperature != 0:
        raise UsageError(
            f"--prompt-lookup is not possible with --temperature {temperature:g}.",
            "give --temperature 0, or leave --prompt-lookup out.",
        )


def sampling_of(temperature: float, top_p: float, seed: int) -> Sampling:
    """Return the device's fixed-point numbers.  Raises UsageError outside their ranges."""
    low, high = TEMPERATURES
    if not (temperature == 0 or low <= temperature <= high):
        raise UsageError(
            f"--temperature {temperature:g} is not possible.",
            f"allowed: 0 (the most probable token) or {low:g} to {high:g}.",
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


def device_request(
    request: RunRequest, manifest: artifact.Manifest, tokenizer: Tokenizer
) -> Request:
    """Return the request for the device.  Raises UsageError, with the numbers, if the context is too short."""
    if request.tools is not None and not request.chat:
        raise UsageError("--tools needs the model's chat template.", "add --chat.")
    if request.prompt_ids is not None:
        prompt = tuple(request.prompt_ids)
        beyond = [i for i in prompt if not 0 <= i < manifest.vocab_size]
        if beyond:
            raise UsageError(
                f"--prompt-ids: {beyond[0]} is not a token of this model.",
                f"allowed: 0 to {manifest.vocab_size - 1}.",
            )
    elif request.chat:
        if tokenizer.chat is not None:
            tokenizer.chat.check_tools(request.tools)
        prompt = tuple(tokenizer.encode_chat(request.prompt or "", tools=request.tools))
    else:
        prompt = tuple(tokenizer.encode(request.prompt or ""))
    if not prompt:
        raise UsageError(
            "the prompt is empty, and this model has no token to start with.",
            "give a --prompt.",
        )
    room = manifest.context - len(prompt)
    if room < 1:
        raise UsageError(
            f"the prompt takes {len(prompt)} tokens and the program's context has {manifest.context}, which leaves no "
            "room for an answer.",
            f"use a prompt of at most {manifest.context - 1} tokens, or compile with a longer "
            "--context.",
        )
    tokens = min(DEFAULT_TOKENS, room) if request.tokens is None else request.tokens
    if not 1 <= tokens <= room:
        raise UsageError(
            f"--tokens {tokens} is not possible: a prompt of {len(prompt)} tokens leaves {room} of "
            f"the context of {manifest.context}.",
            f"allowed: 1 to {room}; or compile with a longer --context.",
        )
    return request.asked(prompt, tokens)
