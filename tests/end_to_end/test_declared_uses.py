"""Each step touches the L1 buffers that its op declares, all of them, and nothing else of the arena.

The planner and the verifier believe what ops say of their buffers. Here the address sanitizer watches: while
a step runs, all of the arena is poisoned but the buffers of its uses.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from shrinkc.abi import Trace
from shrinkc.importer import FloatModel
from shrinkc.ir.steps import PassSizes
from shrinkc.memory.plan import planned_sizes
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import ModelShape
from shrinkc.simulate import run_program
from shrinkc.simulate.proof import Request, compare, parse, reference
from shrinkc.targets import KIB, SIRACUSA

from .programs import ENV, Program, add_adapters, compile_graph, need, shape_of, smallest_l1

# to the end of the context, where the cache has outgrown any part of it that is in L1
REQUEST = Request((1, 5, 9, 100, 7, 2, 44, 12, 3, 80, 6), 53, ignore_eos=True)

WATCH = """/* SPDX-License-Identifier: Apache-2.0 */
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include "sc_platform.h"
#include "sc_runtime.h"

typedef struct { int step; uint32_t at, bytes; } span;
static const span spans[] = { %(spans)s };

/* All but the spans of a step, and of these not the one whose number the environment has. */
void watch(int step);
void watch(int step) {
    const char *without = getenv("SC_WITHOUT");
    if (step < 0) { /* after a step */
        ASAN_UNPOISON_MEMORY_REGION(sc_arena, SC_ARENA_BYTES);
        return;
    }
    ASAN_POISON_MEMORY_REGION(sc_arena, SC_ARENA_BYTES);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < (int)(sizeof spans / sizeof *spans); i++) {
            const int out = without && atoi(without) == i;
            if (spans[i].step != step || out != pass) continue;
            if (out)
                ASAN_POISON_MEMORY_REGION(sc_arena + spans[i].at, spans[i].bytes);
            else
                ASAN_UNPOISON_MEMORY_REGION(sc_arena + spans[i].at, spans[i].bytes);
        }
}

"""


@dataclass(frozen=True)
class Watched:
    """A program, and what is watched in it: (step, buffer), in the order of the spans."""

    program: Program
    uses: list[tuple[str, str]]

    def run(self, without: int = -1) -> tuple[int, list[str], list[str]]:
        words = REQUEST.words(self.program.graph.context, Trace.PROOF)
        env = {**ENV, "SC_WITHOUT": str(without), "ASAN_OPTIONS": "symbolize=0"}
        done = run_program(self.program.out, "host", words, env=env, timeout_s=60)
        return done.exit_code, done.lines, done.errors


def declared(sizes: PassSizes) -> Iterator[tuple[int, str, str]]:
    """(number, name, buffer) of the uses of a layer's steps, each buffer once per step."""
    inside = [step for step in sizes.steps if step.in_layer]
    for number, step in enumerate(inside):
        for buffer in dict.fromkeys(use.buffer for use in step.op.uses(step, sizes)):
            yield number, step.name, buffer


def watched(program: Program) -> Watched:
    """Puts a function that watches before each step, and builds."""
    sizes = planned_sizes(program.shape, SIRACUSA, program.plan)
    uses = list(declared(sizes))
    forward = program.out / "src" / "forward.c"
    workers, rest = forward.read_text().split("#if SC_TEAM > SC_CORES", 1)
    numbers = itertools.count()
    workers = re.sub(
        r"^( +sc_step_\w+\(.*\);)(.*)$",
        lambda call: f"watch({next(numbers)});{call[1]} watch(-1);{call[2]}",
        workers,
        flags=re.MULTILINE,
    )
    assert next(numbers) == len({number for number, _, _ in declared(sizes)})
    forward.write_text("void watch(int step);\n" + workers + "#if SC_TEAM > SC_CORES" + rest)
    spans = ", ".join(f"{{{n}, SC_AT_{b.upper()}, SC_BYTES_{b.upper()}}}" for n, _, b in uses)
    source = WATCH % {"spans": spans}
    (program.out / "src" / "watch.c").write_text(source)
    return Watched(program.build("host", SAN="1"), [(name, buffer) for _, name, buffer in uses])


KINDS: dict[str, Callable[[PassSizes], bool]] = {
    "in L1": lambda sizes: sizes.kv_in_l1 and sizes.logits_in_l1,
    "a layer's cache in L1": lambda sizes: sizes.kv_layer_in_l1,
    # as long as the prompt and a few tokens more, or no cache that is there is ever read
    "a part of it in L1": lambda sizes: sizes.kv_window >= 4 and not sizes.kv_layer_in_l1,
    "pieces of the cache in L1": lambda sizes: not (sizes.kv_in_l1 or sizes.kv_window),
}


def budget_with(shape: ModelShape, kind: Callable[[PassSizes], bool]) -> int:
    """One for which a plan is of that kind: all of L1, the least, or one up to 64 KiB, in large steps first."""
    least = smallest_l1(shape)
    steps = itertools.chain.from_iterable(
        range(64 * KIB, least, -n) for n in (4 * KIB, KIB, 256, 64)
    )
    for budget in dict.fromkeys((SIRACUSA.l1, least, *steps)):
        if kind(planned_sizes(shape, SIRACUSA, make_plan(shape, SIRACUSA, budget))):
            return budget
    raise AssertionError("no budget makes such a plan")


@pytest.fixture(scope="module", params=list(KINDS))
def made(
    request: pytest.FixtureRequest,
    story_model: FloatModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Watched:
    """With adapters and zero points: every buffer there is but "split", which one core has no use for."""
    need("host")
    add_adapters(story_model, {"q_proj": 2, "o_proj": 3, "up_proj": 1, "down_proj": 5})
    options = QuantOptions(bits=4, group_size=20, asymmetric=True, short_last_group=True)
    graph = lower(story_model, options, 64)
    for layer in story_model.layers:
        layer.adapters.clear()
    budget = budget_with(shape_of(graph, story_model), KINDS[request.param])
    program = compile_graph(
        graph, story_model, tmp_path_factory.mktemp("watched") / "out", SIRACUSA, budget
    )
    assert KINDS[request.param](planned_sizes(program.shape, SIRACUSA, program.plan))
    return watched(program)


@pytest.mark.slow
def test_no_step_touches_more(made: Watched) -> None:
    code, lines, errors = made.run()
    assert code == 0, errors[:20]
    graph = made.program.graph
    verdict = compare(parse(lines), reference(graph, REQUEST), graph)
    assert verdict.ok and verdict.compared > 1000


@pytest.mark.slow
def test_every_step_touches_all_of_them(made: Watched) -> None:
    """Without one of them the run ends where the step reaches for it; but one core has whole tokens to quantise, and no
    parts of them."""
    idle = []
    for i, (step, buffer) in enumerate(made.uses):
        code, _, errors = made.run(without=i)
        if code == 0 or not any("use-after-poison" in line for line in errors):
            idle.append(f"{buffer} of {step}")
    assert len(made.uses) > 60
    vectors, sides = ("attn_in.q", "o_in.q", "mlp_in.q", "down_in.q"), ("qkv", "mid", "h", "out")
    assert idle == [
        f"parts of {step}" for pair in zip(vectors, sides, strict=True) for step in pair
    ]
