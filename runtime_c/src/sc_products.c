/* SPDX-License-Identifier: Apache-2.0
 * Grouped matrix times several tokens on N-EUREKA (mode 1x1): Y[tokens][rows] = X[tokens][k] * W[rows][k].
 * Roles are swapped: weight rows are the image (pixels, int8 channels), activations are the kernel (bit
 * planes). So 2- to 6-bit weights only need widening to bytes. Buffers: L1.
 *
 * Each quantisation group of a run of blocks is one engine job. While the engine runs a step (one or two
 * jobs), the workers add up the previous step and widen the next one. */
#include "sc_platform.h"

#include "sc_products.h"

#ifdef SC_PRODUCTS
#include "sc_planes.h"
#include "sc_product_sums.h"

#define WIDTH 6u    /* pixels per image row; image rows per tile */
#define OUTPUTS 32u /* outputs per job: tokens */
#define CONFIG 1u   /* a config id that engine jobs do not use: theirs have higher bits set */

_Static_assert(SC_CHUNK <= OUTPUTS, "more tokens than a job has outputs");

void sc_products_planes(const sc_matrix *m, const sc_qvec *x, uint32_t tokens, int core) {
    for (uint32_t t = 0; t < tokens; t++) {
        uint32_t *word = (uint32_t *)(void *)x[t].q;
        for (uint32_t i = (uint32_t)core; i < m->in.words; i += SC_CORES)
            word[i] = planes_of(word[i] ^ 0x80808080u);
    }
}

static inline uint32_t pixels(uint32_t blocks) { return (SC_ROWS * blocks + WIDTH - 1) / WIDTH * WIDTH; }
static inline uint32_t words_of(const run *r, uint32_t g) { return g + 1 < r->groups ? r->each : r->last; }

/* Whether all sums fit 16 bits, sum(x) too. */
static inline int flat(const sc_matrix *m) {
#ifdef SC_FLAT_FORMAT
    return SC_FLAT_ALL ||
           (m->format == SC_FLAT_FORMAT && m->in.group_words <= SC_FLAT_WORDS && m->drop > SC_W4_FOLD);
#else
    (void)m;
    return 0;
#endif
}

/* Groups per step: two if groups are short, to add both at once. */
static inline uint32_t step_of(const sc_matrix *m) {
    return m->in.group_words <= SC_PRODUCT_PAIR_WORDS ? 2 : 1;
}

static inline uint32_t tables(const int format) { return SC_SEVERAL_TABLES; }

/* Bytes that a run takes in `room`. */
static inline uint32_t run_bytes(const sc_matrix *m, uint32_t blocks) {
    const uint32_t step = step_of(m);
    return 8 * pixels(blocks) * (step * m->in.group_words + ROW_WORDS(step)) +
           4 * SC_ROWS * blocks * ACC_PITCH;
}

/* Blocks per run: as many as fit, in runs of equal length. */
static inline uint32_t run_length(const sc_matrix *m, uint32_t count) {
    uint32_t most = count < SC_PRODUCT_BLOCKS ? count : SC_PRODUCT_BLOCKS;
    while (most > 1 && run_bytes(m, most) > SC_BYTES_PRODUCTS) most--;
    const uint32_t runs = (count + most - 1) / most;
    return (count + runs - 1) / runs;
}

static inline run run_of(const sc_matrix *m, uint8_t *room, uint32_t count) {
    run r = {.count = count, .groups = m->in.groups, .each = m->in.group_words, .last = m->in.last_words};
    const uint32_t n = pixels(count);
    r.block_bytes = m->block_bytes;
    r.group_bytes = tables(m->format) + SC_ROWS * r.each / 2 * (m->format & SC_FMT_BITS);
    r.step = step_of(m), r.rows_apart = 4 * n * r.each, r.row_words = ROW_WORDS(r.step);
    r.rows[0] = room, r.rows[1] = room + r.step * r.rows_apart;
    r.sums[0] = (int32_t *)(void *)(r.rows[1] + r.step * r.rows_apart);
    r.sums[1] = r.sums[0] + n * r.row_words;
    r.acc = r.sums[1] + n * r.row_words;
    return r;
}

/* Whether the format has a loop over several blocks for a unit; if so, COLUMN() has done it. */
#ifdef SC_W4_COLUMN
#define COLUMN(bits, ...) ((bits) == 4 ? (sc_widen_column_w4(__VA_ARGS__), 1) : 0)
#else
#define COLUMN(bits, ...) 0
#endif

/* The last core also starts engine jobs. So it leaves this many blocks of its unit to other cores. */
#define LEFT_TO_OTHERS 3u

/* Widens this core's share of a step, from group g on, to int8 rows of the group's words. A unit is what the
 * format packs together of 8 rows. Each core has the same units of several blocks, or some units of all
 * blocks. Not inlined: called twice, but in the hot code once. */
SC_HOT static __attribute__((noinline)) void widen_rows(const run *r, const int format, uint32_t g,
                                                        uint32_t n, uint32_t buffer, int core) {
    const uint32_t two = n > 1;
    const uint32_t words0 = words_of(r, g), words1 = two ? words_of(r, g + 1) : 0;
    const uint8_t *const from = r->blocks + g * r->group_bytes + tables(format);
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
            const uint8_t *w = from + second * r->group_bytes + b * r->block_bytes + u * bytes;              \
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

#ifdef SC_FLAT_FORMAT
_Static_assert(SC_CORES == SC_FLAT_WORDS, "a core has a unit of two words of a step of two groups");

/* widen_rows() for flat sums: weights without the factor 2^fold. */
SC_HOT static __attribute__((noinline)) void widen_flat(const run *r, uint32_t g, uint32_t n, uint32_t buffer,
                                                        int core) {
    const uint32_t unit = (uint32_t)core % 4, second = (uint32_t)core / 4, last = SC_LAST_CORE(SC_CORES);
    const uint8_t *const from = r->blocks + g * r->group_bytes + tables(SC_FLAT_FORMAT);
    uint32_t left = n < 2 ? 0 : r->count < SC_CORES ? r->count - 1 : SC_CORES - 1;
#define WIDEN(u, s, block, count)                                                                            \
    sc_widen_flat_w4((int32_t *)(void *)(r->rows[buffer] + (s) * r->rows_apart) +                            \
                         (block) * SC_ROWS * SC_FLAT_WORDS + 2 * (u),                                        \
                     SC_FLAT_WORDS,                                                                          \
                     from + (s) * r->group_bytes + (block) * r->block_bytes + 4 * SC_ROWS * (u),             \
                     r->block_bytes, count)
    if (second < n) WIDEN(unit, second, 0, r->count - ((uint32_t)core == last ? left : 0));
    if ((uint32_t)core < left) WIDEN(last % 4, last / 4, r->count - left + (uint32_t)core, 1);
#undef WIDEN
}
#endif

static inline void widen(const run *r, const int format, int is_flat, uint32_t g, uint32_t n, uint32_t buffer,
                         int core) {
#ifdef SC_FLAT_FORMAT
    if (is_flat) {
        widen_flat(r, g, n, buffer, core);
        return;
    }
#endif
    (void)is_flat;
    widen_rows(r, format, g, n, buffer, core);
}

/* Starts the job of group g, which is job `of_step` of its step. Jobs of a run differ only in addresses, so
 * later jobs reuse the registers of earlier ones. */
static void fire(const run *r, const sc_qvec *x, uint32_t g, uint32_t of_step, uint32_t buffer,
                 uint32_t tokens) {
    const uint32_t words = words_of(r, g);
    const uint32_t in = (uint32_t)(uintptr_t)r->rows[buffer] + of_step * r->rows_apart;
    const uint32_t weights = (uint32_t)(uintptr_t)x->q + 4 * g * r->each;
    const uint32_t sums = (uint32_t)(uintptr_t)(r->sums[buffer] + of_step * PITCH);
    const sc_neureka at = sc_neureka_acquire();
    if (g < 2 || words != r->each) {
        const uint32_t high = pixels(r->count) / WIDTH, last = (high - 1) % WIDTH + 1;
        const sc_neureka_job j = {
            .in = in,
            .in_pixel = 4 * words,
            .in_row = 4 * words * WIDTH,
            .out_pixel = 4 * r->row_words,
            .out_row = 4 * r->row_words * WIDTH,
            .weight_row = (uint32_t)(x[1].q - x[0].q),
            .pixels_in = last << 16 | WIDTH,
            .pixels_out = last << 16 | WIDTH,
            .tiles_of_pixels = (high + WIDTH - 1) / WIDTH << 16 | 1u,
            .offset = (uint32_t)-128,
            .config = NEUREKA_1X1 | 7u,
        };
        sc_neureka_place(at, weights, sums, tokens << 16 | 4 * SC_PRODUCT_WORDS,
                         1u << 16 | words / SC_PRODUCT_WORDS);
        sc_neureka_configure(at, &j);
    } else {
        sc_neureka_move(at, weights, in, sums);
    }
    sc_neureka_written(CONFIG);
    sc_neureka_commit();
}

/* Finishes this core's share of a run's blocks and tokens; `first`: the run's first block in the matrix. */
static void finish_run(const run *r, const sc_matrix *m, uint32_t first, const sc_qvec *x,
                       const sc_qvec *adapter, uint32_t tokens, const sc_output *out, int core) {
    for (uint32_t b = 0, t = (uint32_t)core;; t += SC_CORES) {
        for (; t >= tokens; t -= tokens) b++;
        if (b >= r->count) return;
        const uint32_t row = (first + b) * SC_ROWS;
        const uint8_t *const block = r->blocks + b * r->block_bytes;
        const int32_t *acc = r->acc + (b * SC_ROWS * ACC_PITCH + 2 * t);
        int32_t y[SC_ROWS];
        for (int j = 0; j < SC_ROWS; j += 2, acc += 2 * ACC_PITCH) y[j] = acc[0], y[j + 1] = acc[1];
        finish_sums(m, block - 2 * SC_ROWS, row, &x[t], adapter_of(adapter, t), out,
                    out->dst + t * out->stride, y);
    }
}

/* Clears this core's share of the accumulators. Four words at a time, because a hardware loop needs three
 * instructions. */
SC_INLINE void clear(const run *r, int core) {
    const uint32_t all = SC_ROWS * r->count * ACC_PITCH / 4, each = (all + SC_CORES - 1) / SC_CORES;
    const uint32_t at = each * (uint32_t)core, left = at < all ? all - at : 0;
    int32_t *to = r->acc + 4 * at;
    if (left == 0) return;
    /* clang-format off */
    __asm__ volatile(SC_LOOP_BEGIN("%[n]", 4)
                     P_SW_POST("x0", "%[to]", "4") P_SW_POST("x0", "%[to]", "4")
                     P_SW_POST("x0", "%[to]", "4") P_SW_POST("x0", "%[to]", "4")
                     SC_LOOP_END(4)
                     : [to] "+&r"(to)
                     : [n] "r"(left < each ? left : each)
                     : "memory");
    /* clang-format on */
}

SC_HOT void sc_matrix_products(const sc_matrix *m, const uint8_t *tile, uint32_t first, uint32_t count,
                               const sc_qvec *x, const sc_qvec *adapter, uint32_t tokens,
                               const sc_output *out, uint8_t *room, int core) {
    const int format = m->format, is_flat = flat(m), last = core == SC_LAST_CORE(SC_CORES);
    const uint32_t length = run_length(m, count), groups = m->in.groups;
    for (uint32_t at = 0; at < count; at += length) {
        run r = run_of(m, room, count - at < length ? count - at : length);
        r.blocks = tile + at * m->block_bytes + 2 * SC_ROWS;
        adding known = adding_of(&r, format, x, tokens, core);
        /* An odd group is the first step: the engine finishes it before the cores have widened the next
         * one. */
        uint32_t n = groups % r.step ? groups % r.step : r.step, before = 0;
        widen(&r, format, is_flat, 0, n, 0, core);
        /* starts jobs g .. g + n - 1; sums of the `before` jobs before them are complete */
        for (uint32_t g = 0, buffer = 0;; buffer ^= 1) {
            const uint32_t then = g + n;
            if (last && g > 0) sc_neureka_wait(0);
            sc_worker_barrier();
            if (g == 0) clear(&r, core);
            if (last)
                for (uint32_t i = 0; i < n; i++) fire(&r, x, g + i, i, buffer, tokens);
            if (then < groups) widen(&r, format, is_flat, then, r.step, buffer ^ 1, core);
            if (before > 0) add(&r, format, is_flat, &known, x, before, buffer ^ 1, m->drop);
            if (n == 0) break;
            before = n, g = then, n = then < groups ? r.step : 0;
        }
        sc_worker_barrier();
        finish_run(&r, m, first + at, x, adapter, tokens, out, core);
    }
}

#endif
