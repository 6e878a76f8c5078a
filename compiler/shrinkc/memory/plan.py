"""The memory plan: what lies where, for how long, and how weights travel.

L1 holds one arena.  Its buffers have lifetimes over the phases of a pass (PHASES) and buffers
that are never live together may share bytes.  Weight matrices fill the weight memory in the order
they are read, then L2, then off-chip flash; every matrix is cut into tiles of whole row blocks
that fit the two L1 tile buffers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from shrinkc.core.errors import DoesNotFit, Lack
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import MatrixShape
from shrinkc.targets import KIB, Target

PLAN_VERSION = 2

PHASES = (
    "embed", "attn_norm", "qkv", "heads", "attention", "o_quant", "o", "mlp_norm", "gate_up",
    "down_quant", "down", "final_norm", "head", "sample",
)  # fmt: skip
ALWAYS = (0, len(PHASES) - 1)

CHUNKS = (8, 4, 2, 1)
TILE_CAP = 32 * KIB  # beyond this a larger tile saves nothing measurable
TILE_ROUND = 8  # row blocks: one per core
KV_TILE_CAP = 16 * KIB
ALIGN = 16
GAINS_L1_MAX = 4 * KIB
LEVELS = ("wmem", "l2", "flash")


def align(n: int, to: int = ALIGN) -> int:
    return -(-n // to) * to


@dataclass(frozen=True)
class Buffer:
    """A region of one memory: live in phases first..last, at ``offset`` in its arena."""

    name: str
    level: str
    bytes: int
    first: int
    last: int
    offset: int = -1


@dataclass(frozen=True)
class Placement:
    """Where one matrix is stored and how it is cut.  Equal matrices have one place (ModelShape.shared)."""

    name: str
    level: str
    offset: int
    bytes: int
    block_bytes: int
    blocks: int
    tile_blocks: int


@dataclass
class Plan:
    """A complete, checkable answer.  ``used`` and ``capacity`` in bytes per level."""

    target: str
    context: int
    l1_budget: int
    chunk: int
    tile_bytes: int
    kv_in_l1: bool
    kv_tile_blocks: int
    logits_in_l1: bool
    stage_bytes: int
    embed_stage: int
    l1: list[Buffer]
    l2: list[Buffer]
    placements: list[Placement]
    used: dict[str, int]
    capacity: dict[str, int]
    version: int = PLAN_VERSION
    notes: list[str] = field(default_factory=list)

    @property
    def arena_bytes(self) -> int:
        return max(b.offset + b.bytes for b in self.l1)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class KvShape:
    """Sizes of the KV cache's blocks of 4 positions; the C twin is sc_attention.h."""

    k_block: int
    v_block: int
    blocks: int

    @classmethod
    def of(cls, s: ModelShape) -> KvShape:
        padded = -(-s.head_dim // 4) * 4
        return cls(4 * s.kv_heads * (4 + padded), 4 * s.kv_heads * s.head_dim, -(-s.context // 4))


def _skewed(size: int) -> int:
    """The least size that is 12 more than a multiple of 64: neighbours start in other L1 banks, so
    that cores in step do not meet in one."""
    return -(-(size - 12) // 64) * 64 + 12


def head_scratch_bytes(context: int) -> int:
    """sizeof(sc_head_scratch): a score and a weight of 16 bits per position."""
    return _skewed(-(-context // 4) * 4 * 6 + 12)


def head_state_bytes(head_dim: int) -> int:
    """sizeof(sc_head_state)."""
    return _skewed(16 + 4 * (-(-head_dim // 4) * 4))


# sizeof in C: of sc_qvec on a 64-bit host (20 on the 32-bit targets), the others in the targets' L1;
# _Static_asserts hold all of them
QVEC_BYTES = 32
MATRIX_BYTES = 48
TABLE_BYTES = 2560  # of the sigmoid and exp2


def l1_buffers(
    s: ModelShape, t: Target, chunk: int, tile: int, kv_l1: bool, kv_tile: int, logits_l1: bool
) -> list[Buffer]:
    """Every L1 buffer with its lifetime, not yet placed.  Names become SC_AT_<NAME>."""
    p = {name: i for i, name in enumerate(PHASES)}
    inputs = [m for m in s.matrices if not m.name.endswith("embedding")]
    words = max(m.words for m in inputs)
    nseg = max(m.nseg for m in inputs)
    x_blocks = max([m.x_blocks for m in inputs] + [m.side.x_blocks for m in inputs if m.side])
    ranks = [m.rank for m in inputs]
    rank = max(ranks)
    padded = -(-s.head_dim // 4) * 4
    kv = KvShape.of(s)

    def b(name: str, size: int, first: str | None = None, last: str | None = None) -> Buffer:
        return Buffer(
            name, "l1", align(size),
            ALWAYS[0] if first is None else p[first], ALWAYS[1] if last is None else p[last],
        )  # fmt: skip

    out = [
        b("tiles", 2 * tile, "embed", "head"),
        b("x", 4 * chunk * s.hidden, "embed", "final_norm"),
        b("y", 4 * chunk * y_words(s), "attn_norm", "final_norm"),
        b("xq", 4 * chunk * words, "attn_norm", "head"),
        b("xc", 4 * chunk * nseg, "attn_norm", "head"),
        b("xv", QVEC_BYTES * chunk),
        b("block_max", 4 * chunk * x_blocks, "attn_norm", "final_norm"),
        b("parts", 16 * chunk * t.cores, "attn_norm", "final_norm"),
        b("rope", 2 * chunk * s.head_dim, "embed", "down"),
        b("q8", chunk * s.heads * padded, "heads", "attention"),
        b("q_scale", 4 * chunk * s.heads, "heads", "attention"),
        b("head_scratch", t.cores * head_scratch_bytes(s.context), "attention", "attention"),
        b("head_state", t.cores * head_state_bytes(s.head_dim), "attention", "attention"),
        b("head_work", 4 * t.cores * s.head_dim, "heads", "heads"),
    ]
    if any(m.asymmetric for m in inputs):
        out.append(b("xsum", 4 * chunk * nseg, "attn_norm", "head"))
    if rank:
        sides = [m.side for m in inputs if m.side]
        out += [
            b("sy", 4 * chunk * rank, "qkv", "down"),
            b("sq", 4 * chunk * max(m.words for m in sides), "qkv", "down"),
            b("sc", 4 * chunk * max(m.nseg for m in sides), "qkv", "down"),
            b("sv", QVEC_BYTES * chunk),
        ]
    if kv_l1:
        out += [
            b("k_cache", s.num_layers * kv.blocks * kv.k_block),
            b("v_cache", s.num_layers * kv.blocks * kv.v_block),
        ]
    else:
        size = 2 * align(kv_tile * max(kv.k_block, kv.v_block))
        out.append(b("kv_tile", size, "attention", "attention"))
    if logits_l1:
        out.append(b("logits", 4 * s.vocab, "head", "sample"))
    return out


def y_words(s: ModelShape) -> int:
    """Width of the shared fixed-point buffer."""
    qkv = next(m for m in s.layers[0] if m.name.endswith(".qkv")).rows
    return max(qkv, s.heads * s.head_dim, -(-s.ffn // 4) * 4, s.hidden)


def place(buffers: list[Buffer]) -> list[Buffer]:
    """First fit, largest first: the lowest offset free during a buffer's whole life."""
    placed: list[Buffer] = []
    for b in sorted(buffers, key=lambda b: (-b.bytes, b.name)):
        at = 0
        rivals = sorted(
            (q for q in placed if q.first <= b.last and b.first <= q.last), key=lambda q: q.offset
        )
        for q in rivals:
            if at + b.bytes <= q.offset:
                break
            at = max(at, q.offset + q.bytes)
        placed.append(Buffer(b.name, b.level, b.bytes, b.first, b.last, at))
    return sorted(placed, key=lambda b: (b.offset, b.name))


def _arena(buffers: list[Buffer]) -> int:
    return max(b.offset + b.bytes for b in place(buffers))


def tile_blocks(m: MatrixShape, tile_bytes: int) -> int:
    """Row blocks per tile: a multiple of the cores where possible, tiles of a matrix alike."""
    most = max(1, min(m.blocks, tile_bytes // m.block_bytes))
    if most >= m.blocks or most < TILE_ROUND:
        return most
    count = -(-m.blocks // (most // TILE_ROUND * TILE_ROUND))
    even = align(-(-m.blocks // count), TILE_ROUND)
    return even if even * m.block_bytes <= tile_bytes else most // TILE_ROUND * TILE_ROUND


def _choose_l1(s: ModelShape, t: Target, total: int) -> tuple[int, int, bool, int, bool]:
    """(chunk, tile bytes, kv in L1, kv tile blocks, logits in L1) for the best use of L1.

    Preferences in order: KV cache and logits in L1, then long prefill chunks, then large tiles.
    Raises DoesNotFit when not even the smallest of everything fits.
    """
    overhead = t.l1_system + layer_table_bytes(s)
    budget = total - overhead
    kv = KvShape.of(s)
    block = max(m.block_bytes for m in s.matrices)
    want = min(TILE_CAP, max(m.bytes for m in s.matrices))
    want = max(align(want), align(block))
    kv_tiles = max(1, min(kv.blocks, KV_TILE_CAP // max(kv.k_block, kv.v_block)))

    def tile_for(chunk: int, kv_l1: bool, kv_tile: int, logits_l1: bool, least: int) -> int:
        """Largest tile of at least ``least`` bytes that fits beside the rest, or 0."""

        def fits(tile: int) -> bool:
            return _arena(l1_buffers(s, t, chunk, tile, kv_l1, kv_tile, logits_l1)) <= budget

        if not fits(least):
            return 0
        free = budget - _arena(l1_buffers(s, t, chunk, 0, kv_l1, kv_tile, logits_l1))
        tile = max(least, min(want, free // 2 // ALIGN * ALIGN))
        while not fits(tile):  # a larger tile may push others further than its own size
            tile = max(least, tile - 16 * ALIGN)
        return tile

    comfortable = min(want, max(align(block), 8 * KIB, align(TILE_ROUND * block)))
    for enough in (comfortable, align(block)):
        for kv_l1, logits_l1 in ((True, True), (False, True), (False, False)):
            for chunk in CHUNKS if kv_l1 or enough == comfortable else CHUNKS[::-1]:
                for kv_tile in (kv_tiles, 1):
                    tile = tile_for(chunk, kv_l1, kv_tile, logits_l1, enough)
                    if tile >= enough:
                        return chunk, tile, kv_l1, kv_tile, logits_l1
    least = place(l1_buffers(s, t, 1, align(block), False, 1, False))
    need = max(b.offset + b.bytes for b in least) + overhead
    top = sorted(least, key=lambda b: -b.bytes)[:3]
    raise DoesNotFit.of(Lack("l1", need, total, tuple((b.name, b.bytes) for b in top)))


def _l2_fixed(s: ModelShape, t: Target, kv_l1: bool, logits_l1: bool) -> list[tuple[str, int]]:
    """(name, bytes) of what L2 holds beside weights and what comes from flash."""
    fixed = [
        ("code and stacks", t.l2_system),
        ("layer table", layer_table_bytes(s)),
        ("rope table", 2 * s.context * s.head_dim),
        ("pieces", 4 * (s.vocab + 1) + s.piece_bytes),
        ("input", 4 * (16 + s.context)),
        ("gains", gain_bytes(s)),
        ("permutations", 2 * s.perms),
    ]
    if s.biases:
        fixed.append(("biases", 4 * s.biases))
    if s.head_norms:
        fixed.append(("head gains", 4 * s.head_dim * s.num_layers))
    if not kv_l1:
        kv = KvShape.of(s)
        fixed += [
            ("k cache", s.num_layers * kv.blocks * kv.k_block),
            ("v cache", s.num_layers * kv.blocks * kv.v_block),
        ]
    if not logits_l1:
        fixed.append(("logits", 4 * s.vocab))
    return fixed


def l2_beside_weights(s: ModelShape, t: Target) -> int:
    """Bytes of L2 that no weights can have, where none come from flash.

    Raises DoesNotFit where L1 is too small.
    """
    _, _, kv_l1, _, logits_l1 = _choose_l1(s, t, t.l1)
    return sum(align(size) for _, size in _l2_fixed(s, t, kv_l1, logits_l1))


def make_plan(s: ModelShape, t: Target, l1_budget: int | None = None) -> Plan:
    """Plan ``s`` for ``t`` within ``l1_budget`` bytes of L1 (default: all of it).

    Raises DoesNotFit with need, have and excess of the level and its largest consumers.
    """
    total_l1 = t.l1 if l1_budget is None else min(l1_budget, t.l1)
    chunk, tile, kv_l1, kv_tile, logits_l1 = _choose_l1(s, t, total_l1)
    l1 = place(l1_buffers(s, t, chunk, tile, kv_l1, kv_tile, logits_l1))
    fixed = _l2_fixed(s, t, kv_l1, logits_l1)

    def place_weights(stage: int, embed: int) -> tuple[list[Placement], dict[str, int]]:
        reserved = sum(align(n) for _, n in fixed) + 2 * align(stage) + align(embed)
        room = {"wmem": t.wmem, "l2": t.l2 - reserved, "flash": t.flash}
        at = dict.fromkeys(LEVELS, 0)
        out: dict[str, Placement] = {}
        owners = dict(s.shared)
        for m in s.matrices:
            if m.name in owners:
                out[m.name] = replace(out[owners[m.name]], name=m.name)
                continue
            level = next((v for v in LEVELS if at[v] + m.bytes <= room[v]), "none")
            if level == "none":
                break
            out[m.name] = Placement(
                m.name, level, at[level], m.bytes, m.block_bytes, m.blocks, tile_blocks(m, tile)
            )
            at[level] += align(m.bytes)
        at["l2"] += reserved
        return list(out.values()), at

    weights = sum(align(m.bytes) for m in s.stored)
    stage = embed = 0
    placements, used = place_weights(0, 0)
    if used["flash"] > 0 or len(placements) < len(s.matrices):
        stage, embed = tile, max(m.block_bytes for m in (s.head, s.embedding or s.head))
        placements, used = place_weights(stage, embed)
    capacity = {"l1": total_l1, "l2": t.l2, "wmem": t.wmem, "flash": t.flash}
    top = sorted(fixed, key=lambda f: -f[1])[:3]
    if used["l2"] > t.l2:
        raise DoesNotFit.of(Lack("l2", used["l2"], t.l2, tuple(top)))
    if len(placements) < len(s.matrices):
        have = t.wmem + max(0, t.l2 - used["l2"]) + t.flash
        big = sorted(s.matrices, key=lambda m: -m.bytes)[:3]
        largest = tuple((m.name, m.bytes) for m in big)
        raise DoesNotFit.of(Lack("weights", weights, have, largest))
    l2 = [Buffer(n, "l2", align(v), *ALWAYS) for n, v in fixed]
    if stage:
        l2 += [Buffer("flash stage", "l2", 2 * align(stage), *ALWAYS)]
        l2 += [Buffer("embedding stage", "l2", align(embed), *ALWAYS)]
    plan = Plan(
        target=t.name, context=s.context, l1_budget=total_l1, chunk=chunk, tile_bytes=tile,
        kv_in_l1=kv_l1, kv_tile_blocks=kv_tile, logits_in_l1=logits_l1, stage_bytes=stage,
        embed_stage=embed, l1=l1, l2=l2, placements=placements, used=used, capacity=capacity,
    )  # fmt: skip
    plan.used["l1"] = plan.arena_bytes + t.l1_system + layer_table_bytes(s)
    return plan


def gain_bytes(s: ModelShape) -> int:
    """All norms' gains."""
    return 2 * s.hidden * (2 * s.num_layers + 1)


def gains_in_l1(s: ModelShape) -> bool:
    """Few gains lie in L1, from where small models read them 1 % of a token sooner."""
    return gain_bytes(s) <= GAINS_L1_MAX


def layer_table_bytes(s: ModelShape) -> int:
    """sizeof the tables in L1: matrices (a side path has three), layers, functions, and gains where
    they are few."""
    sides = sum(1 for m in s.matrices if m.rank)
    gains = align(gain_bytes(s)) if gains_in_l1(s) else 0
    tables = MATRIX_BYTES * (len(s.matrices) + 1 + sides) + layer_bytes(s) * s.num_layers
    return tables + TABLE_BYTES + gains


def layer_bytes(s: ModelShape) -> int:
    """sizeof(sc_layer) on the 32-bit targets: permutations, biases and norms of heads take 16 each."""
    return 24 + 16 * bool(s.perms) + 16 * bool(s.biases) + 16 * s.head_norms
