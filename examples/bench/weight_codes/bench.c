/* SPDX-License-Identifier: Apache-2.0
 * Program of the study of weight codes for Siracusa: multiplies a coded matrix by a vector, with the weights in L1,
 * copied from L2 by DMA, or copied from flash. Prints all sums as "y <sum>" and its cycles as "<name> <value> ...".
 * Data: wc_data (data.S), and the same tiles in flash. */
#include "sc_platform.h" /* first: defines SC_XPULP */

#include "decode.h"
#include "sc_console.h"

#ifndef WC_FROM_FLASH
#define WC_FROM_FLASH 0
#endif
#define TILE_ROOM (64 * 1024)  /* a tile and what decoders may read beyond */
#define TABLE_WORDS (5 * 1024) /* 4096 entries, and 4096 lengths of one byte */
#define INPUTS 2048
#define STAGES 4 /* tiles of flash in L2 */
#define READ_CSR(csr)                                                                                        \
    ({                                                                                                       \
        uint32_t v_;                                                                                         \
        __asm__ volatile("csrr %0, " #csr : "=r"(v_)::"memory");                                             \
        v_;                                                                                                  \
    })

extern const uint32_t wc_data[];

static uint32_t table[TABLE_WORDS] SC_L1;
static int32_t expanded[INPUTS] SC_L1;
static int8_t x[INPUTS] SC_L1;
static uint8_t tiles[2][TILE_ROOM] SC_L1_LARGE;
static int32_t sums[2 * INPUTS] SC_L2;
#if WC_FROM_FLASH
static uint8_t stages[STAGES][TILE_ROOM] SC_L2;
#endif
static wc_shape shape SC_L1;
static wc_operands operands SC_L1;
static struct work {
    const uint8_t *tile;
    int32_t *sums;
    uint32_t blocks;
    int32_t of[256 * WC_ROWS]; /* of a tile */
} work SC_L1;
static uint32_t errors[SC_CORES] SC_L1, counters[SC_CORES][4] SC_L1;

static void print(const char *name, uint32_t value, int is_signed) {
    char text[12];
    int at = 11, negative = is_signed && (int32_t)value < 0;
    if (negative) value = -value;
    text[at] = 0;
    do text[--at] = (char)('0' + value % 10);
    while (value /= 10);
    if (negative) text[--at] = '-';
    sc_message(name);
    sc_message(" ");
    sc_message(text + at);
    sc_message("\n");
}

SC_HOT static void multiply(void *arg, int core) {
    struct work *w = arg;
    __asm__ volatile("csrw 0xCC1, zero\ncsrw 0x79F, zero\ncsrw 0xCC0, %0\ncsrw 0xCC1, %1" ::"r"(0x17),
                     "r"(1));
    for (uint32_t block = (uint32_t)core; block < w->blocks; block += SC_CORES) {
        int32_t a[WC_ROWS];
        const uint32_t error = wc_block(a, w->tile, block, &operands);
        if (error) errors[core] = error;
        for (int r = 0; r < WC_ROWS; r++) w->of[WC_ROWS * block + (uint32_t)r] = a[r];
    }
    counters[core][0] += READ_CSR(0x780), counters[core][1] += READ_CSR(0x781);
    counters[core][2] += READ_CSR(0x782), counters[core][3] += READ_CSR(0x784);
}

static uint32_t size_of(const uint32_t *at, uint32_t tile) { return at[tile + 1] - at[tile]; }
static uint32_t blocks_in(uint32_t tile) {
    const uint32_t all = (shape.rows + WC_ROWS - 1) / WC_ROWS, left = all - tile * shape.tile_blocks;
    return left < shape.tile_blocks ? left : shape.tile_blocks;
}

static void multiply_tile(uint32_t tile, const uint8_t *in_l1) {
    work.tile = in_l1, work.blocks = blocks_in(tile);
    sc_run_workers(multiply, &work);
}

static void store(uint32_t tile) {
    const uint32_t rows = WC_ROWS * shape.tile_blocks;
    sc_dma_wait(sc_dma_out(sums + rows * tile, work.of, 4 * WC_ROWS * blocks_in(tile)));
}

#if WC_FROM_FLASH

/* Tiles in flash begin at byte 0; each is copied to a stage in L2, then to L1. Returns the cycles after the first
 * tile, for which nothing else could be done. */
static uint32_t all_tiles(const uint32_t *at, const uint8_t *coded) {
    uint32_t start = 0;
    (void)coded;
    for (uint32_t t = 0; t < STAGES && t < shape.tiles; t++) sc_flash_start(stages[t], at[t], size_of(at, t));
    sc_flash_wait(shape.tiles < STAGES ? shape.tiles - 1 : STAGES - 1);
    sc_dma_wait(sc_dma_in(tiles[0], stages[0], size_of(at, 0)));
    for (uint32_t t = 0; t < shape.tiles; t++) {
        const uint32_t left = shape.tiles - t - 1; /* tiles after this one */
        sc_dma next = 0;
        if (left) {
            sc_flash_wait((left < STAGES - 1 ? left : STAGES - 1) - 1);
            next = sc_dma_in(tiles[(t + 1) & 1], stages[(t + 1) % STAGES], size_of(at, t + 1));
        }
        multiply_tile(t, tiles[t & 1]);
        if (left) sc_dma_wait(next);
        if (left >= STAGES) sc_flash_start(stages[t % STAGES], at[t + STAGES], size_of(at, t + STAGES));
        store(t);
        if (t == 0) start = sc_time();
    }
    return sc_time() - start;
}

#else

/* While the workers use a tile, the DMA brings the next one. */
static uint32_t all_tiles(const uint32_t *at, const uint8_t *coded) {
    const uint32_t start = sc_time();
    sc_dma_wait(sc_dma_in(tiles[0], coded, size_of(at, 0)));
    for (uint32_t t = 0; t < shape.tiles; t++) {
        const int more = t + 1 < shape.tiles;
        sc_dma next = 0;
        if (more) next = sc_dma_in(tiles[(t + 1) & 1], coded + at[t + 1], size_of(at, t + 1));
        multiply_tile(t, tiles[t & 1]);
        if (more) sc_dma_wait(next);
        store(t);
    }
    return sc_time() - start;
}

#endif

int main(void) {
    for (uint32_t i = 0; i < sizeof shape / 4; i++) ((uint32_t *)&shape)[i] = wc_data[i];
    const uint32_t *from = wc_data + sizeof shape / 4;
    if (wc_buffer_bytes(&shape) > TILE_ROOM || shape.table_words > TABLE_WORDS || shape.inputs > INPUTS)
        return 2;
    sc_dma_wait(sc_dma_in(table, from, 4 * shape.table_words));
    if (!wc_table_fits(&shape, table)) return 3;
    from += shape.table_words;
    sc_dma_wait(sc_dma_in(expanded, from, 4 * shape.symbols));
    from += shape.symbols;
    sc_dma_wait(sc_dma_in(x, from, (shape.inputs + 3) & ~3u));
    from += (shape.inputs + 3) / 4;
    operands = (wc_operands){&shape, table, expanded, x};
    const uint32_t *at = from;
    const uint8_t *coded = (const uint8_t *)(from + shape.tiles + 1);
    /* twice: the first time fills the instruction cache */
    sc_dma_wait(sc_dma_in(tiles[0], coded, size_of(at, 0)));
    for (int i = 0; i < 2; i++) {
        for (int core = 0; core < SC_CORES; core++) {
            for (int c = 0; c < 4; c++) counters[core][c] = 0;
        }
        const uint32_t start = sc_time();
        multiply_tile(0, tiles[0]);
        const uint32_t took = sc_time() - start;
        if (i) print("l1", took, 0);
    }
    print("active", counters[0][0], 0);
    print("instructions", counters[0][1], 0);
    print("load_stalls", counters[0][2], 0);
    print("icache", counters[0][3], 0);
    print(WC_FROM_FLASH ? "flash" : "l2", all_tiles(at, coded), 0);
    uint32_t error = 0;
    for (int core = 0; core < SC_CORES; core++) error = error ? error : errors[core];
    print("error", error, 0);
    for (uint32_t r = 0; r < shape.rows; r++) print("y", (uint32_t)sums[r], 1);
    return 0;
}
