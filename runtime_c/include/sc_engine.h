/* SPDX-License-Identifier: Apache-2.0
 * The engine: one forward pass over a chunk of tokens, sampling, and the generation loop. */
#ifndef SC_ENGINE_H
#define SC_ENGINE_H

#include "sc_attention.h"
#include "sc_input.h"

/* All L1 buffers lie in one arena; the memory planner gave each its offset, and buffers that are
 * never live together share bytes. */
extern uint8_t sc_arena[SC_ARENA_BYTES];
#define SC_BUFFER(type, offset) ((type)(void *)(sc_arena + (offset)))

/* Where a run stands; set by the controller, read by the workers. */
typedef struct {
    uint32_t position; /* of the chunk's first token */
    uint32_t tokens;   /* in the chunk, 1 .. SC_CHUNK */
    uint32_t ids[SC_CHUNK];
    uint32_t want_logits; /* of the chunk's last token; of all with SC_TRACE_LOGITS */
    uint32_t trace;       /* enum sc_trace flags */
    uint32_t dump_position, dump_layer;
    uint32_t untimed; /* time spent on proofs, to be taken off the step's */
} sc_step;

extern sc_step sc_now;
#if SC_LOGITS_IN_L1
#define sc_logits SC_BUFFER(int32_t *, SC_AT_LOGITS)
#else
extern int32_t sc_logits[SC_VOCAB];
#endif

#if SC_ALL_LOGITS
extern int32_t sc_all_logits[SC_CHUNK][SC_VOCAB];
#endif

void sc_forward(void *unused, int core); /* for sc_run_workers */

/* ---- weight tiles: the whole pass is one linear stream, double-buffered into L1 ---- */
void sc_stream_begin(uint32_t want_logits); /* core 0, before any sc_stream_tile */
/* All cores, between barriers of the caller's making: the next tile, in L1. */
const uint8_t *sc_stream_tile(int core);

/* ---- sampling (controller) ---- */
typedef struct {
    uint32_t inv_temp_q16, top_p_q16, seed;
} sc_sampling;
uint32_t sc_sample(const sc_sampling *how, uint32_t position);

/* ---- proof ---- */
void sc_trace_layer(uint32_t layer, const int32_t *x, uint32_t stride); /* core 0 */
void sc_trace_logits(void);
enum sc_dump_point {
    /* input and output of each matrix, in the order of enum sc_slot ... */
    SC_DUMP_QKV_IN,
    SC_DUMP_QKV,
    SC_DUMP_O_IN,
    SC_DUMP_O,
    SC_DUMP_GU_IN,
    SC_DUMP_H,
    SC_DUMP_DOWN_IN,
    SC_DUMP_OUT,
    /* ... and of attention */
    SC_DUMP_Q8,
    SC_DUMP_ATTN
};
/* All cores: prints an op's output if this layer and position were asked for. */
void sc_dump(enum sc_dump_point what, uint32_t layer, int core);

/* ---- text output, buffered by lines ---- */
void sc_putc(char c);
void sc_flush(void);
void sc_puts(const char *text);
void sc_put_hex(uint32_t v, int digits);
void sc_put_uint(uint32_t v);
/* lines of "tag first v v ..." in hex */
void sc_put_words(const char *tag, const int32_t *v, uint32_t n);

#endif
