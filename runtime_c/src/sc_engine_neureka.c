/* SPDX-License-Identifier: Apache-2.0
 * N-EUREKA: C twin of compiler/shrinkc/engines/neureka_1x1.py (1x1 mode), neureka_3x3.py and neureka_both.py.
 *
 * A matrix is a sequence of jobs of some rows, with all tokens or one by one.  The controller writes them: two are
 * under way while the workers join, rescale and store what the one before has summed.  A target without the engine
 * computes the same sums where it stores them.  What rows have behind the engine's last whole tile, their tails, is
 * the workers'. */
#include "sc_platform.h"

#include "sc_engine.h"
#include "sc_engines.h"

#if defined(SC_ON_NEUREKA_1X1) || defined(SC_ON_NEUREKA_3X3) || defined(SC_ON_NEUREKA_BOTH)

#include "sc_joined.h"
#include "sc_neureka_rows.h"

#define OUTPUTS 32u    /* of a tile */
#define JOB_ROWS_LOG 6 /* agrees with neureka_1x1.py, like the next two */
#define JOBS 3u
#define PIXELS 36 /* of a tile */
#define TOKENS_MAX 36u

_Static_assert(SC_CHUNK <= TOKENS_MAX, "more tokens than a job takes");
_Static_assert((JOBS * (4 * 4 + 2)) << (JOB_ROWS_LOG + 1) <= SC_BYTES_ENGINE,
               "planned room of one token's jobs");
#if SC_ON_NEUREKA_1X1 != 255 || SC_ON_NEUREKA_BOTH != 255
#define PIXELS_MAX (2 * SC_CHUNK <= 6 ? 2 * SC_CHUNK : (2 * SC_CHUNK + 5) / 6 * 6)
_Static_assert((SC_CHUNK > PIXELS / 2 ? (JOBS * (4 * PIXELS + 2)) << (JOB_ROWS_LOG + 1)
                                      : (JOBS * (4 * PIXELS_MAX + 2)) << JOB_ROWS_LOG) <= SC_BYTES_ENGINE,
               "planned room of many tokens' jobs");
#endif

#if SC_FRUGAL && defined(SC_ON_NEUREKA_3X3)
#error "vectors of the 3x3 mode are images, which have a place of their own"
#endif

#ifdef SC_NEUREKA
_Static_assert(SC_TEAM > SC_CORES, "the controller looks after the engine");

#include "sc_neureka_jobs.h"

/* What depends on how many rows a job has. */
typedef struct {
    uint32_t last_out_in, tiles_out_in;
#ifdef SC_ENGINE_COPIES
    uint16_t out_pixel, out_row; /* bytes from one of the results' to the next */
    uint16_t apart;              /* from low to high sums */
#endif
} extent;
enum { WHOLE, HALF, LAST, EXTENTS };

/* Of a decoded token jobs of a matrix are alike but for their rows: what is written of them is made once. */
typedef struct {
    sc_neureka_job job; /* at the place of the first */
    extent extents[EXTENTS];
    uint32_t form;            /* equal for those that differ in nothing but their place and extent */
    uint32_t half_bytes;      /* of weights of half a job's rows */
    uint16_t count;           /* 0: of a matrix that another engine runs */
    uint16_t whole;           /* how many come before those of half as many rows, if any are so */
    uint16_t rows, last_rows; /* of a whole job, of the last one */
#ifdef SC_ENGINE_COPIES
    uint16_t zeros_at, zeros; /* of a copy's vector: where low bytes end, how many words of zeros follow */
#else
    uint16_t apart; /* from low to high sums */
#endif
    uint16_t last_each, last_blocks; /* of the last one, for each core: an even number, or whole blocks */
    const uint16_t *multipliers;     /* the first row's; in L1 where the plan has room for them */
#ifdef SC_ENGINE_TAILS
    uint16_t tail_row; /* bytes of a row with a tail, which the engine has */
    uint16_t tail_at;  /* the vector's first byte of a tail */
    uint16_t high;     /* bytes from a vector's low ones to its high ones */
    uint8_t tail_words, tails : 4, nibbles : 4;
#endif
} image;
_Static_assert(sizeof(image) <= SC_ENGINE_TABLE, "planned size of an image");
static SC_L1_LARGE image images[SC_MATRICES];

#ifdef SC_AT_MULTIPLIERS
static inline int on_neureka(const sc_matrix *m) {
#ifdef SC_ON_NEUREKA_3X3
    if (m->engine == SC_ON_NEUREKA_3X3) return 1;
#endif
    return dense(m);
}

/* Those of all matrices that N-EUREKA has, one after the other: from weight memory a core waits for each. */
static const uint16_t *keep_multipliers(const sc_matrix *m, const uint8_t *at) {
    uint8_t *to = SC_BUFFER(uint8_t *, SC_AT_MULTIPLIERS);
    for (const sc_matrix *before = sc_matrices; before < m; before++)
        if (on_neureka(before)) to += 2 * padded_rows(before);
    sc_dma_wait(sc_dma_in(to, multipliers(m, at), 2 * padded_rows(m)));
    return (const uint16_t *)(const void *)to;
}
#else
#define keep_multipliers multipliers
#endif

/* How many jobs of one token are whole: all, or those before the last two or three, which have half as many rows, for
 * the cores join the sums of the last one when the engine is done. */
static uint32_t whole_jobs(const sc_matrix *m, const cut *whole, const cut *half) {
#ifdef SC_ENGINE_TAILS
    if (m->tails) return whole->count;
#endif
    (void)m;
    return half->count < 2 ? whole->count : half->count < 4 ? 0 : half->count / 2 - 1;
}

static inline image *image_of(const sc_matrix *m) { return &images[m - sc_matrices]; }

#include "sc_neureka_copies.h"

static void start(const sc_matrix *m, const uint8_t *at, const int8_t *q) {
    image *const i = image_of(m);
    i->multipliers = keep_multipliers(m, at);
    if (start_copy(i, m, at, q)) return;
    const cut c = cut_of(m, 1);
    cut half = c;
    half.log--, half.count = (c.rows + (1u << half.log) - 1) >> half.log;
    const uint32_t whole = whole_jobs(m, &c, &half);
    const cut *const ends = whole == c.count ? &c : &half;
    const part last = part_of(ends, ends->count - 1);
    const sc_neureka_job first = job_of(m, at, q, ends, 0), end = job_of(m, at, q, ends, ends->count - 1);
    i->job = job_of(m, at, q, &c, 0);
    i->extents[WHOLE] = (extent){.last_out_in = first.last_out_in, .tiles_out_in = i->job.tiles_out_in};
    i->extents[HALF] = (extent){.last_out_in = first.last_out_in, .tiles_out_in = first.tiles_out_in};
    i->extents[LAST] = (extent){.last_out_in = end.last_out_in, .tiles_out_in = end.tiles_out_in};
    same_places(i, c.apart << c.log);
    i->half_bytes = (m->block_bytes << half.log) / SC_ROWS;
    i->rows = (uint16_t)(1u << c.log), i->last_rows = (uint16_t)last.count;
    i->last_each = (uint16_t)((last.count + SC_CORES * 2 - 1) / (SC_CORES * 2) * 2);
    i->last_blocks = (uint16_t)((last.count + SC_CORES * SC_ROWS - 1) / (SC_CORES * SC_ROWS) * SC_ROWS);
    i->form = m->in.words << 7 | bits_of(m) << 1 | (uint32_t)dense(m);
#ifdef SC_ENGINE_TAILS
    i->tails = m->tails;
    if (m->tails) {
        i->tail_words = (uint8_t)tail_words(m), i->tail_at = (uint16_t)tail_of(m).first;
        i->tail_row = (uint16_t)row_bytes_of(m, 1), i->high = (uint16_t)(4 * m->in.words);
        i->nibbles = has_nibbles(m) & 1;
        i->last_each = i->last_blocks;
        i->form |= (uint32_t)m->tails << 5;
    }
#endif
    i->whole = (uint16_t)whole, i->count = (uint16_t)(ends == &c ? whole : half.count - whole);
}

/* Half jobs before a job of one token. */
static inline uint32_t halves_before(const image *i, uint32_t job) {
    return job + (job < i->whole ? job : i->whole);
}

#include "sc_neureka_tails.h"

/* The next job of one token, to be committed; waits while two are under way. */
SC_HOT static void write_one(const image *i, uint32_t job) {
    const extent *const e = &i->extents[job + 1u == i->count ? LAST : job < i->whole ? WHOLE : HALF];
    const sc_neureka at = sc_neureka_acquire();
    sc_neureka_place(at, i->job.weights + halves_before(i, job) * i->half_bytes,
                     i->job.out + job % JOBS * SC_NEUREKA_SUMS, e->last_out_in, e->tiles_out_in);
    if (sc_neureka_holds() != i->form) sc_neureka_form(at, &i->job);
    write_places(at, e);
    write_tail(at, i, job, e->last_out_in, e->tiles_out_in);
    sc_neureka_written(i->form);
}

/* Of passes over one token, or with one left in the last layer; written by the controller. */
static SC_L1 struct {
    const image *at_hand; /* whose jobs these are; the workers copy it before end()'s first meeting */
    const sc_matrix *of;  /* whose first job has been written, or 0 */
    const image *end;     /* behind the last one that the pass multiplies with */
    uint32_t written;     /* jobs of it before begin() */
} now;

static inline void write_first(const image *i) {
    now.at_hand = i;
    write_one(i, 0);
    fetch_tails(i, 0);
}

/* A pass's first matrix, and those behind one that another engine has. */
SC_WARM static void prepare_first(const sc_matrix *m) {
    now.end = image_of(sc_pass_end());
    now.of = m;
    write_first(image_of(m));
}

#include "sc_neureka_several.h"

SC_HOT static void prepare(const sc_matrix *m, uint32_t tokens, int behind_norm) {
    if (tokens > 1) {
        prepare_several(m, tokens);
        return;
    }
    if (__builtin_expect(now.of != m, 0)) prepare_first(m);
    const image *const i = now.at_hand;
    clear_between(i);
    now.written = 1;
    if (behind_norm && i->count > 1) { /* there is time, and the engine will go on when the first is done */
        now.written = 2;
        sc_neureka_hold();
        write_one(i, 1);
    }
}

/* Nothing comes before the first jobs of one token: everybody waits for them. */
SC_HOT static void begin(const sc_matrix *m, const sc_qvec *x, uint32_t tokens) {
    (void)x;
    if (tokens > 1) {
        begin_several(m, tokens);
        return;
    }
    sc_neureka_commit();
}

SC_HOT static void attend(const sc_matrix *m, uint32_t tokens) {
    if (tokens > 1) {
        attend_several(m, tokens);
        return;
    }
    const image *i = now.at_hand;
    uint32_t job = 0, left;
    await_tails(i, 0);
    sc_meet(); /* what the vector's values stand for is known, and the first job's tails are there */
    do {       /* as above; tails of a job that comes next lie where those of the last but one were */
        left = i->count - ++job;
        if (left && job >= now.written) {
            write_one(i, job);
            sc_neureka_commit();
        }
        if (left) {
            fetch_tails(i, job);
            await_tails(i, job);
        }
        sc_neureka_wait(left > 0);
        sc_meet();
    } while (left);
    /* the next matrix's first job is written while the workers join the last one's sums */
    const int follows = ++i != now.end && i->count;
    now.of = follows ? now.of + 1 : 0;
    if (follows) write_first(i);
}

#ifdef SC_ENGINE_TAILS
#define MEETS_IN_JOIN 0 /* tails are added before */
#else
#define MEETS_IN_JOIN 1
#endif

SC_HOT static void end(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                       const sc_output *out, int core) {
    (void)at; /* what is read of it is in the image */
    if (tokens > 1) {
        end_several(m, x, tokens, out, core);
        return;
    }
    const image *const i = now.at_hand;
    /* this core's of a job: so many rows, from `mine` on; `row`: where the job begins */
    uint32_t rows = i->rows / SC_CORES, mine = rows * (uint32_t)core, row = 0, job = 0, places = JOBS;
    uint32_t apart = apart_of(i, i->whole ? WHOLE : HALF), left = i->count;
    int32_t *sums = (int32_t *)(uintptr_t)i->job.out;
    sc_meet();
    const joining j = joining_of(m, x, out);
    if (has_any_tails(i)) own_tails(i, 0, x, core);
    for (;;) {
        if (job == i->whole) mine /= 2, rows /= 2, apart = apart_of(i, HALF);
        if (--left == 0) {
            const uint32_t each = out->kind == SC_SILU ? i->last_blocks : i->last_each, there = m->rows - row;
            apart = apart_of(i, LAST);
            mine = each * (uint32_t)core;
            if (mine >= there) {
                sc_meet();
                return;
            }
            rows = there - mine < each ? there - mine : each;
        }
        int32_t *const low = sums + mine;
        const uint32_t of = row + mine;
#ifdef SC_ENGINE_TAILS
        sc_meet();
        if (has_tails(i, job)) add_own_tails(i, core, low, (rows + SC_ROWS - 1) / SC_ROWS * SC_ROWS);
#endif
        join(&j, i->multipliers + of, of, rows, low, low + apart, out->dst, MEETS_IN_JOIN, OF_ONE);
        if (left == 0) return;
        job++;
        if (has_tails(i, job)) own_tails(i, job, x, core);
        row += rows * SC_CORES;
        sums += SC_NEUREKA_SUMS / 4;
        if (--places == 0) places = JOBS, sums -= JOBS * SC_NEUREKA_SUMS / 4;
    }
}

#else

#define start 0
static void prepare(const sc_matrix *m, uint32_t tokens, int behind_norm) {
    (void)m, (void)tokens, (void)behind_norm;
}
static void begin(const sc_matrix *m, const sc_qvec *x, uint32_t tokens) { (void)m, (void)x, (void)tokens; }
static void attend(const sc_matrix *m, uint32_t tokens) {
    (void)m, (void)tokens;
    sc_meet();
}

/* Of both bytes; a whole piece is a loop of known length, which compilers take for vectors. */
static inline int32_t dot(const int8_t *w, const int8_t *low, const int8_t *high, uint32_t n) {
    int32_t l = 0, h = 0;
    if (n == PIECE_MAX) {
        for (uint32_t i = 0; i < PIECE_MAX; i++) l += w[i] * low[i], h += w[i] * high[i];
    } else {
        for (uint32_t i = 0; i < n; i++) l += w[i] * low[i], h += w[i] * high[i];
    }
    return l + 256 * h;
}

static void end(const sc_matrix *m, const uint8_t *at, const sc_qvec *x, uint32_t tokens,
                const sc_output *out, int core) {
    const uint32_t pitch = sc_q16_pitch(m, tokens);
    sc_meet();
    for (uint32_t b = (uint32_t)core; b < m->blocks; b += SC_CORES) {
        int32_t acc[SC_CHUNK][SC_ROWS] = {{0}};
        const uint32_t pieces = pieces_of(m, has_tail(m, b * SC_ROWS));
        for (uint32_t r = 0; r < SC_ROWS; r++) {
            for (uint32_t i = 0; i < pieces; i++) {
                int8_t w[PIECE_MAX];
                const piece p = unpack(m, row_at(m, at, b * SC_ROWS + r), i, w);
                for (uint32_t t = 0; t < tokens; t++)
                    acc[t][r] += dot(w, x[t].q + p.first, x[t].q + pitch + p.first, p.count);
            }
        }
#ifdef SC_ENGINE_TAILS
        for (uint32_t t = 0; has_tail(m, b * SC_ROWS) && t < tokens; t++) {
            const tail_place p = tail_of(m);
            const int8_t *const q = x[t].q + p.first;
            sc_rows of;
            dot_tails(&of, tails_at(m, at, b * SC_ROWS), q, q + pitch, p, (uint32_t)has_nibbles(m));
#define SUM(r) acc[t][r] += of.s##r;
            SC_EACH_ROW(SUM)
#undef SUM
        }
#endif
        for (uint32_t t = 0; t < tokens; t++)
            sc_matrix_rows(m, multipliers(m, at) + b * SC_ROWS, b * SC_ROWS, acc[t], &x[t], out,
                           out->dst + t * out->stride);
    }
}

#endif

#if SC_ON_NEUREKA_1X1 != 255
SC_L1_DATA const sc_engine sc_engine_neureka_1x1 = {start, prepare, begin, attend, end, read_row};
#endif
#if SC_ON_NEUREKA_BOTH != 255
SC_L1_DATA const sc_engine sc_engine_neureka_both = {start, prepare, begin, attend, end, read_row};
#endif
#ifdef SC_ON_NEUREKA_3X3
SC_L1_DATA const sc_engine sc_engine_neureka_3x3 = {start, prepare, begin, attend, end, read_row};
#endif

#endif
