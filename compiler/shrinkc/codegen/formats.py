"""formats.h: which storage formats a program's matrices have, and how C names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from shrinkc.ir.linear import QLinear
from shrinkc.storage import format_of

MOST = 4  # formats with code of their own, each up to 1.2 KB of the 32 KB for hot code (link.ld)

_ONE_BY_ONE = "8 | SC_FMT_Q16"  # for several tokens sc_matrix_tile is as good: sc_for_several()


def c_format(w: QLinear) -> str:
    """A matrix's ``sc_matrix.format``, as a C expression."""
    flags = (
        ("SC_FMT_GROUPED", w.d is not None),
        ("SC_FMT_ASYM", w.b is not None),
        ("SC_FMT_ZEROS", w.zero_points),
        ("SC_FMT_Q16", w.x_bits > 0),
    )
    return " | ".join([str(w.bits), *(name for name, on in flags if on)])


def flat_format(
    candidates: Sequence[QLinear], formats: Collection[str]
) -> tuple[str, list[QLinear]]:
    """The format that has code of its own for groups' sums of 16 bits, or "", and the matrices that it runs.

    ``candidates``: matrices in which every group has such a sum (MatrixShape.flat); ``formats``: all that are
    compiled.  What is not folded must be rounded all the same, and offsets must have a negative in 16 bits.  It is
    one format, of the most weights, and only beside few others, for the place that hot code has.
    """
    able = [w for w in candidates if w.drop > 0]
    least = min((int(w.b.min()) for w in able if w.b is not None), default=0)
    if not able or len(formats) > MOST or least == np.iinfo(np.int16).min:
        return "", []
    weights: Counter[str] = Counter()
    for w in able:
        weights[c_format(w)] += w.q.size
    name = max(weights, key=lambda each: (weights[each], each))
    return name, [w for w in able if c_format(w) == name]


def formats_header(
    formats: Iterable[str], widths: Iterable[int], command: str, adapter: str | None = None
) -> str:
    """The text of formats.h, which sc_dot.h includes.

    ``formats``: what c_format() says of the matrices that travel as tiles or hold embedding rows;
    ``widths``: of all matrices; ``adapter``: what c_format() says of the adapters' second matrices.  Nothing is
    compiled of others: code that is never run would crowd the instruction cache.  More than MOST formats share
    their code.
    """
    stored = [format_of(bits) for bits in sorted(set(widths), reverse=True)]
    includes = "".join(f'#include "sc_dot_w{f.bits}.h"\n' for f in stored)
    each_width = " ".join(f"X({f.bits}, {f.inputs}, {f.fold})" for f in stored)
    named = sorted(set(formats))
    each_format = " ".join(f"X({f})" for f in named)
    several = [name for name in named if name != _ONE_BY_ONE]
    flags = (
        "\n/* flags of some, and of all, formats used with several tokens at once */\n"
        f"#define SC_SEVERAL_SOME ({' | '.join(several)})\n"
        f"#define SC_SEVERAL_ALL ({' & '.join(f'({name})' for name in several)})\n"
    )
    of_adapters = (
        f"/* of the adapters' second matrices */\n#define SC_ADAPTER_FORMAT ({adapter})\n"
        if adapter
        else ""
    )
    listed = f"/* X(sc_matrix.format) */\n#define SC_EACH_FORMAT(X) {each_format}\n"
    return (
        f"/* {command}\n * SPDX-License-Identifier: Apache-2.0\n"
        " * Weight formats of this model; included by sc_dot.h. */\n"
        f"{includes}\n"
        "/* X(bits, inputs per packed word, log2 of the factor of sums) */\n"
        f"#define SC_EACH_WIDTH(X) {each_width}\n"
        f"{listed if len(named) <= MOST else ''}"
        f"{of_adapters}"
        f"{flags if several else ''}"
    )
