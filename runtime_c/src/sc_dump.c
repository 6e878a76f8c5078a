/* SPDX-License-Identifier: Apache-2.0
 * Prints the outputs of one layer's ops at one position: the host finds the first differing index. */
#include "sc_platform.h"

#include "sc_buffers.h"

static void dump_words(const char *op, const int32_t *v, uint32_t n) {
    char tag[32] = "@D ";
    int at = 3;
    while (*op) tag[at++] = *op++;
    tag[at] = 0;
    sc_put_words(tag, v, n);
}

static void dump_bytes(const char *op, const int8_t *v, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (i % 24 == 0) {
            sc_puts(i ? "\n@D " : "@D ");
            sc_puts(op);
            sc_puts(" ");
            sc_put_uint(i);
        }
        sc_puts(" ");
        sc_put_hex((uint32_t)(int32_t)v[i], 8);
    }
    sc_puts("\n");
}

/* op ends in ".q": its values; ".c" its segment scales; ".s" mantissa and exponent */
static void dump_qvec(const char *op, const sc_qvec *v, const sc_matrix *reader) {
    const int32_t scale[2] = {(int32_t)v->mantissa, v->exponent};
    char name[16];
    int n = 0;
    while (op[n]) name[n] = op[n], n++;
    name[n] = 0;
    name[n - 1] = 'c';
    dump_words(name, v->c, reader->in.nseg);
    name[n - 1] = 's';
    dump_words(name, scale, 2);
    dump_bytes(op, v->q, reader->in.words * 4u);
}

static void dump(enum sc_dump_point what, const sc_layer *l, uint32_t t) {
    switch (what) {
    case SC_DUMP_QKV_IN:
        dump_qvec("attn_in.q", &xv[t], l->m[SC_QKV]);
        break;
    case SC_DUMP_QKV:
        dump_words("qkv", y[t], SC_QKV_ROWS);
        break;
    case SC_DUMP_Q8:
        dump_bytes("q8", q8[t], SC_HEADS * SC_HDP);
        break;
    case SC_DUMP_ATTN:
        dump_words("attn", y[t], SC_HEADS * SC_HEAD_DIM);
        break;
    case SC_DUMP_O_IN:
        dump_qvec("o_in.q", &xv[t], l->m[SC_O]);
        break;
    case SC_DUMP_O:
        dump_words("mid", x[t], SC_HIDDEN);
        break;
    case SC_DUMP_GU_IN:
        dump_qvec("mlp_in.q", &xv[t], l->m[SC_GU]);
        break;
    case SC_DUMP_H:
        dump_words("h", y[t], SC_FFN);
        break;
    case SC_DUMP_DOWN_IN:
        dump_qvec("down_in.q", &xv[t], l->m[SC_DOWN]);
        break;
    case SC_DUMP_OUT:
        dump_words("out", x[t], SC_HIDDEN);
        break;
    }
}

void sc_dump(enum sc_dump_point what, uint32_t layer, int core) {
    uint32_t t = sc_now.dump_position - sc_now.position; /* huge if before the chunk */
    if (layer != sc_now.dump_layer || t >= sc_now.tokens) return;
    sc_barrier();
    if (core == 0) dump(what, &sc_layers[layer], t);
    sc_barrier();
}
