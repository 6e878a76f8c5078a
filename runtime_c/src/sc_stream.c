/* SPDX-License-Identifier: Apache-2.0
 * Weight stream: copies tiles from weight memory, L2 or flash to two L1 buffers, in the order of sc_matrices.
 *
 * While the cores multiply one tile, the last core has the DMA copy the next one. Tiles from flash are
 * prefetched to staging buffers in L2, so that flash stays busy while the cores do other work. */
#include "sc_platform.h"

#include "sc_buffers.h"

#if SC_TILE_BYTES > 0 /* else all matrices are read in place */
#if SC_STAGE_BYTES > 0
static SC_L2 uint8_t stage[SC_STAGES][SC_STAGE_BYTES] __attribute__((aligned(16)));
#define STAGE(n) stage[(n) % SC_STAGES]
#endif

/* A tile. */
typedef struct {
    const sc_matrix *m;
    uint32_t block;
} cursor;

static SC_L1 struct {
    cursor load, fetch;       /* next tile to copy to L1; next tile to read from flash */
    const sc_matrix *end;     /* end of this pass's matrices */
    uint32_t loads;           /* tiles copied or being copied: the parity selects the buffer */
    uint32_t fetches, staged; /* flash tiles requested, and copied to L1; stages are used in turn */
    sc_dma dma;
    uint32_t taken[SC_PLANNED_CORES]; /* per core, so that no core reads a count that another one changes */
} st;

static uint32_t tile_bytes(const cursor *c) {
    return (uint32_t)sc_min((int32_t)(c->m->blocks - c->block), c->m->tile_blocks) * c->m->block_bytes;
}

/* To the next matrix that is not read in place by an engine. */
static void skip_engine_matrices(cursor *c) {
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
        skip_engine_matrices(c);
    }
}

#if SC_STAGE_BYTES > 0
/* Requests further tiles from flash while stages are free. The last stage used may still be copied from. */
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

/* Starts the copy of the next tile to its L1 buffer. */
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
    st.dma = sc_dma_in(tile_buffers[st.loads++ & 1], src, tile_bytes(c));
    advance(c);
#if SC_STAGE_BYTES > 0
    fetch_ahead();
#endif
}

SC_WARM void sc_stream_begin(void) {
    st.load = st.fetch = (cursor){sc_matrices, 0};
    st.end = sc_pass_end();
    skip_engine_matrices(&st.load);
    st.loads = st.fetches = st.staged = 0;
    for (int c = 0; c < SC_PLANNED_CORES; c++) st.taken[c] = 0;
#if SC_STAGE_BYTES > 0
    fetch_ahead();
#endif
    load_ahead();
}

SC_HOT const uint8_t *sc_stream_tile(int core) {
    if (core == SC_LAST_CORE(SC_CORES)) sc_dma_wait(st.dma);
    sc_worker_barrier(); /* the tile is there, and no core reads the other buffer any more */
    uint32_t index = st.taken[core]++;
    if (core == SC_LAST_CORE(SC_CORES)) load_ahead();
    return tile_buffers[index & 1];
}
#endif
