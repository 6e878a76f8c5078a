/* SPDX-License-Identifier: Apache-2.0
 * Of the engine's 1x1 mode, rows of the matrix are the pixels, as bytes, and a segment's inputs their channels; the
 * tokens' activations are its weights, of which it reads bit planes.  So what is stored in few bits need only become
 * bytes, and activations, far fewer, become planes.
 *
 * Of a run of blocks every segment is a job.  While the engine is at a step's, of one segment or two, the cores add up
 * the sums of the step before and widen the weights of the next. */
#include "sc_platform.h"

#include "sc_products.h"

#ifdef SC_PRODUCTS
#include "sc_dot.h"
#include "sc_planes.h"
#include "sc_rows.h"

#define WIDTH 6u    /* pixels of an image's row, and image rows of a tile */
#define OUTPUTS 32u /* of a job, which are tokens */
#define FORM 1u     /* no other job's number: those of engines have words in their upper bits */

_Static_assert(SC_CHUNK <= OUTPUTS, "more tokens than a job has outputs");

void sc_products_planes(const sc_matrix *m, const sc_qvec *x, uint32_t tokens, int core) {
    for (uint32_t t = 0; t < tokens; t++) {
        uint32_t *word = (uint32_t *)(void *)x[t].q;
        for (uint32_t i = (uint32_t)core; i < m->in.words; i += SC_CORES)
            word[i] = planes_of(word[i] ^ 0x80808080u);
    }
}

/* A run of blocks of a tile: what the cores and the engine share.  Buffers take turns by step. */
typedef struct {
    const uint8_t *blocks; /* the first one's first segment */
    uint32_t block_bytes, segment_bytes, count;
    uint32_t segments, step; /* in all, and of a step */
    uint32_t each, last;     /* words of a segment, and of the last one */
    uint32_t rows_apart;     /* bytes of a segment's rows, and words of its sums, in a buffer */
    uint32_t sums_apart;
    uint8_t
        *rows[2]; /* [segment of a step][8 * count][inputs], and what is missing to whole rows of an image */
    int32_t *sums[2]; /* [segment of a step][the same][pitch] */
    int32_t *acc;     /* [4 * count][pitch][2] */
} run;

static inline uint32_t pixels(uint32_t blocks) { return (SC_ROWS * blocks + WIDTH - 1) / WIDTH * WIDTH; }
static inline uint32_t words_of(const run *r, uint32_t g) { return g + 1 < r->segments ? r->each : r->last; }

/* Words from a row's sums to the next's: odd, so that cores at different rows do not meet in a bank. */
static inline uint32_t pitch_of(uint32_t tokens) { return tokens | 1; }

/* Segments of a step: two of short ones, which then are added up at once. */
static inline uint32_t step_of(uint32_t words) { return words <= SC_PRODUCT_PAIR_WORDS ? 2 : 1; }

/* Bytes of a run in `room`. */
static inline uint32_t run_bytes(uint32_t blocks, uint32_t words, uint32_t tokens) {
    const uint32_t pitch = pitch_of(tokens);
    return 8 * step_of(words) * pixels(blocks) * (words + pitch) + 4 * SC_ROWS * blocks * pitch;
}

/* As many blocks as there is room for, of a tile's `count`, in runs of equal length. */
static inline uint32_t run_length(uint32_t count, uint32_t words, uint32_t tokens) {
    uint32_t most = count < SC_PRODUCT_BLOCKS ? count : SC_PRODUCT_BLOCKS;
    while (most > 1 && run_bytes(most, words, tokens) > SC_BYTES_PRODUCTS) most--;
    const uint32_t runs = (count + most - 1) / most;
    return (count + runs - 1) / runs;
}

static inline run run_of(const sc_matrix *m, uint8_t *room, uint32_t count, uint32_t tokens) {
    run r = {.count = count, .segments = m->in.nseg, .each = m->in.seg_words, .last = m->in.last_words};
    const uint32_t n = pixels(count);
    r.step = step_of(r.each), r.rows_apart = 4 * n * r.each, r.sums_apart = n * pitch_of(tokens);
    r.rows[0] = room, r.rows[1] = room + r.step * r.rows_apart;
    r.sums[0] = (int32_t *)(void *)(r.rows[1] + r.step * r.rows_apart);
    r.sums[1] = r.sums[0] + r.step * r.sums_apart;
    r.acc = r.sums[1] + r.step * r.sums_apart;
    return r;
}

static inline uint32_t tables(const int format) { return SC_SEVERAL_TABLES; }

/* Whether a format has a loop of its own over a unit of several blocks, which then is done. */
#ifdef SC_W4_COLUMN
#define COLUMN(bits, ...) ((bits) == 4 ? (sc_widen_column_w4(__VA_ARGS__), 1) : 0)
#else
#define COLUMN(bits, ...) 0
#endif

/* The last core, which starts the engine's jobs, leaves so many blocks of its unit to as many others. */
#define LEFT_TO_OTHERS 3u

/* A core's share of a step's weights, from segment g on, as bytes: rows of so many words as that one has.  Units are
 * what a format stores together of 8 rows: every core has the same ones of some blocks, or some of all.  Once in the
 * hot code, though called twice. */
SC_HOT static __attribute__((noinline)) void widen_rows(const run *r, const int format, uint32_t g,
                                                        uint32_t buffer, int core) {
    const uint32_t two = r->step > 1 && g + 1 < r->segments;
    const uint32_t words0 = words_of(r, g), words1 = two ? words_of(r, g + 1) : 0;
    const uint8_t *const from = r->blocks + g * r->segment_bytes + tables(format);
#define WIDEN(bits, inputs, fold)                                                                            \
    case bits: {                                                                                             \
        const uint32_t unit = inputs / 4, bytes = SC_ROWS * inputs * bits / 8;                               \
        const uint32_t units0 = words0 / unit, units = units0 + words1 / unit;                               \
        int log = 0; /* of the units that cores take side by side: no division */                            \
        if (units >= SC_CORES)                                                                               \
            log = sc_top_bit(SC_CORES);                                                                      \
        else if ((units & (units - 1)) == 0)                                                                 \
            log = sc_top_bit(units);                                                                         \
        const uint32_t blocks = SC_CORES >> log, step = 1u << log;                                           \
        uint32_t b = (uint32_t)core >> log, i = (uint32_t)core & (step - 1), left = 0;                       \
        if (b >= r->count) return;                                                                           \
        uint32_t count = (r->count - b + blocks - 1) >> sc_top_bit(blocks);                                  \
        if (units == SC_CORES && count > LEFT_TO_OTHERS) left = LEFT_TO_OTHERS;                              \
        if (core == SC_LAST_CORE(SC_CORES)) count -= left, left = 0;                                         \
        for (;;) {                                                                                           \
            const uint32_t second = i >= units0, u = second ? i - units0 : i;                                \
            const uint32_t words = second ? words1 : words0;                                                 \
            const uint8_t *w = from + second * r->segment_bytes + b * r->block_bytes + u * bytes;            \
            int32_t *rows = (int32_t *)(void *)(r->rows[buffer] + second * r->rows_apart) +                  \
                            b * SC_ROWS * words + u * unit;                                                  \
            if (!COLUMN(bits, rows, words, blocks, w, blocks * r->block_bytes, count)) {                     \
                for (uint32_t n = 0; n < count; n++, rows += blocks * SC_ROWS * words) {                     \
                    const uint8_t *at = w + n * blocks * r->block_bytes;                                     \
                    sc_widen_w##bits(rows, words, 1, &at, unit);                                             \
                }                                                                                            \
            }                                                                                                \
            i += step;                                                                                       \
            if (i < units) continue;                                                                         \
            if ((uint32_t)core >= left) return;                                                              \
            b = r->count - left + (uint32_t)core, i = SC_CORES - 1, count = 1, left = 0;                     \
        }                                                                                                    \
    }
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(WIDEN) }
    __builtin_unreachable();
#undef WIDEN
}

/* The job of segment g; those of a run are alike but for their places. */
static void fire(const run *r, const sc_qvec *x, uint32_t g, uint32_t buffer, uint32_t tokens) {
    const uint32_t words = words_of(r, g), second = g % r->step;
    const uint32_t in = (uint32_t)(uintptr_t)r->rows[buffer] + second * r->rows_apart;
    const uint32_t weights = (uint32_t)(uintptr_t)x->q + 4 * g * r->each;
    const uint32_t sums = (uint32_t)(uintptr_t)(r->sums[buffer] + second * r->sums_apart);
    sc_neureka_acquire();
    if (g < 2 || words != r->each) {
        const uint32_t pitch = pitch_of(tokens);
        const uint32_t high = pixels(r->count) / WIDTH, last = (high - 1) % WIDTH + 1;
        const sc_neureka_job j = {
            .in = in,
            .in_pixel = 4 * words,
            .in_row = 4 * words * WIDTH,
            .out_pixel = 4 * pitch,
            .out_row = 4 * pitch * WIDTH,
            .weight_row = (uint32_t)(x[1].q - x[0].q),
            .pixels_in = last << 16 | WIDTH,
            .pixels_out = last << 16 | WIDTH,
            .tiles_of_pixels = (high + WIDTH - 1) / WIDTH << 16 | 1u,
            .offset = (uint32_t)-128,
            .config = NEUREKA_1X1 | 7u,
        };
        sc_neureka_place(weights, sums, tokens << 16 | 4 * SC_PRODUCT_WORDS,
                         1u << 16 | words / SC_PRODUCT_WORDS);
        sc_neureka_form(&j);
    } else {
        sc_neureka_move(weights, in, sums);
    }
    sc_neureka_written(FORM);
    sc_neureka_commit();
}

/* What the loops over blocks and tokens read from memory, since their registers are taken. */
typedef struct {
    int32_t offsets;   /* bytes from a pair's scales to its offsets, or zero points */
    int32_t segment;   /* to the next segment's */
    int32_t blocks;    /* to the next block's that the core has */
    int32_t fold;      /* of the format's sums */
    int32_t tokens;    /* in all */
    int32_t back;      /* bytes that the pointers to segments' scales have gone on when all tokens are done */
    int32_t sums, acc; /* bytes from there to those of the core's next block */
    int32_t count;     /* of its blocks */
    const uint8_t *t;  /* of the block at hand: the scales of its pair of rows */
    const int32_t *c, *sum; /* of the first token; where two segments are added those of the second */
    const int32_t *p, *q;   /* sums of a segment, and of the next */
    int32_t *to;
} adding;
_Static_assert(sizeof(adding) == 4 * 15, "loads count words");

/* clang-format off */
/* p.lw rd, index(ptr) and, with the index added to the pointer behind it, p.lw rd, index(ptr!); p.msu */
#define LW_AT(rd, ptr, index) ".insn r 0x03, 7, 0x10, " rd ", " ptr ", " index "\n"
#define LW_POST(rd, ptr, index) ".insn r 0x0b, 7, 0x10, " rd ", " ptr ", " index "\n"
#define MSU(rd, a, b) ".insn r 0x33, 1, 0x21, " rd ", " a ", " b "\n"
#define SW_POST(rs, ptr) ".insn s 0x2b, 2, " rs ", 4(" ptr ")\n"
#define LOAD(rd, place) "lw %[" rd "], 4*" #place "(%[known])\n"
#define STORE(rs, place) "sw %[" rs "], 4*" #place "(%[known])\n"
/* Of one segment and of two: what OFFSET is around is for those that have some.  `extra` counts its instructions in
 * both loops, `inner` in the inner one.  Registers are short: k is the sum of a segment's inputs too. */
#define ADD_ONE(inner, extra, OFFSET, FETCH)                                                                 \
    BEGIN(OFFSET)                                                                                            \
    SC_OUTER_LOOP_BEGIN("%[e]", 27 + extra)                                                                  \
    LOAD("k", 9) LOAD("u", 2) OFFSET(LOAD("e", 0))                                                           \
    "lbu %[d0], 0(%[k])\n" "lbu %[d1], 1(%[k])\n"                                                            \
    OFFSET("add %[f], %[k], %[e]\n" LOAD("h", 3) FETCH("f", "b0", "b1", "d0", "d1"))                         \
    "add %[k], %[k], %[u]\n" LOAD("u", 4) STORE("k", 9)                                                      \
    OFFSET("sll %[b0], %[b0], %[h]\n" "sll %[b1], %[b1], %[h]\n")                                            \
    SC_INNER_LOOP_BEGIN("%[u]", 13 + inner)                                                                  \
    LW_AT("%[f]", "%[p]", "%[row]") SC_LW_POST("%[e]", "%[p]") LW_POST("%[u]", "%[c]", "%[stride]")          \
    OFFSET(LW_POST("%[k]", "%[sum]", "%[stride]"))                                                           \
    "mul %[f], %[f], %[d1]\n" "mul %[e], %[e], %[d0]\n"                                                      \
    OFFSET(MSU("%[f]", "%[b1]", "%[k]") MSU("%[e]", "%[b0]", "%[k]"))                                        \
    "lw %[k], 0(%[acc])\n" "lw %[h], 4(%[acc])\n"                                                            \
    SC_ROUND("%[f]", "%[drop]") SC_ROUND("%[e]", "%[drop]")                                                  \
    SC_MAC("%[k]", "%[e]", "%[u]") SC_MAC("%[h]", "%[f]", "%[u]")                                            \
    SW_POST("%[k]", "%[acc]") SW_POST("%[h]", "%[acc]") SC_LOOP_END(13 + inner) "\n"                         \
    LOAD("e", 5) NEXT OFFSET("sub %[sum], %[sum], %[e]\n") SC_OUTER_LOOP_END(27 + extra)
#define ADD_TWO(inner, extra, OFFSET, FETCH)                                                                 \
    BEGIN(OFFSET) LOAD("q", 13)                                                                              \
    SC_OUTER_LOOP_BEGIN("%[e]", 41 + extra)                                                                  \
    LOAD("k", 9) LOAD("x", 1) LOAD("u", 2) OFFSET(LOAD("e", 0))                                              \
    "lbu %[d0], 0(%[k])\n" "lbu %[d1], 1(%[k])\n" "add %[y], %[k], %[x]\n"                                   \
    OFFSET("add %[f], %[k], %[e]\n" FETCH("f", "b0", "b1", "d0", "d1"))                                      \
    "lbu %[d2], 0(%[y])\n" "lbu %[d3], 1(%[y])\n"                                                            \
    OFFSET("add %[y], %[y], %[e]\n" LOAD("v", 3) FETCH("y", "b2", "b3", "d2", "d3"))                         \
    "add %[k], %[k], %[u]\n" LOAD("u", 4) STORE("k", 9)                                                      \
    OFFSET("sll %[b0], %[b0], %[v]\n" "sll %[b1], %[b1], %[v]\n"                                             \
           "sll %[b2], %[b2], %[v]\n" "sll %[b3], %[b3], %[v]\n")                                            \
    SC_INNER_LOOP_BEGIN("%[u]", 22 + inner)                                                                  \
    LW_AT("%[f]", "%[p]", "%[row]") SC_LW_POST("%[e]", "%[p]") OFFSET("lw %[k], -4(%[sum])\n")               \
    LW_AT("%[y]", "%[q]", "%[row]") SC_LW_POST("%[x]", "%[q]")                                               \
    "mul %[f], %[f], %[d1]\n" "mul %[e], %[e], %[d0]\n"                                                      \
    OFFSET(MSU("%[f]", "%[b1]", "%[k]") MSU("%[e]", "%[b0]", "%[k]"))                                        \
    OFFSET(LW_POST("%[k]", "%[sum]", "%[stride]"))                                                           \
    "lw %[u], -4(%[c])\n" LW_POST("%[v]", "%[c]", "%[stride]")                                               \
    "mul %[y], %[y], %[d3]\n" "mul %[x], %[x], %[d2]\n"                                                      \
    OFFSET(MSU("%[y]", "%[b3]", "%[k]") MSU("%[x]", "%[b2]", "%[k]"))                                        \
    "lw %[k], 0(%[acc])\n" "lw %[h], 4(%[acc])\n"                                                            \
    SC_ROUND("%[f]", "%[drop]") SC_ROUND("%[e]", "%[drop]")                                                  \
    SC_ROUND("%[y]", "%[drop]") SC_ROUND("%[x]", "%[drop]")                                                  \
    SC_MAC("%[k]", "%[e]", "%[u]") SC_MAC("%[h]", "%[f]", "%[u]")                                            \
    SC_MAC("%[k]", "%[x]", "%[v]") SC_MAC("%[h]", "%[y]", "%[v]")                                            \
    SW_POST("%[k]", "%[acc]") SW_POST("%[h]", "%[acc]") SC_LOOP_END(22 + inner) "\n"                         \
    LOAD("e", 5) NEXT "add %[q], %[q], %[f]\n" OFFSET("sub %[sum], %[sum], %[e]\n")                         \
    SC_OUTER_LOOP_END(41 + extra)
#define BEGIN(OFFSET)                                                                                        \
    LOAD("e", 8) LOAD("c", 10) OFFSET(LOAD("sum", 11)) LOAD("p", 12) LOAD("acc", 14)
#define NEXT                                                                                                 \
    LOAD("f", 6) LOAD("k", 7)                                                                                \
    "sub %[c], %[c], %[e]\n" "add %[p], %[p], %[f]\n" "add %[acc], %[acc], %[k]\n"
#define WITH(...) __VA_ARGS__
#define WITHOUT(...)
/* Offsets of a pair of rows: there, 2 instructions, or products of zero points, which are a byte, with scales: 6 */
#define THERE(at, b, c, d, e) "lh %[" b "], 0(%[" at "])\n" "lh %[" c "], 2(%[" at "])\n"
#define OF_ZEROS(at, b, c, d, e)                                                                             \
    "lb %[" c "], 0(%[" at "])\n"                                                                           \
    "slli %[" b "], %[" c "], 28\n" "srai %[" c "], %[" c "], 4\n" "srai %[" b "], %[" b "], 28\n"         \
    "mul %[" b "], %[" b "], %[" d "]\n" "mul %[" c "], %[" c "], %[" e "]\n"
/* clang-format on */

enum { PAIRS = SC_ROWS / 2, EVERY = SC_CORES / PAIRS }; /* of a block, and which blocks a core has */
_Static_assert(SC_CORES % PAIRS == 0, "a core has one pair of rows");

/* What a core adds up in a run: the same two rows of its blocks, of all tokens; then the places of a step. */
static adding adding_of(const run *r, const int format, const sc_qvec *x, uint32_t tokens, int core) {
    const uint32_t pair = (uint32_t)core % PAIRS, first = (uint32_t)core / PAIRS;
    const int32_t row = 4 * (int32_t)pitch_of(tokens), n = (int32_t)tokens;
    return (adding){
        .offsets = SC_ROWS + (SC_SEVERAL_HAS(SC_FMT_ZEROS) ? -(int32_t)pair : 2 * (int32_t)pair),
        .segment = (int32_t)r->segment_bytes,
        .blocks = EVERY * (int32_t)r->block_bytes,
        .fold = sc_fold(format),
        .tokens = n,
        .back = n * 4 * (int32_t)(x[1].c - x[0].c),
        .sums = EVERY * SC_ROWS * row - 4 * n,
        .acc = EVERY * SC_ROWS * row - 8 * n,
        .count = (int32_t)((r->count + EVERY - 1 - first) / EVERY),
        .t = r->blocks + first * r->block_bytes + 2 * pair,
        .c = x[0].c,
        .sum = SC_SEVERAL_HAS(SC_FMT_ASYM) ? x[0].sum : 0,
        .to = r->acc + (first * SC_ROWS + 2 * pair) * pitch_of(tokens),
    };
}

/* acc += round((p * d - b * sum of x) / 2^drop) * c, of a core's share of a step's sums from segment g on. */
SC_INLINE void add_rows(const run *r, const int format, adding *known, const sc_qvec *x, uint32_t g,
                        uint32_t buffer, uint32_t tokens, int32_t drop) {
    if (known->count == 0) return;
    const int32_t stride = 4 * (int32_t)(x[1].c - x[0].c), row = 4 * (int32_t)pitch_of(tokens);
    const int asym = SC_SEVERAL_HAS(SC_FMT_ASYM), zeros = SC_SEVERAL_HAS(SC_FMT_ZEROS);
    const int more = r->step > 1 && g + 1 < r->segments;
    /* in a program with zero points other offsets, a table's most likely, are added one segment at a time: there is no
     * room for one loop more */
    const int apart = (SC_SEVERAL_SOME & SC_FMT_ZEROS) != 0, two = more && !(apart && asym && !zeros);
    known->p = r->sums[buffer] + (known->to - r->acc), known->q = known->p + r->sums_apart;
    if (two) known->c++, known->sum += asym;
    const uint8_t *t = known->t;
    int32_t p, c, acc, e, f, k, h, u, v, d0, d1, sum, b0, b1, q, x_, y_, d2, d3, b2, b3;
#define OUT                                                                                                  \
    [p] "=&r"(p), [c] "=&r"(c), [acc] "=&r"(acc), [e] "=&r"(e), [f] "=&r"(f), [k] "=&r"(k), [h] "=&r"(h),    \
        [u] "=&r"(u), [d0] "=&r"(d0), [d1] "=&r"(d1)
#define OFFSETS [sum] "=&r"(sum), [b0] "=&r"(b0), [b1] "=&r"(b1)
#define MORE [b2] "=&r"(b2), [b3] "=&r"(b3)
#define TWO [q] "=&r"(q), [x] "=&r"(x_), [y] "=&r"(y_), [v] "=&r"(v), [d2] "=&r"(d2), [d3] "=&r"(d3)
#define IN [row] "r"(row), [stride] "r"(stride), [drop] "r"(drop), [known] "r"(known)
    for (int left = more && !two;; left--) {
        if (two && zeros)
            __asm__ volatile(ADD_TWO(6, 27, WITH, OF_ZEROS) : OUT, TWO, OFFSETS, MORE : IN : "memory");
        else if (!apart && two && asym)
            __asm__ volatile(ADD_TWO(6, 19, WITH, THERE) : OUT, TWO, OFFSETS, MORE : IN : "memory");
        else if (two)
            __asm__ volatile(ADD_TWO(0, 0, WITHOUT, THERE) : OUT, TWO : IN : "memory");
        else if (zeros)
            __asm__ volatile(ADD_ONE(3, 15, WITH, OF_ZEROS) : OUT, OFFSETS : IN : "memory");
        else if (asym)
            __asm__ volatile(ADD_ONE(3, 11, WITH, THERE) : OUT, OFFSETS : IN : "memory");
        else
            __asm__ volatile(ADD_ONE(0, 0, WITHOUT, THERE) : OUT : IN : "memory");
        known->t = t += (1 + two) * (int32_t)r->segment_bytes;
        known->c++, known->sum += asym;
        if (left <= 0) break;
        known->p = known->q;
    }
#undef OUT
#undef OFFSETS
#undef MORE
#undef TWO
#undef IN
}

/* A core's share of a run's blocks and tokens, whose first block is the matrix's `first`. */
static void finish_run(const run *r, const sc_matrix *m, uint32_t first, const sc_qvec *x,
                       const sc_qvec *side, uint32_t tokens, const sc_output *out, int core) {
    for (uint32_t b = 0, t = (uint32_t)core;; t += SC_CORES) {
        for (; t >= tokens; t -= tokens) b++;
        if (b >= r->count) return;
        const uint32_t row = (first + b) * SC_ROWS;
        const uint8_t *const block = r->blocks + b * r->block_bytes;
        const int32_t *acc = r->acc + (b * SC_ROWS * pitch_of(tokens) + 2 * t);
        int32_t y[SC_ROWS];
        for (int j = 0; j < SC_ROWS; j += 2, acc += 2 * pitch_of(tokens)) y[j] = acc[0], y[j + 1] = acc[1];
        finish_sums(m, block - 2 * SC_ROWS, row, &x[t], side_of(side, t), out, out->dst + t * out->stride, y);
    }
}

SC_HOT void sc_matrix_products(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                               const sc_qvec *x, const sc_qvec *side, uint32_t tokens, const sc_output *out,
                               uint8_t *room, int core) {
    const int format = m->format;
    const uint32_t segments = m->in.nseg, each = m->in.seg_words;
    const uint32_t length = run_length(count, each, tokens);
    for (uint32_t at = 0; at < count; at += length) {
        run r = run_of(m, room, count - at < length ? count - at : length, tokens);
        r.block_bytes = m->block_bytes;
        r.segment_bytes = tables(format) + SC_ROWS * each / 2 * (format & SC_FMT_BITS);
        r.blocks = tile + at * m->block_bytes + 2 * SC_ROWS;
        adding known = adding_of(&r, format, x, tokens, core);
        widen_rows(&r, format, 0, 0, core);
        /* at g the jobs of its step begin, and the sums of the step before are there */
        for (uint32_t g = 0, buffer = 0; g < segments + r.step; g += r.step, buffer ^= 1) {
            if (core == SC_LAST_CORE(SC_CORES) && g > 0) sc_neureka_wait(0);
            sc_barrier();
            if (g == 0)
                for (uint32_t i = (uint32_t)core; i < SC_ROWS * r.count * pitch_of(tokens); i += SC_CORES)
                    r.acc[i] = 0;
            if (core == SC_LAST_CORE(SC_CORES))
                for (uint32_t i = g; i < g + r.step && i < segments; i++) fire(&r, x, i, buffer, tokens);
            if (g + r.step < segments) widen_rows(&r, format, g + r.step, buffer ^ 1, core);
            if (g > 0) add_rows(&r, format, &known, x, g - r.step, buffer ^ 1, tokens, m->drop);
        }
        sc_barrier();
        finish_run(&r, m, first + at, x, side, tokens, out, core);
    }
}

#endif
