/* SPDX-License-Identifier: Apache-2.0
 * Interface of the inference runtime: forward pass, weight stream, KV cache, sampling, drafts, observation. */
#ifndef SC_RUNTIME_H
#define SC_RUNTIME_H

#include "llm.h"
#include "sc_abi.h"
#include "sc_attention.h"
#include "sc_engines.h"
#include "sc_model.h"

/* All L1 buffers are in one arena at offsets from the memory planner. Buffers that are never live together
 * share bytes. */
extern uint8_t sc_arena[SC_ARENA_BYTES] __attribute__((aligned(16)));
#define SC_BUFFER(type, offset) ((type)(void *)(sc_arena + (offset)))

/* Result of a pass besides keys and values: none; logits of the last token (of all with SC_TRACE_LOGITS); or
 * the largest logit of every token (sc_choice), for at most SC_VERIFIED tokens. */
enum sc_want { SC_NO_LOGITS, SC_LAST_LOGITS, SC_CHOICES };

/* The part of the logits that sc_logits holds: rows of the chunk's last tokens, `stride` words apart. */
typedef struct {
    uint32_t tokens, row, rows, stride;
} sc_window;

/* Current forward pass. The controller writes it, the workers read it. */
typedef struct {
    uint32_t position; /* position of the chunk's first token */
    uint32_t tokens;   /* tokens in the chunk, 1 .. SC_CHUNK */
    uint32_t known;    /* earlier positions whose value scales are combined already */
    uint32_t next;     /* whether it is one token, and all earlier positions are known */
    /* first token that needs the last layer from attention on; `tokens`: none */
    uint32_t first_wanted;
    enum sc_want want;
    uint32_t trace;    /* enum sc_trace flags */
    uint32_t observed; /* bits 1 << enum sc_op: ops after which sc_observe() is called */
    uint32_t dumps;    /* whether all ops are observed: tested in less code than a bit of `observed` */
    uint32_t dump_position, dump_layer;
    uint32_t untimed;       /* time spent on observation, subtracted from the pass's time */
    sc_window window;       /* content of sc_logits; written by core 0 */
    uint32_t ids[SC_CHUNK]; /* last, because loads from small offsets are shorter instructions */
} sc_step;

extern sc_step sc_now;

/* What the session's owner wants to be called for. Not in L1: only the controller reads it. */
typedef struct {
    llm_layer_hook *layer; /* after each layer; or NULL */
    void *layer_user;
    uint32_t observed;     /* bit SC_LAYER_HOOK, if there is a layer hook; added to sc_now.observed */
    int stop;              /* the layer hook asked to stop after this pass */
    llm_probe_hook *probe; /* with observed values; or NULL */
    void *probe_user;
} sc_hooks_of_session;
extern sc_hooks_of_session sc_hooks;
#if SC_LOGITS_IN_L1
#define sc_logits SC_BUFFER(int32_t *, SC_AT_LOGITS)
#else
extern int32_t sc_logits[SC_VOCAB];
#endif

#if SC_ALL_LOGITS
extern int32_t sc_all_logits[SC_CHUNK][SC_VOCAB];
#endif

void sc_start(void *unused, int core);   /* by all workers, before the first pass */
void sc_forward(void *unused, int core); /* by the team: one forward pass */

/* If the team includes the controller: it controls engines, finishes vector scales, processes heads and whole
 * tokens like a worker, moves caches and hashes. It does nothing else. */
SC_INLINE int sc_is_worker(int core) { return SC_TEAM == SC_CORES || core < SC_CORES; }
/* The core that stores what attention adds to a cache outside L1. */
#define SC_CACHE_CORE (SC_TEAM - 1)
#if SC_TILE_BYTES > 0 || SC_ROPE_IN_FLASH || SC_XGROUPS > 0
/* The core that prefetches what the steps of a layer read: the one that copies tiles. With int8 vectors it must
 * be a worker, because the controller is done with a norm before the workers are. */
#define SC_PREFETCH_CORE SC_LAST_CORE(SC_CORES)
#else
/* The core that prefetches what the steps of a layer read. The controller's code takes no instruction cache from
 * the workers. */
#define SC_PREFETCH_CORE (SC_TEAM - 1)
#endif
/* Cores that process heads. Several tokens: the team, if the plan has buffers for the controller. One token:
 * the team only if that lowers the heads of the busiest core, because the controller's code takes instruction
 * cache (head_cores_for() in ir/steps.py). */
#define SC_HEAD_CORES_OF_SEVERAL (SC_PLANNED_HEAD_CORES > SC_PLANNED_CORES ? SC_TEAM : SC_CORES)
#define SC_ROUNDS(cores) ((SC_HEADS + (cores) - 1) / (cores))
#define SC_HEAD_CORES                                                                                        \
    (SC_ROUNDS(SC_HEAD_CORES_OF_SEVERAL) < SC_ROUNDS(SC_CORES) ? SC_HEAD_CORES_OF_SEVERAL                    \
                                                               : SC_CORES) /* one token */
static inline int sc_head_cores(uint32_t tokens) {
    return tokens > 1 ? SC_HEAD_CORES_OF_SEVERAL : SC_HEAD_CORES;
}

/* ---- weight tiles: all matrices of a pass in order, double-buffered in L1 ---- */
void sc_stream_begin(void); /* by the last core, before sc_stream_tile */
/* First token of this pass that needs the layer from attention on. In the last layer, tokens without logits
 * only need keys and values. */
static inline uint32_t sc_first_wanted(uint32_t layer) {
    const uint32_t first = sc_now.first_wanted; /* 0 in a pass over one token that gives logits */
    return __builtin_expect(first == 0, 1) || layer + 1 < SC_LAYERS ? 0 : first;
}
/* Whether no token needs it. */
static inline int sc_only_caches(uint32_t layer) {
    const uint32_t first = sc_first_wanted(layer);
    return __builtin_expect(first > 0, 0) && first == sc_now.tokens;
}
/* First token of the pass that a step processes. */
static inline uint32_t sc_first_of(enum sc_slot slot, uint32_t layer) {
    const uint32_t first = sc_first_wanted(layer);
    return __builtin_expect(first > 0, 0) && slot == SC_QKV ? 0 : first;
}

/* First token that the LM head processes. */
static inline uint32_t sc_first_of_head(void) {
#if SC_ALL_LOGITS
    if (sc_now.trace & SC_TRACE_LOGITS) return 0;
#endif
    return sc_now.want == SC_CHOICES ? 0 : sc_now.tokens - 1;
}
/* Arena offset of a matrix's vectors, for the last `tokens` tokens of the pass. */
static inline uint32_t sc_vectors_at(const sc_matrix *m, uint32_t tokens) {
#if SC_IN_PLACE
    const uint32_t room = tokens > 1 ? sc_room_in_place(m) : 0, first = sc_now.tokens - tokens;
    if (room) return (sc_slot_of(m) == SC_DOWN ? SC_SOURCE_OF_DOWN : SC_SOURCE_OF_O) + 4 * room * first;
#endif
    (void)m, (void)tokens;
    return SC_AT_XQ;
}
/* End of the matrices that this pass uses. */
static inline const sc_matrix *sc_pass_end(void) {
    if (sc_only_caches(SC_LAYERS - 1)) return sc_layers[SC_LAYERS - 1].m[SC_QKV] + 1;
    return sc_matrices + SC_MATRICES - (sc_now.want == SC_NO_LOGITS);
}
/* Start of the blob of a directly readable memory. */
#if defined(SC_HAS_WMEM) && !defined(SC_HAS_L2)
#define SC_BLOB(level) sc_blob_wmem
#elif defined(SC_HAS_WMEM)
#define SC_BLOB(level) ((level) == SC_IN_WMEM ? sc_blob_wmem : sc_blob_l2)
#else
#define SC_BLOB(level) sc_blob_l2
#endif
/* Location of a block of a matrix. */
typedef struct {
    uint32_t level; /* never SC_IN_TWO */
    uint32_t offset;
} sc_place;
static inline sc_place sc_place_of(const sc_matrix *m, uint32_t block) {
#ifdef SC_INTERLEAVE
    if (m->level == SC_IN_TWO) {
        const uint32_t tile = block / m->tile_blocks, near = tile / SC_INTERLEAVE;
        const int is_near = tile == near * SC_INTERLEAVE;
        const uint32_t before = is_near ? near : tile - near - 1; /* tiles before it in the same memory */
        const uint32_t at = (before * m->tile_blocks + block - tile * m->tile_blocks) * m->block_bytes;
        return is_near ? (sc_place){SC_INTERLEAVED_LEVEL, SC_INTERLEAVED_AT + at}
                       : (sc_place){SC_IN_FLASH, m->offset + at};
    }
#endif
    return (sc_place){m->level, m->offset + block * m->block_bytes};
}
/* By all cores, with a barrier inside: the next tile, in L1. */
const uint8_t *sc_stream_tile(int core);

/* ---- KV cache outside L1 ---- */
uint8_t *sc_cache_keys(uint32_t layer); /* the layer's cache, or its copy in L2 */
static inline uint8_t *sc_cache_values(uint32_t layer) { return sc_cache_keys(layer) + SC_VALUES_AT(layer); }
#ifdef SC_KV_STREAMED /* sc_streamed_cache.h */
#elif SC_KV_LAYERS_HYPERRAM > 0
/* By one core. swap: after a layer's attention, when its new positions are stored. await: before the next
 * layer's cache is read or written. */
void sc_cache_swap(uint32_t layer);
void sc_cache_await(uint32_t layer);
#else
#define sc_cache_swap(layer) ((void)0)
#define sc_cache_await(layer) ((void)0)
#endif

/* ---- tables stored among the weights ---- */
/* By one core: copies the RoPE rows of this pass to L1. They may come from flash, so call it before weights
 * are requested. */
void sc_load_rope(void);
/* Text of a token: bytes at .. end - 1 of the text table (controller, between passes). */
typedef struct {
    uint32_t at, end;
} sc_piece;
sc_piece sc_piece_of(uint32_t token);
uint8_t sc_piece_byte(uint32_t at);

/* Whether the weights in memory are this model's: a hash of some of their words. By the controller. */
int sc_weights_match(void);

/* ---- sampling (by the controller) ---- */
/* The token after `position`. */
uint32_t sc_sample(const llm_sampling *how, uint32_t position);

/* A core's largest logit of a token; of equal ones the lowest index. */
typedef struct {
    int32_t value;
    uint32_t index;
} sc_top;
/* By all workers: compares logits of rows row .. row + rows - 1 of token t at v. Row 0 starts anew. */
void sc_compare(uint32_t t, const int32_t *v, uint32_t row, uint32_t rows, int core);
/* Token with the largest logit of t, after all rows have been compared. */
uint32_t sc_choice(uint32_t t);

/* ---- prompt lookup (by the controller) ---- */
/* Appends 0 .. most proposed tokens to the `count` tokens, at most as many as a pass can verify. Returns how
 * many. */
uint32_t sc_draft(uint32_t *tokens, uint32_t count, uint32_t most);

/* ---- observation: after each op of a pass, in the order of enum sc_op ---- */
uint32_t sc_observed(uint32_t trace, uint32_t tokens); /* ops that these sc_trace flags observe */
/* By all cores: reports or hashes a layer's output, the logits, or an op's output, as llm_watch() asked. layer:
 * SC_LAYERS for ops outside the layers. */
void sc_observe(enum sc_op op, uint32_t layer, int core);
/* In passes of one token that are only verified, the controller hashes the previous layer's output while the
 * workers do attention. Except for short contexts, nobody waits for it. */
#define SC_HASHES_OVERLAPPED (SC_TEAM > SC_CORES && SC_HEAD_CORES == SC_CORES)
static inline int sc_hashes_overlapped(void) {
    return SC_HASHES_OVERLAPPED && sc_now.trace & SC_TRACE_PROOF && !(sc_now.observed >> SC_LAYER_LAST & 1);
}
void sc_hash_layer(uint32_t layer); /* one token */
/* Hashes the last layer's output before the LM head overwrites it. */
static inline void sc_last_hash(int core) {
    if (__builtin_expect(sc_hashes_overlapped(), 0)) sc_observe(SC_LAYER_LAST, SC_LAYERS - 1, core);
}
/* By the controller after a pass, if asked for: */
void sc_report_hashes(void);
void sc_report_all_logits(void);
void sc_report(const llm_probe *probe); /* to the session's probe hook */
#ifdef SC_PROFILE
#define SC_CONTROLLER SC_CORES                                                    /* core number */
#define sc_profile_controller(core) (SC_SPANS ? sc_profile_start(core) : (void)0) /* by the controller */
void sc_profile_start(int core); /* time from here on counts for the next op */
/* Time since the last call was spent on `op`. By all workers and, for an op of a layer, the controller;
 * outside a pass (SC_OP_NEXT) by the controller alone. */
void sc_profile_op(enum sc_op op, uint32_t layer, int core);
/* Time since the last call was observation; `untimed` of it is already subtracted. */
void sc_profile_resume(uint32_t untimed, int core);
void sc_profile_report(void); /* by the controller */
#else
#define sc_profile_start(core) ((void)0)
#define sc_profile_controller(core) ((void)0)
#define sc_profile_op(op, layer, core) ((void)0)
#define sc_profile_resume(untimed, core) ((void)(untimed))
#define sc_profile_report() ((void)0)
#endif
/* By the controller after each layer: calls the layer hook (llm_on_layer()). */
#define SC_LAYER_HOOK 31 /* bit of sc_now.observed */
void sc_call_layer_hook(uint32_t layer);
static inline void sc_layer_done(uint32_t layer) {
    if (__builtin_expect(sc_now.observed >> SC_LAYER_HOOK, 0)) sc_call_layer_hook(layer);
}
SC_INLINE void sc_op_done(enum sc_op op, uint32_t layer, int core) {
    sc_profile_op(op, layer, core);
    const uint32_t observed =
        op >= SC_LAYER_FIRST && op < SC_LAYER_LAST ? sc_now.dumps : sc_now.observed >> op & 1;
    if (__builtin_expect(observed, 0)) sc_observe(op, layer, core);
}

#endif
