/* SPDX-License-Identifier: Apache-2.0
 * The engine: one forward pass over a chunk of tokens, sampling, drafts, and the generation loop. */
#ifndef SC_ENGINE_H
#define SC_ENGINE_H

#include "sc_abi.h"
#include "sc_attention.h"
#include "sc_engines.h"

/* All L1 buffers lie in one arena; the memory planner gave each its offset, and buffers that are
 * never live together share bytes. */
extern uint8_t sc_arena[SC_ARENA_BYTES] __attribute__((aligned(16)));
#define SC_BUFFER(type, offset) ((type)(void *)(sc_arena + (offset)))

/* What a pass gives beside keys and values: nothing; sc_logits of its last token (of all with SC_TRACE_LOGITS); or of
 * every token the largest logit (sc_choice), for which there may be SC_VERIFIED tokens. */
enum sc_want { SC_NO_LOGITS, SC_LAST_LOGITS, SC_CHOICES };

/* Rows of the logits of the chunk's last tokens, `stride` words apart in sc_logits. */
typedef struct {
    uint32_t tokens, row, rows, stride;
} sc_window;

/* Where a run stands; set by the controller, read by the workers. */
typedef struct {
    uint32_t position; /* of the chunk's first token */
    uint32_t tokens;   /* in the chunk, 1 .. SC_CHUNK */
    uint32_t known;    /* positions before it whose values' scales have been added up */
    uint32_t next;     /* whether it is one token, and they are all of those before it */
    /* the first of them that the last layer's attention, and what follows it, is done for; `tokens`: none */
    uint32_t first_wanted;
    uint32_t ids[SC_CHUNK];
    enum sc_want want;
    uint32_t trace;    /* enum sc_trace flags */
    uint32_t observed; /* ops after which sc_observe is called: 1 << enum sc_op */
    uint32_t dump_position, dump_layer;
    uint32_t untimed; /* time spent on observing, to be taken off the step's */
    sc_window window; /* what sc_logits has; core 0's */
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

void sc_start(void *unused, int core);   /* for sc_run_workers: what comes before the first pass */
void sc_forward(void *unused, int core); /* for sc_run_team: a pass */

/* In a pass the controller, where SC_TEAM has it, looks after engines, says what vectors stand for, takes heads and whole
 * tokens like a worker, moves caches and hashes; of everything else it has no part. */
SC_INLINE int sc_is_worker(int core) { return SC_TEAM == SC_CORES || core < SC_CORES; }
/* Who moves what attention adds to a cache behind L1. */
#define SC_KEEPER (SC_TEAM - 1)
/* Who has fetched what a layer's steps will read: the core that has tiles copied, or else the cache's keeper, whose code
 * takes no room among the workers' where it is the controller.  Where vectors are int8 that one is through with a norm
 * before they are. */
#define SC_FETCHER                                                                                           \
    (SC_TILE_BYTES > 0 || SC_ROPE_IN_FLASH || SC_XSEGS > 0 ? SC_LAST_CORE(SC_CORES) : SC_KEEPER)
/* Cores that take heads: of several tokens the team's, where the plan has room for the controller's, of one only if the
 * busiest has fewer of them then, since the controller's code takes room in the instruction cache (hands_of()
 * in ir/steps.py). */
#define SC_HANDS_OF_SEVERAL (SC_HANDS > SC_PLANNED_CORES ? SC_TEAM : SC_CORES)
#define SC_ROUNDS(cores) ((SC_HEADS + (cores) - 1) / (cores))
#define SC_HEAD_CORES                                                                                        \
    (SC_ROUNDS(SC_HANDS_OF_SEVERAL) < SC_ROUNDS(SC_CORES) ? SC_HANDS_OF_SEVERAL : SC_CORES) /* of one */
static inline int sc_head_cores(uint32_t tokens) { return tokens > 1 ? SC_HANDS_OF_SEVERAL : SC_HEAD_CORES; }

/* ---- weight tiles: the whole pass is one linear stream, double-buffered into L1 ---- */
void sc_stream_begin(void); /* the last core, before any sc_stream_tile */
/* The first token of this pass that a layer's attention, and what follows it, is done for: of the last layer nothing is
 * needed beside keys and values but what logits are made from. */
static inline uint32_t sc_first_wanted(uint32_t layer) {
    const uint32_t first = sc_now.first_wanted; /* 0 of a pass over one token that gives logits */
    return __builtin_expect(first == 0, 1) || layer + 1 < SC_LAYERS ? 0 : first;
}
/* Whether that is none of them. */
static inline int sc_only_caches(uint32_t layer) {
    const uint32_t first = sc_first_wanted(layer);
    return __builtin_expect(first > 0, 0) && first == sc_now.tokens;
}
/* The first token of the pass that a step is for. */
static inline uint32_t sc_first_of(const sc_layer_step *s, uint32_t layer) {
    const uint32_t first = sc_first_wanted(layer);
    return __builtin_expect(first > 0, 0) && s->slot == SC_QKV ? 0 : first;
}

/* The first token that the head is for. */
static inline uint32_t sc_first_of_head(void) {
#if SC_ALL_LOGITS
    if (sc_now.trace & SC_TRACE_LOGITS) return 0;
#endif
    return sc_now.want == SC_CHOICES ? 0 : sc_now.tokens - 1;
}
/* Where in the arena a matrix's vectors of so many tokens are, the pass's last ones. */
static inline uint32_t sc_vectors_at(const sc_matrix *m, uint32_t tokens) {
#if SC_FRUGAL
    const uint32_t room = tokens > 1 ? sc_room_in_place(m) : 0, first = sc_now.tokens - tokens;
    if (room) return (sc_slot_of(m) == SC_DOWN ? SC_SOURCE_OF_DOWN : SC_SOURCE_OF_O) + 4 * room * first;
#endif
    (void)m, (void)tokens;
    return SC_AT_XQ;
}
/* What a step reads, of the first token. */
static inline int32_t *sc_source(const sc_layer_step *s) { return SC_BUFFER(int32_t *, s->src); }
/* Behind the last matrix that this pass multiplies with. */
static inline const sc_matrix *sc_pass_end(void) {
    if (sc_only_caches(SC_LAYERS - 1)) return sc_layers[SC_LAYERS - 1].m[SC_QKV] + 1;
    return sc_matrices + SC_MATRICES - (sc_now.want == SC_NO_LOGITS);
}
/* Where a memory's blob begins, of those that a program reads without a fetch. */
#ifdef SC_HAS_WMEM
#define SC_BLOB(level) ((level) == SC_IN_WMEM ? sc_blob_wmem : sc_blob_l2)
#else
#define SC_BLOB(level) sc_blob_l2
#endif
/* Where a block of a matrix lies. */
typedef struct {
    uint32_t level; /* not SC_IN_TWO */
    uint32_t offset;
} sc_place;
static inline sc_place sc_place_of(const sc_matrix *m, uint32_t block) {
#ifdef SC_NEAR_EVERY
    if (m->level == SC_IN_TWO) {
        const uint32_t tile = block / m->tile_blocks, near = tile / SC_NEAR_EVERY;
        const int is_near = tile == near * SC_NEAR_EVERY;
        const uint32_t before = is_near ? near : tile - near - 1; /* tiles in the same memory */
        const uint32_t at = (before * m->tile_blocks + block - tile * m->tile_blocks) * m->block_bytes;
        return is_near ? (sc_place){SC_NEAR_LEVEL, SC_NEAR_AT + at} : (sc_place){SC_IN_FLASH, m->offset + at};
    }
#endif
    return (sc_place){m->level, m->offset + block * m->block_bytes};
}
/* All cores, between barriers of the caller's making: the next tile, in L1. */
const uint8_t *sc_stream_tile(int core);

/* ---- the KV cache behind L1 ---- */
uint8_t *sc_cache_keys(uint32_t layer); /* its memory, or what is in L2 of it */
static inline uint8_t *sc_cache_values(uint32_t layer) { return sc_cache_keys(layer) + SC_VALUES_AT; }
#if SC_KV_LAYERS_HYPERRAM > 0
/* One core: when a layer's attention is done and what it added is in its memory, and before the next
 * layer's is read or written. */
void sc_cache_swap(uint32_t layer);
void sc_cache_await(uint32_t layer);
#else
#define sc_cache_swap(layer) ((void)0)
#define sc_cache_await(layer) ((void)0)
#endif

/* ---- tables among the weights ---- */
/* One core: the rows of this pass's positions into L1.  They may come from flash, so before any weight does. */
void sc_load_rope(void);
/* The text of a token: bytes at .. end - 1 (controller, between passes). */
typedef struct {
    uint32_t at, end;
} sc_piece;
sc_piece sc_piece_of(uint32_t token);
uint8_t sc_piece_byte(uint32_t at);

/* ---- sampling (controller) ---- */
typedef struct {
    uint32_t inv_temp_q16, top_p_q16, seed;
} sc_sampling;
uint32_t sc_sample(const sc_sampling *how, uint32_t position);

/* A core's largest logit of a token, of those with equal ones the lowest. */
typedef struct {
    int32_t value;
    uint32_t index;
} sc_top;
/* All workers: its share of rows row .. row + rows - 1 of the chunk's token `t`, at v; row 0 begins anew. */
void sc_compare(uint32_t t, const int32_t *v, uint32_t row, uint32_t rows, int core);
/* The token with the largest logit, when all rows of `t` have been compared. */
uint32_t sc_choice(uint32_t t);

/* ---- drafts (controller) ---- */
/* Writes behind the `count` tokens what may follow, 0 .. most tokens and no more than a pass can verify; says how
 * many. */
uint32_t sc_draft(uint32_t *tokens, uint32_t count, uint32_t most);

/* ---- observing: after each op of a pass, in the order of enum sc_op ---- */
uint32_t sc_observed(uint32_t trace, uint32_t tokens); /* the ops that these sc_trace flags are about */
/* All cores: a layer's hash, the logits, or an op's output, as the input asked for; SC_LAYERS stands for
 * an op outside the layers. */
void sc_observe(enum sc_op op, uint32_t layer, int core);
/* In passes of one token that are only proved the controller, which has nothing to do while the workers attend, hashes
 * what the layer before has given: of all but short contexts nobody waits for that. */
#define SC_HASHES_BESIDE (SC_TEAM > SC_CORES && SC_HEAD_CORES == SC_CORES)
static inline int sc_hashes_beside(void) {
    return SC_HASHES_BESIDE && sc_now.trace & SC_TRACE_PROOF && !(sc_now.observed >> SC_LAYER_LAST & 1);
}
void sc_hash_layer(uint32_t layer); /* of one token */
/* The last layer's output is hashed as in other passes: behind the head nothing of it is left. */
static inline void sc_last_hash(int core) {
    if (__builtin_expect(sc_hashes_beside(), 0)) sc_observe(SC_LAYER_LAST, SC_LAYERS - 1, core);
}
void sc_put_hashes(void); /* controller, behind a pass: those of its layers, if they were asked for */
#ifdef SC_PROFILE
#define SC_CONTROLLER SC_CORES   /* as a core */
void sc_profile_start(int core); /* what the core does from here on is the next op's */
/* What the core did since then was `op`; all workers, or between passes (SC_OP_NEXT) the controller alone, which of a
 * layer's op has only to be done as well. */
void sc_profile_op(enum sc_op op, uint32_t layer, int core);
/* What the core did since then was observing, of which the time `untimed` is taken off already. */
void sc_profile_resume(uint32_t untimed, int core);
void sc_profile_print(void); /* controller */
#else
#define sc_profile_start(core) ((void)0)
#define sc_profile_op(op, layer, core) ((void)0)
#define sc_profile_resume(untimed, core) ((void)(untimed))
#define sc_profile_print() ((void)0)
#endif
SC_INLINE void sc_op_done(enum sc_op op, uint32_t layer, int core) {
    sc_profile_op(op, layer, core);
    if (__builtin_expect(sc_now.observed >> op & 1, 0)) sc_observe(op, layer, core);
}

/* ---- text output, buffered by lines ---- */
void sc_putc(char c);
void sc_flush(void);
void sc_puts(const char *text);
void sc_put_hex(uint32_t v, int digits);
void sc_put_uint(uint32_t v);
/* lines of "tag first v v ..." in hex; v is the value of number `first` */
void sc_put_words(const char *tag, uint32_t first, const int32_t *v, uint32_t n);

#endif
