/* SPDX-License-Identifier: Apache-2.0
 * What the engine asks of a target.
 *
 * Three implementations live in platform/host, platform/rv32 and platform/pulp (SoCs of the PULP family,
 * whose particulars are in a folder each); nothing above this header knows which one it runs on.  One
 * controller calls sc_main(); workers exist only inside sc_run_workers() and
 * sc_run_team().
 *
 *   SC_CORES      number of workers (compile-time; 8 on the SoCs, 1 elsewhere unless overridden)
 *   SC_TEAM       the same, and the controller where that is a core of its own
 *   SC_ALL_LOGITS 1 where memory is of no concern: the program can give the logits of whole texts
 *   SC_SIMD       1 where the compiler's vector types are real instructions
 *   SC_CLONES     attribute of the function that the vectors are for
 *   SC_XPULP      1 where the Xpulp instructions may be used
 *   SC_L1 SC_L2 SC_WMEM  section attributes for zero-initialised buffers in that memory
 *   SC_L1_LARGE   the same in L1, of what is no small thing: behind the others, see link.ld
 *   SC_L1_ARENA(name, bytes)  defines, before those, the buffer that most addresses are in
 *   SC_L1_DATA    section attribute for initialised data in L1
 *   SC_HOT        attribute of functions on the decode path (never inlined copies, kept small)
 */
#ifndef SC_PLATFORM_H
#define SC_PLATFORM_H

#include <stddef.h>
#include <stdint.h>

#include "sc_target.h" /* of the platform directory on the include path */

#ifndef SC_TEAM
#define SC_TEAM SC_CORES
#endif
#ifndef SC_ALL_LOGITS
#define SC_ALL_LOGITS 0
#endif
#ifndef SC_SIMD
#define SC_SIMD 0
#endif
#ifndef SC_CLONES
#define SC_CLONES
#endif

/* ---- program ---- */
int sc_main(void); /* the engine's entry; returns the exit code */
void sc_exit(int code) __attribute__((noreturn));
uint32_t *sc_input_words(void); /* the run's input, see sc_abi.h; new tokens are written behind the prompt */

/* ---- workers ---- */
typedef void (*sc_worker_fn)(void *arg, int core); /* core = 0 .. SC_CORES-1, of a team .. SC_TEAM-1 */
void sc_run_workers(sc_worker_fn fn, void *arg);   /* all workers run fn; returns when all are done */
void sc_barrier(void);                             /* every worker, inside either of the two only */
/* All of the team run fn: the workers and, if SC_TEAM says so, the controller, as the core behind them. */
void sc_run_team(sc_worker_fn fn, void *arg);
void sc_meet(void); /* every one of the team, inside sc_run_team only */

/* ---- transfers between L1 and the other on-chip memories ---- */
typedef uint32_t sc_dma;
/* Starts ext -> l1, any byte alignment, any size > 0; at most one outstanding handle per caller
 * is promised to be cheap, up to eight are allowed. */
sc_dma sc_dma_in(void *l1, const void *ext, uint32_t bytes);
sc_dma sc_dma_out(void *ext, const void *l1, uint32_t bytes);
void sc_dma_wait(sc_dma handle);

/* ---- off-chip flash, only ever read: up to 8 transfers outstanding, done in the order in which they are
 * started ---- */
void sc_flash_start(void *l2, uint32_t flash_offset, uint32_t bytes); /* both 4-byte aligned */
void sc_flash_wait(uint32_t left); /* until only so many, fewer than there are, are still to be done */

/* ---- HyperRAM: up to 8 transfers outstanding, done in the order in which they are started; beside those of
 * flash ---- */
enum sc_direction { SC_FROM_RAM = 0, SC_TO_RAM = 1 };
void sc_ram_start(void *l2, uint32_t ram_offset, uint32_t bytes,
                  enum sc_direction direction); /* 4-byte aligned */
void sc_ram_wait(void);                         /* for all of them */

/* ---- base addresses of the weight blobs; SC_HAS_<MEMORY>: the target that it was compiled for has it ---- */
#ifdef SC_HAS_WMEM
extern const uint8_t sc_blob_wmem[]; /* weight memory */
#endif
extern const uint8_t sc_blob_l2[]; /* L2 */

/* ---- console and time ---- */
void sc_write(const char *text, uint32_t bytes);
/* A counter that only grows, modulo 2^32: cluster cycles on the SoCs, retired instructions where
 * the target counts them, otherwise 0 for ever. */
uint32_t sc_time(void);

#endif
