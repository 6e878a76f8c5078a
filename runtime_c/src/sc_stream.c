/* Weight tiles from wherever they are stored into two L1 buffers.
 *
 * Tiles are consumed in one fixed order: slot by slot, layer by layer, then the head.  While the
 * cores work on one tile, the last core has the next under way; from flash a third is on its way into an
 * L2 staging buffer, so the slow memory never waits for the fast one.
 */
#include "sc_platform.h"

#include "sc_engine.h"

#define buffers SC_BUFFER(uint8_t(*)[SC_TILE_BYTES], SC_AT_TILES)
#if SC_STAGE_BYTES > 0
static SC_L2 uint8_t stage[2][SC_STAGE_BYTES] __attribute__((aligned(16)));
#endif

/* A place in the stream. */
typedef struct {
    uint32_t layer, slot, block; /* next tile; layer == SC_LAYERS: the head */
} cursor;

static SC_L1 struct {
    cursor load, fetch; /* next tile to copy into L1; next to read from flash */
    uint32_t want_logits;
    uint32_t loads;          /* tiles copied or under way: the buffer is its parity */
    uint32_t fetches, staged; /* flash tiles asked for, and handed on: the stage is its parity */
    sc_dma dma;
    uint32_t taken[SC_PLANNED_CORES]; /* per core, so that nobody reads a count another core moves on */
} st;

/* The matrix a cursor stands on, absent slots skipped; NULL at the end of the pass. */
static const sc_matrix *settle(cursor *c) {
    for (;;) {
        if (c->layer >= SC_LAYERS) return c->layer == SC_LAYERS && st.want_logits ? &sc_head : 0;
        const sc_matrix *m = &sc_layers[c->layer].m[c->slot];
        if (m->blocks) return m;
        if (++c->slot == SC_SLOTS) c->slot = 0, c->layer++;
    }
}

static uint32_t tile_blocks(const sc_matrix *m, const cursor *c) {
    uint32_t left = m->blocks - c->block;
    return left < m->tile_blocks ? left : m->tile_blocks;
}

static void advance(const sc_matrix *m, cursor *c) {
    c->block += m->tile_blocks;
    if (c->block < m->blocks) return;
    c->block = 0;
    if (c->layer >= SC_LAYERS) {
        c->layer++;
        return;
    }
    if (++c->slot == SC_SLOTS) c->slot = 0, c->layer++;
}

#if SC_STAGE_BYTES > 0
/* Starts reading the next tile that lives in flash, unless one is under way already. */
static void fetch_ahead(void) {
    const sc_matrix *m;
    if (st.fetches != st.staged) return;
    while ((m = settle(&st.fetch)) && m->level != SC_IN_FLASH) advance(m, &st.fetch);
    if (!m) return;
    sc_flash_start(stage[st.fetches++ & 1], m->offset + st.fetch.block * m->block_bytes,
                   tile_blocks(m, &st.fetch) * m->block_bytes);
    advance(m, &st.fetch);
}
#endif

/* Starts copying the next tile into its L1 buffer. */
static void load_ahead(void) {
    const sc_matrix *m = settle(&st.load);
    if (!m) return;
    uint32_t bytes = tile_blocks(m, &st.load) * m->block_bytes;
    const uint8_t *src =
        (m->level == SC_IN_WMEM ? sc_blob_wmem : sc_blob_l2) + m->offset + st.load.block * m->block_bytes;
#if SC_STAGE_BYTES > 0
    if (m->level == SC_IN_FLASH) {
        sc_flash_wait();
        src = stage[st.staged++ & 1];
    }
#endif
    st.dma = sc_dma_in(buffers[st.loads++ & 1], src, bytes);
    advance(m, &st.load);
#if SC_STAGE_BYTES > 0
    fetch_ahead();
#endif
}

void sc_stream_begin(uint32_t want_logits) {
    cursor start = {0, 0, 0};
    st.load = st.fetch = start;
    st.want_logits = want_logits;
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
    return buffers[index & 1];
}
