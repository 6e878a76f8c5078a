"""The contract between compiler and program.

What is the same for every model is in ``sc_abi.h`` and ``sc_contract.h``, which ``tests/abi`` holds equal to this
file; sizes that depend on the model go into its ``model.h``.  ``_Static_assert``s hold all sizes to the C structs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum

INPUT_MAGIC = 0x31494353  # "SCI1"
HASH_MULTIPLIER = 0x01000193  # odd: a difference in any single word always changes the hash
SAMPLED_WORDS = 64  # of the weights in each memory, at least, that a session checks (sc_stored.c)
ROW_BLOCK = 8  # rows the kernels walk together; storage is padded to it, never the result
PRODUCT_BLOCKS = 8  # row blocks of a tile that N-EUREKA multiplies with several tokens at a time
PRODUCT_WORDS = 8  # of inputs of a row that it takes at a time
PRODUCT_PAIR_WORDS = 16  # of a group up to which two of them are added up at a time
FLAT_WORDS = 8  # of the longest group of 4-bit weights whose sums have 16 bits
SPLIT_WORDS = 192  # words of a row from which on cores split a block, where a tile has few
SPLIT_GROUPS = 8  # and groups, where it has scales for them: there are no parts of one
WIDE_WORDS = 32  # words of a row of 16-bit activations' matrix that are made 8 bit at a time
X_BLOCK = 8  # inputs that one core scans or quantises at a time, never across groups
LOOKUP_MAX = 8  # most tokens of a draft

# sizeof in C: of sc_qvec on a 64-bit host (20 on the 32-bit targets), the others in the targets' L1
QVEC_BYTES = 32
MATRIX_BYTES = 48
PART_BYTES = 16
TOP_BYTES = 8
TABLE_BYTES = 2560  # of the tables of exp2 and sigmoid
EXP2_STEPS_BYTES = 2 * (18 * 256 + 1)  # of that of exp2 over 18 octaves (sc_softmax.h)


class Number(IntEnum):
    """A number with what it means."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Number:
        self = int.__new__(cls, value)
        self._value_ = value
        self.meaning = meaning
        return self


class InputWord(Number):
    """The place of each of a run's input words: 32 bit, little-endian, the same on every target."""

    MAGIC = 0, "SC_INPUT_MAGIC"
    PROMPT = 1, "prompt tokens, 1 .. context"
    NEW = 2, "maximum of new tokens, 0 .. context - prompt"
    SEED = 3, "seed of sampling"
    INV_TEMP = 4, "65536 / temperature; 0 = greedy"
    TOP_P = 5, "65536 * top_p, 1 .. 65536"
    TRACE = 6, "enum sc_trace"
    DUMP_POS = 7, "with SC_TRACE_DUMP: position whose ops are printed"
    DUMP_LAYER = 8, "with SC_TRACE_DUMP: layer whose ops are printed"
    IGNORE_EOS = 9, "1 = continue after an end token"
    LOOKUP = 10, "maximum tokens of a draft, 0 .. SC_LOOKUP_MAX; greedy only"
    KEPT = 11, "prompt tokens kept from the last input's session; 0 = a new session"
    MORE = 12, "1 = another input may follow, which can keep this session"
    TOKENS = 16, "first token; SC_CONTEXT words, prompt first"


class Trace(Number):
    """What a run prints; several may be or-ed together."""

    TEXT = 0, "text only"
    PROOF = 1, "lines: tokens, logits, hash of every layer's output"
    DUMP = 2, "in addition, every op of one layer at one position"
    TIME = 4, "lines: tokens and time only"
    HOOK = 16, "with TIME alone: the longest time between two calls of the layer hook"
    # only where a target has SC_ALL_LOGITS
    LOGITS = 8, "raw int32 logits of every prompt position, no new tokens"


class Exit(Number):
    """Exit codes of the program besides 0."""

    USAGE = 2, "invalid argument of the native program"
    REFUSED = 3, "the program refused its input"
    PLATFORM = 0x7D, "the platform refused the input or a request of the program"
    STACK = 0x7E, "a stack overflowed"
    TRAP = 0x7F, "a core trapped (illegal instruction or bad access)"


class Line(StrEnum):
    """The first word of a line of a run's output, and what follows it."""

    meaning: str

    def __new__(cls, tag: str, meaning: str) -> Line:
        self = str.__new__(cls, tag)
        self._value_ = tag
        self.meaning = meaning
        return self

    HASH = "@H", "position layer hash: hash of the layer's output"
    LOGITS = "@L", "position first v v ...: logits from number first on, 8 hex digits each"
    DUMP = "@D", "op first v v ...: output of an op, at the requested position and layer"
    TIME = "@C", "P|D time: of prefill or one decode pass, including sampling"
    TOKEN = "@T", "position token hex: the token chosen after position, and its bytes"
    # before the tokens that it gives; of every decode pass, where the input asks for prompt lookup
    PASS = (
        "@V",
        "position tokens kept: tokens that the pass processed, and accepted ones",
    )
    HOOK = "@Y", "time: the longest between two calls of the layer hook"
    END = "@Z", "tokens: the run is complete"
    REFUSED = "@E", "message: why the input was refused"
    PROFILE = "@P", "P|D layer op cores elapsed ...: one op of one pass"
    # in builds with SC_SPANS, after the PROFILE line of the op; cycles of each core's own clock
    CORES = "@S", "P|D layer op core begin arrived end active ...: of that core and the next"
    SPANS = "@W", "P|D - unit core begin end: a wait for the unit, or N-EUREKA's work"


class Time(StrEnum):
    """Phase of a line of time or profile."""

    PREFILL = "P"
    DECODE = "D"


class Unit(StrEnum):
    """The subject of a SPANS line (port_profile.c).  ``works``: a span is the unit's work, not a wait for it."""

    label: str
    works: bool

    def __new__(cls, name: str, label: str, works: bool) -> Unit:
        self = str.__new__(cls, name)
        self._value_ = name
        self.label = label
        self.works = works
        return self

    DMA = "dma", "DMA", False
    NEUREKA = "neureka", "N-EUREKA", True
    HYPERBUS = "hyperbus", "HyperBus", False


def input_words(context: int) -> int:
    """Words of a whole input."""
    return InputWord.TOKENS + context


def input_block(context: int, prompt: Sequence[int], values: Mapping[InputWord, int]) -> list[int]:
    """The input of a run with that prompt of at most ``context`` ids; what is not in ``values`` is 0."""
    words = [0] * input_words(context)
    words[InputWord.MAGIC], words[InputWord.PROMPT] = INPUT_MAGIC, len(prompt)
    for place, value in values.items():
        words[place] = value
    words[InputWord.TOKENS : InputWord.TOKENS + len(prompt)] = prompt
    return words


def _skewed(size: int) -> int:
    """The least size that is 12 more than a multiple of 64: neighbours start in other L1 banks, so
    that cores in step use different banks."""
    return -(-(size - 12) // 64) * 64 + 12


def _whole_words(n: int) -> int:
    return -(-n // 4) * 4


def head_scratch_bytes(context: int) -> int:
    """sizeof(sc_head_scratch): a score and a weight of 16 bits per position."""
    return _skewed(_whole_words(context) * 6 + 12)


def head_state_bytes(head_dim: int) -> int:
    """sizeof(sc_head_state)."""
    return _skewed(16 + 4 * _whole_words(head_dim))


def product_bytes(tokens: int, sums: int, wide: int) -> int:
    """Of a core that multiplies several tokens with a tile: ``sums`` for each, of an even number of tokens,
    and ``wide`` bytes of weights made 8 bit."""
    return _skewed((tokens + 1) // 2 * 2 * sums + wide)


def split_bytes(cores: int) -> int:
    """Sums of a block of every core that splits one, of two tokens (sc_multiply.h)."""
    return 2 * cores * 4 * ROW_BLOCK


def product_step(words: int) -> int:
    """Groups of that many words which N-EUREKA multiplies with several tokens before the cores add them up."""
    return 2 if words <= PRODUCT_PAIR_WORDS else 1


def shared_product_bytes(tokens: int, words: int) -> int:
    """Of what N-EUREKA multiplies with several tokens, in groups of that many words: two steps' rows and their
    sums, and what becomes of those (sc_products.c)."""
    pixels = -(-ROW_BLOCK * PRODUCT_BLOCKS // 6) * 6
    step = product_step(words)
    steps = 8 * pixels * (step * words + (step * tokens | 1))
    return steps + 4 * ROW_BLOCK * PRODUCT_BLOCKS * (tokens | 1)


def wide_channels(head_dim: int) -> int:
    """Channels of a key that a cache of 4 bits holds in 8 bits (SC_WIDE in C): about a quarter, in whole words."""
    return head_dim // 16 * 4


def query_bytes(head_dim: int, kv_bits: int) -> int:
    """Of an int8 query head (SC_HDP in C): padded to whole words, or to whole words of the cache's 4-bit keys."""
    wide = wide_channels(head_dim)
    return (
        _whole_words(head_dim) if kv_bits == 8 else wide + 2 * _whole_words((head_dim - wide) // 2)
    )


def kv_block_bytes(kv_heads: int, head_dim: int, kv_bits: int = 8) -> tuple[int, int]:
    """Of 4 positions of a layer's cache: keys with both scales, and values (sc_attention.h)."""
    if kv_bits == 8:
        return 4 * kv_heads * (4 + _whole_words(head_dim)), 4 * kv_heads * head_dim
    wide = wide_channels(head_dim)
    narrow = (query_bytes(head_dim, kv_bits) - wide) // 2
    return 4 * kv_heads * (8 + wide + narrow), 4 * kv_heads * (1 + head_dim // 2)
