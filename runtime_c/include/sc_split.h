/* SPDX-License-Identifier: Apache-2.0
 * Split of a block among cores, for tiles with fewer blocks than cores (sc_is_split()).
 * Each core multiplies a part of the inputs of one block; the partial sums are added afterwards. */
#ifndef SC_SPLIT_H
#define SC_SPLIT_H

#include "sc_dot.h"

/* What a core computes: part `part` of `parts` of block `block`. No work if `block` is not below the
 * count. */
typedef struct {
    uint32_t block, part, parts;
} sc_split_place;

static inline sc_split_place sc_split_at(uint32_t count, int core, int cores) {
    const uint32_t parts = (uint32_t)cores / count, block = (uint32_t)core / parts;
    return (sc_split_place){block, (uint32_t)core - block * parts, parts};
}

/* Inputs of a row that one packed word holds. */
SC_INLINE uint32_t sc_inputs(const int format) {
#define INPUTS(bits, inputs, fold)                                                                           \
    case bits:                                                                                               \
        return inputs;
    switch (format & SC_FMT_BITS) { SC_EACH_WIDTH(INPUTS) }
    __builtin_unreachable();
}

/* A part of a block's inputs: words (16-bit activations) or quantisation groups first .. end - 1. Their
 * weights begin `bytes` after the block's first weight. The last parts may be empty. */
typedef struct {
    uint32_t first, end, bytes;
} sc_split_part;

SC_INLINE sc_split_part sc_split_inputs(const sc_matrix *m, const int format, const sc_split_place *at) {
    const uint32_t word = 4u * (uint32_t)(format & SC_FMT_BITS); /* bytes of one word of each of the 8 rows */
    const int wide = format & SC_FMT_Q16;
    const uint32_t unit = wide ? sc_inputs(format) / 4 : 1, whole = wide ? m->in.words : m->in.groups;
    const uint32_t share = (whole / unit + at->parts - 1) / at->parts * unit, first = at->part * share;
    if (first >= whole) return (sc_split_part){0, 0, 0};
    return (sc_split_part){first, whole - first < share ? whole : first + share,
                           first * (wide ? word : sc_table_bytes(format) + m->in.group_words * word)};
}

#endif
