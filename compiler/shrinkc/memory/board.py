"""The flash of a board: weights, tables and all other constants, which the core reads in place, and the code."""

from __future__ import annotations

from dataclasses import replace

from shrinkc.core.errors import DoesNotFit, Lack
from shrinkc.memory.lower import Arrangement
from shrinkc.memory.parts import (
    Buffer,
    Placement,
    Table,
    align,
    key_order_bytes,
    layer_table_bytes,
    norm_weight_bytes,
    norm_weights_in_l1,
    post_norm_bytes,
    table_sizes,
)
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import MAPPED, Target


def constants(s: ModelShape, t: Target) -> dict[str, int]:
    """Return the bytes of each part of flash besides weights and tables."""
    found = {
        "code": t.l2_system,
        "layer table": layer_table_bytes(s),  # with norm weights if they are few
        "gains": 0 if norm_weights_in_l1(s) else norm_weight_bytes(s),
        "permutations": 2 * s.perms,
        "biases": 4 * s.biases,
        "norms after blocks": post_norm_bytes(s),
        "key orders": key_order_bytes(s),
        "head gains": 4 * s.head_dim * s.num_layers if s.head_norms else 0,
    }
    return {name: align(size) for name, size in found.items() if size}


def in_flash(s: ModelShape, t: Target) -> Arrangement:
    """Place tables, then matrices in the order of a pass.  Equal matrices have one place.

    Raises DoesNotFit with the bytes that flash would need in all.
    """
    end, tables = 0, list[Table]()
    for name, size in table_sizes(s).items():
        tables.append(Table(name, MAPPED, end, size))
        end += size
    placed, owners = dict[str, Placement](), dict(s.shared)
    for m in s.matrices:
        if m.name in owners:
            placed[m.name] = replace(placed[owners[m.name]], name=m.name)
            continue
        at = align(end, m.store.align)
        placed[m.name] = Placement(
            m.name, MAPPED, at, m.bytes, m.block_bytes, m.blocks, m.blocks, m.engine
        )
        end = at + align(m.bytes)
    others = constants(s, t)
    need, have = end + sum(others.values()), t.room(MAPPED)
    if need > have:
        held = [*others.items(), *((x.name, x.bytes) for x in tables)]
        held += [(m.name, m.bytes) for m in s.stored]
        largest = sorted(held, key=lambda item: -item[1])[:3]
        raise DoesNotFit.of(Lack(MAPPED, need, have, tuple(largest), name=t.kind(MAPPED).label))
    always = tuple(range(len(s.steps)))
    return Arrangement(
        placements=list(placed.values()), tables=tables, kv_layers={},
        buffers=[Buffer(name, MAPPED, size, always) for name, size in others.items()],
        used={MAPPED: need}, stage_bytes=0, embed_stage=0, table_stage=0, fetched=0,
    )  # fmt: skip
