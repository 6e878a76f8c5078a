/* SPDX-License-Identifier: Apache-2.0
 * Decodes a file of prefix_codes.py with the portable decoders, for tests with sanitizers: each tile lies in a block
 * of exactly the size that wc_buffer_bytes() asks for.
 *
 *     host FILE           per block of rows the error and 8 sums, as int32; status 3: the table has too long words
 *     host FILE N SEED    N times with a damaged copy of the tiles: how many blocks had each error, as int32 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SC_XPULP 0
#include "decode.h"

static uint32_t seed;

static uint32_t below(uint32_t n) {
    seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
    return seed % n;
}

static void *copy(const uint8_t **from, size_t bytes) {
    uint8_t *to = malloc(bytes);
    memcpy(to, *from, bytes);
    *from += bytes;
    return to;
}

/* Other bytes, mostly in the offsets or anywhere, or zeros from some byte on. */
static void damage(uint8_t *tile, uint32_t bytes, uint32_t offsets) {
    const uint32_t most = below(2) ? offsets : bytes;
    for (uint32_t i = 1 + below(8); i; i--) tile[below(most)] = (uint8_t)below(256);
    if (below(4) == 0) {
        const uint32_t from = below(bytes);
        memset(tile + from, 0, bytes - from);
    }
}

int main(int argc, char **argv) {
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    const uint32_t times = argc > 3 ? (uint32_t)atoi(argv[2]) : 0;
    if (file == NULL) return 1;
    if (times) seed = (uint32_t)atoi(argv[3]) + 1;
    fseek(file, 0, SEEK_END);
    const size_t bytes = (size_t)ftell(file);
    rewind(file);
    uint8_t *all = malloc(bytes);
    if (fread(all, 1, bytes, file) != bytes) return 1;
    fclose(file);
    const uint8_t *from = all;
    wc_shape *shape = copy(&from, sizeof *shape);
    uint32_t *table = copy(&from, 4 * shape->table_words);
    int32_t *expanded = copy(&from, 4 * shape->symbols);
    int8_t *x = copy(&from, shape->inputs);
    from += -shape->inputs & 3;
    const uint32_t *at = (const uint32_t *)from;
    const uint8_t *tiles = from + 4 * (shape->tiles + 1);
    const int fits = wc_table_fits(shape, table);
    const uint32_t runs = !fits ? 0 : times ? times : 1;
    const wc_operands operands = {shape, table, expanded, x};
    const uint32_t blocks = (shape->rows + WC_ROWS - 1) / WC_ROWS;
    int32_t errors[4] = {0};
    for (uint32_t run = 0; run < runs; run++) {
        for (uint32_t t = 0; t < shape->tiles; t++) {
            uint8_t *tile = calloc(wc_buffer_bytes(shape), 1);
            memcpy(tile, tiles + at[t], at[t + 1] - at[t]);
            if (times) damage(tile, at[t + 1] - at[t], 2 * (2 + 9 * shape->tile_blocks));
            for (uint32_t b = 0; b < shape->tile_blocks && t * shape->tile_blocks + b < blocks; b++) {
                int32_t out[1 + WC_ROWS] = {0};
                out[0] = (int32_t)wc_block(out + 1, tile, b, &operands);
                errors[out[0]]++;
                if (!times) fwrite(out, sizeof out, 1, stdout);
            }
            free(tile);
        }
    }
    if (times) fwrite(errors, sizeof errors, 1, stdout);
    free(x), free(expanded), free(table), free(shape), free(all);
    return fits ? 0 : 3;
}
