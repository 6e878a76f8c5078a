/* SPDX-License-Identifier: Apache-2.0
 * Weight tiles from wherever they are stored into two L1 buffers.
 *
 * Tiles are consumed in one fixed order: in the order of sc_matrices.  While the
 * cores work on one tile, the last core has the next under way; from flash further ones are on their way into
 * staging buffers in L2, as many as keep the slow memory busy while the cores are at something else than tiles.
 */
#include "sc_platform.h"

#include "sc_buffers.h"

#if SC_STAGE_BYTES > 0
static SC_L2 uint8_t stage[SC_STAGES][SC_STAGE_BYTES] __attribute__((aligned(16)));
#define STAGE(n) stage[(n) % SC_STAGES]
#endif

/* The next tile. */
typedef struct {
    const sc_matrix *m;
    uint32_t block;
} cursor;

static SC_L1 struct {
    cursor load, fetch;       /* to copy into L1; to read from flash */
    const sc_matrix *end;     /* of this pass */
    uint32_t loads;           /* tiles copied or under way: the buffer is its parity */
    uint32_t fetches, staged; /* flash tiles asked for, and handed on, in a stage each by turns */
    sc_dma dma;
    uint32_t taken[SC_PLANNED_CORES]; /* per core, so that nobody reads a count another core moves on */
} st;

static uint32_t tile_bytes(const cursor *c) {
    return (uint32_t)sc_min((int32_t)(c->m->blocks - c->block), c->m->tile_blocks) * c->m->block_bytes;
}

/* To the next matrix that travels; engines other than the cores read theirs where they lie. */
static void skip(cursor *c) {
#ifdef SC_HAS_ENGINES
    while (c->m < st.end && sc_on_engine(c->m)) c->m++;
#else
    (void)c;
#endif
}

static void advance(cursor *c) {
    c->block += c->m->tile_blocks;
    if (c->block >= c->m->blocks) {
        c->block = 0, c->m++;
        skip(c);
    }
}

#if SC_STAGE_BYTES > 0
/* Starts reading the next tiles that live in flash, as far as there are stages: the one that was handed on last may
 * still be copied. */
static void fetch_ahead(void) {
    cursor *c = &st.fetch;
    while (st.fetches - st.staged < SC_STAGES - 1) {
        while (c->m < st.end && c->m->level < SC_IN_FLASH) c->m++;
        if (c->m >= st.end) return;
        const sc_place at = sc_place_of(c->m, c->block);
        if (at.level == SC_IN_FLASH) sc_flash_start(STAGE(st.fetches++), at.offset, tile_bytes(c));
        advance(c);
    }
}
#endif

/* Starts copying the next tile into its L1 buffer. */
SC_HOT static void load_ahead(void) {
    cursor *c = &st.load;
    if (c->m >= st.end) return;
    const sc_place at = sc_place_of(c->m, c->block);
    const uint8_t *src = SC_BLOB(at.level) + at.offset;
#if SC_STAGE_BYTES > 0
    if (at.level == SC_IN_FLASH) {
        sc_flash_wait(st.fetches - st.staged - 1);
        src = STAGE(st.staged++);
    }
#endif
    st.dma = sc_dma_in(tiles[st.loads++ & 1], src, tile_bytes(c));
    advance(c);
#if SC_STAGE_BYTES > 0
    fetch_ahead();
#endif
}

SC_WARM void sc_stream_begin(void) {
    st.load = st.fetch = (cursor){sc_matrices, 0};
    st.end = sc_pass_end();
    skip(&st.load);
    st.loads = st.fetches = st.staged = 0;
    for (int c = 0; c < SC_PLANNED_CORES; c++) st.taken[c] = 0;
#if SC_STAGE_BYTES > 0
    fetch_ahead();
#endif
    load_ahead();
}

SC_HOT const uint8_t *sc_stream_tile(int core) {
    if (core == SC_LAST_CORE(SC_CORES)) sc_dma_wait(st.dma);
    sc_barrier(); /* the tile is there, and nobody reads the other buffer any more */
    uint32_t index = st.taken[core]++;
    if (core == SC_LAST_CORE(SC_CORES)) load_ahead();
    return tiles[index & 1];
}
