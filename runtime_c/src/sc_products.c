/* SPDX-License-Identifier: Apache-2.0
 * Of the engine's 1x1 mode, rows of the matrix are the pixels, as bytes, and a segment's inputs their channels; the
 * tokens' activations are its weights, of which it reads bit planes.  So what is stored in few bits need only become
 * bytes, and activations, far fewer, become planes.
 *
 * Of a run of blocks every segment is a job.  While the engine is at one, the cores add up the sums of the one
 * before and widen the weights of the next. */
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

/* A run of blocks of a tile: what the cores and the engine share.  Buffers take turns by segment. */
typedef struct {
    const uint8_t *blocks; /* the first one's first segment */
    uint32_t block_bytes, segment_bytes, count;
    uint32_t each;    /* words of a segment, but for the last one's */
    uint8_t *rows[2]; /* [8 * count][segment], and what is missing to whole rows of an image */
    int32_t *sums[2]; /* [the same][tokens] */
    int32_t *acc;     /* [4 * count][tokens][2] */
} run;

static inline uint32_t pixels(uint32_t blocks) { return (SC_ROWS * blocks + WIDTH - 1) / WIDTH * WIDTH; }

/* Bytes of a run in `room`. */
static inline uint32_t run_bytes(uint32_t blocks, uint32_t words, uint32_t tokens) {
    return 8 * pixels(blocks) * (words + tokens) + 4 * SC_ROWS * blocks * tokens;
}

/* As many blocks as there is room for, of a tile's `count`, in runs of equal length. */
static inline uint32_t run_length(uint32_t count, uint32_t words, uint32_t tokens) {
    uint32_t most = count < SC_PRODUCT_BLOCKS ? count : SC_PRODUCT_BLOCKS;
    while (most > 1 && run_bytes(most, words, tokens) > SC_BYTES_PRODUCTS) most--;
    const uint32_t runs = (count + most - 1) / most;
    return (count + runs - 1) / runs;
}

static inline run run_of(uint8_t *room, uint32_t count, uint32_t words, uint32_t tokens) {
    run r = {.count = count, .each = words};
    const uint32_t n = pixels(count);
    r.rows[0] = room, r.rows[1] = room + 4 * n * words;
    r.sums[0] = (int32_t *)(void *)(r.rows[1] + 4 * n * words), r.sums[1] = r.sums[0] + n * tokens;
    r.acc = r.sums[1] + n * tokens;
    return r;
}

static inline uint32_t tables(const int format) {
    return (SC_SEVERAL_HAS(SC_FMT_GROUPED) ? SC_ROWS : 0) + (SC_SEVERAL_HAS(SC_FMT_ASYM) ? 2 * SC_ROWS : 0);
}

/* Whether a format has a loop of its own over a unit of several blocks, which then is done. */
#ifdef SC_W4_COLUMN
#define COLUMN(bits, ...) ((bits) == 4 ? (sc_widen_column_w4(__VA_ARGS__), 1) : 0)
#else
#define COLUMN(bits, ...) 0
#endif

/* A core's share of segment g's weights, as bytes: rows of `words` words.  Units are what a format stores together of
 * 8 rows: every core has the same ones of some blocks, or some of all.  Once in the hot code, though called twice. */
SC_HOT static __attribute__((noinline)) void widen_rows(const run *r, const int format, uint32_t g,
                                                        uint32_t words, int core) {
    int32_t *const to = (int32_t *)(void *)r->rows[g & 1];
    const uint8_t *const from = r->blocks + g * r->segment_bytes + tables(format);
#define WIDEN(bits, inputs, fold)                                                                            \
    case bits: {                                                                                             \
        const uint32_t unit = inputs / 4, bytes = SC_ROWS * inputs * bits / 8, units = words / unit;         \
        int log = 0; /* of the units that cores take side by side: no division */                            \
        if (units >= SC_CORES)                                                                               \
            log = sc_top_bit(SC_CORES);                                                                      \
        else if ((units & (units - 1)) == 0)                                                                 \
            log = sc_top_bit(units);                                                                         \
        const uint32_t b = (uint32_t)core >> log, blocks = SC_CORES >> log, step = 1u << log;                \
        if (b >= r->count) return;                                                                           \
        const uint32_t count = (r->count - b + blocks - 1) >> sc_top_bit(blocks);                            \
        for (uint32_t u = (uint32_t)core & (step - 1); u < units; u += step) {                               \
            const uint8_t *w = from + b * r->block_bytes + u * bytes;                                        \
            int32_t *rows = to + b * SC_ROWS * words + u * unit;                                             \
            if (COLUMN(bits, rows, words, blocks, w, blocks * r->block_bytes, count)) continue;              \
            for (uint32_t i = 0; i < count; i++, rows += blocks * SC_ROWS * words) {                         \
                const uint8_t *at = w + i * blocks * r->block_bytes;                                         \
                sc_widen_w##bits(rows, words, 1, &at, unit);                                                 \
            }                                                                                                \
        }                                                                                                    \
        return;                                                                                              \
    }
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(WIDEN) }
    __builtin_unreachable();
#undef WIDEN
}

/* The job of segment g; those of a run are alike but for their places. */
static void fire(const run *r, const sc_qvec *x, uint32_t g, uint32_t at, uint32_t words, uint32_t tokens) {
    const uint32_t tiles = words / SC_PRODUCT_WORDS;
    sc_neureka_acquire();
    sc_neureka_place((uint32_t)(uintptr_t)x->q + at, (uint32_t)(uintptr_t)r->sums[g & 1],
                     tokens << 16 | 4 * SC_PRODUCT_WORDS, 1u << 16 | tiles);
    if (g < 2 || words != r->each) {
        const uint32_t high = pixels(r->count) / WIDTH, last = (high - 1) % WIDTH + 1;
        const sc_neureka_job j = {
            .in = (uint32_t)(uintptr_t)r->rows[g & 1],
            .in_pixel = 4 * words,
            .in_row = 4 * words * WIDTH,
            .out_pixel = 4 * tokens,
            .out_row = 4 * tokens * WIDTH,
            .weight_row = (uint32_t)(x[1].q - x[0].q),
            .pixels_in = last << 16 | WIDTH,
            .pixels_out = last << 16 | WIDTH,
            .tiles_of_pixels = (high + WIDTH - 1) / WIDTH << 16 | 1u,
            .offset = (uint32_t)-128,
            .config = NEUREKA_1X1 | 7u,
        };
        sc_neureka_form(&j);
    }
    sc_neureka_written(FORM);
    sc_neureka_commit();
}

/* acc += round((p * d - b * sum of x) / 2^drop) * c, a core's share of segment g: the same two rows of every
 * other block, and all tokens. */
SC_INLINE void add_rows(const run *r, const int format, const sc_qvec *x, uint32_t g, uint32_t tokens,
                        int32_t drop, int core) {
    enum { PAIRS = SC_ROWS / 2, STEP = SC_CORES / PAIRS };
    _Static_assert(SC_CORES % PAIRS == 0, "a core has one pair of rows");
    const uint32_t stride = 4u * (uint32_t)(x[1].c - x[0].c), pair = (uint32_t)core % PAIRS;
    const uint32_t b = (uint32_t)core / PAIRS, block_bytes = STEP * r->block_bytes,
                   words = STEP * SC_ROWS * tokens;
    const uint8_t *table = r->blocks + b * r->block_bytes + g * r->segment_bytes;
    const int32_t *from = r->sums[g & 1] + (b * SC_ROWS + 2 * pair) * tokens;
    const int32_t *const scales = x[0].c + g, *const sums =
                                                  SC_SEVERAL_HAS(SC_FMT_ASYM) ? x[0].sum + g : scales;
    int32_t *to = r->acc + (b * SC_ROWS + 2 * pair) * tokens;
    for (uint32_t left = r->count - b + STEP - 1; left >= STEP;
         left -= STEP, table += block_bytes, from += words, to += words) {
        const int32_t d0 = table[2 * pair], d1 = table[2 * pair + 1], fold = sc_fold(format);
        int32_t b0 = 0, b1 = 0;
        if (SC_SEVERAL_HAS(SC_FMT_ASYM)) {
            b0 = sc_offset16(table + SC_ROWS, 2 * (int)pair) * (1 << fold);
            b1 = sc_offset16(table + SC_ROWS, 2 * (int)pair + 1) * (1 << fold);
        }
        const int32_t *p = from, *q = from + tokens, *c = scales, *sum = sums;
        int32_t *acc = to;
        int32_t e, f, k, h, u, s;
        /* clang-format off */
#define LOADS                                                                                                \
    SC_LW_POST("%[e]", "%[p]") SC_LW_POST("%[f]", "%[q]")                                                    \
    ".insn r 0x0b, 7, 0x10, %[u], %[c], %[stride]\n"
#define TAIL                                                                                                 \
    SC_ROUND("%[e]", "%[drop]") SC_ROUND("%[f]", "%[drop]")                                                  \
    SC_MAC("%[k]", "%[e]", "%[u]") SC_MAC("%[h]", "%[f]", "%[u]")                                            \
    ".insn s 0x2b, 2, %[k], 4(%[acc])\n"                                                                     \
    ".insn s 0x2b, 2, %[h], 4(%[acc])\n"
        if (SC_SEVERAL_HAS(SC_FMT_ASYM)) {
            __asm__ volatile(SC_LOOP_BEGIN("%[n]", 16)
                             LOADS
                             ".insn r 0x0b, 7, 0x10, %[s], %[sum], %[stride]\n"
                             "mul %[e], %[e], %[d0]\n"
                             "mul %[f], %[f], %[d1]\n"
                             "lw %[k], 0(%[acc])\n"
                             "lw %[h], 4(%[acc])\n"
                             ".insn r 0x33, 1, 0x21, %[e], %[b0], %[s]\n" /* e -= b0 * s */
                             ".insn r 0x33, 1, 0x21, %[f], %[b1], %[s]\n"
                             TAIL SC_LOOP_END(16)
                             : [p] "+&r"(p), [q] "+&r"(q), [c] "+&r"(c), [sum] "+&r"(sum), [acc] "+&r"(acc),
                               [e] "=&r"(e), [f] "=&r"(f), [k] "=&r"(k), [h] "=&r"(h), [u] "=&r"(u), [s] "=&r"(s)
                             : [n] "r"(tokens), [stride] "r"(stride), [d0] "r"(d0), [d1] "r"(d1), [b0] "r"(b0),
                               [b1] "r"(b1), [drop] "r"(drop)
                             : "memory");
        } else {
            (void)b0, (void)b1, (void)sum, (void)s;
            __asm__ volatile(SC_LOOP_BEGIN("%[n]", 13)
                             LOADS
                             "mul %[e], %[e], %[d0]\n"
                             "mul %[f], %[f], %[d1]\n"
                             "lw %[k], 0(%[acc])\n"
                             "lw %[h], 4(%[acc])\n"
                             TAIL SC_LOOP_END(13)
                             : [p] "+&r"(p), [q] "+&r"(q), [c] "+&r"(c), [acc] "+&r"(acc), [e] "=&r"(e),
                               [f] "=&r"(f), [k] "=&r"(k), [h] "=&r"(h), [u] "=&r"(u)
                             : [n] "r"(tokens), [stride] "r"(stride), [d0] "r"(d0), [d1] "r"(d1), [drop] "r"(drop)
                             : "memory");
        }
        /* clang-format on */
#undef LOADS
#undef TAIL
    }
}

/* A core's share of a run's blocks and tokens, whose first block is the matrix's `first`. */
static void finish_run(const run *r, const sc_matrix *m, uint32_t first, const sc_qvec *x,
                       const sc_qvec *side, uint32_t tokens, const sc_output *out, int core) {
    for (uint32_t b = 0, t = (uint32_t)core;; t += SC_CORES) {
        for (; t >= tokens; t -= tokens) b++;
        if (b >= r->count) return;
        const uint32_t row = (first + b) * SC_ROWS;
        const uint8_t *const block = r->blocks + b * r->block_bytes;
        const int32_t *acc = r->acc + (b * SC_ROWS * tokens + 2 * t);
        int32_t y[SC_ROWS];
        for (int j = 0; j < SC_ROWS; j += 2, acc += 2 * tokens) y[j] = acc[0], y[j + 1] = acc[1];
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
        run r = run_of(room, count - at < length ? count - at : length, each, tokens);
        r.block_bytes = m->block_bytes;
        r.segment_bytes = tables(format) + SC_ROWS * each / 2 * (format & SC_FMT_BITS);
        r.blocks = tile + at * m->block_bytes + 2 * SC_ROWS;
        widen_rows(&r, format, 0, segments > 1 ? each : m->in.last_words, core);
        /* at g its job starts, and the sums of the one before are there */
        for (uint32_t g = 0; g <= segments; g++) {
            if (core == SC_LAST_CORE(SC_CORES) && g > 0) sc_neureka_wait(0);
            sc_barrier();
            if (g == 0)
                for (uint32_t i = (uint32_t)core; i < SC_ROWS * r.count * tokens; i += SC_CORES) r.acc[i] = 0;
            if (g < segments && core == SC_LAST_CORE(SC_CORES))
                fire(&r, x, g, 4 * g * each, g + 1 < segments ? each : m->in.last_words, tokens);
            if (g + 1 < segments)
                widen_rows(&r, format, g + 1, g + 2 < segments ? each : m->in.last_words, core);
            if (g > 0) add_rows(&r, format, x, g - 1, tokens, m->drop, core);
        }
        sc_barrier();
        finish_run(&r, m, first + at, x, side, tokens, out, core);
    }
}

#endif
