/* SPDX-License-Identifier: Apache-2.0
 * What the runtime needs from a target: workers, transfers, time. Implemented by port.c in platform/host,
 * platform/one_core and platform/pulp (whose chips have a folder each).
 *
 * One controller calls the library. Workers only run inside sc_run_workers() and sc_run_team(). sc_target.h of
 * a platform defines:
 *
 *   SC_CORES      number of workers (8 on PULP chips, else 1 by default)
 *   SC_TEAM       SC_CORES, plus 1 if the controller is a core of its own
 *   SC_ALL_LOGITS 1 if memory is plentiful: the program can output the logits of whole texts
 *   SC_SIMD       1 if the compiler's vector types map to real instructions
 *   SC_CLONES     attribute of the function that uses these vectors
 *   SC_XPULP      1 if Xpulp instructions are available
 *   SC_L1 SC_L2 SC_WMEM  section attributes for zero-initialised buffers
 *   SC_L1_LARGE   SC_L1 for large buffers, placed after the others (link.ld)
 *   SC_L1_ARENA(name, bytes)  defines the arena, placed before all others
 *   SC_L1_DATA    section attribute for initialised data in L1
 *   SC_L1_TABLES  the same for tables of constants
 *   SC_HOT        attribute of functions used for every token (not inlined, small) */
#ifndef SC_PLATFORM_H
#define SC_PLATFORM_H

#include <stddef.h>
#include <stdint.h>

#include "sc_target.h" /* from the platform's folder */

/* ---- workers ---- */
typedef void (*sc_worker_fn)(void *arg, int core); /* core = 0 .. SC_CORES - 1; in a team .. SC_TEAM - 1 */
void sc_run_workers(sc_worker_fn fn, void *arg);   /* all workers run fn; returns when all are done */
void sc_worker_barrier(void);                      /* all workers, inside sc_run_workers or sc_run_team */
/* The team runs fn: the workers and, if SC_TEAM > SC_CORES, the controller as core SC_CORES. */
void sc_run_team(sc_worker_fn fn, void *arg);
void sc_team_barrier(void); /* barrier of the team, inside sc_run_team */

/* ---- transfers between L1 and the other on-chip memories ---- */
typedef uint32_t sc_dma;
/* Starts a copy ext -> l1, any byte alignment, bytes > 0. Up to eight handles per core may be outstanding;
 * one is cheapest. */
sc_dma sc_dma_in(void *l1, const void *ext, uint32_t bytes);
sc_dma sc_dma_out(void *ext, const void *l1, uint32_t bytes);
void sc_dma_wait(sc_dma handle);

#ifdef SC_HAS_FLASH
/* ---- off-chip flash, read-only: up to 8 transfers outstanding, done in order ---- */
void sc_flash_start(void *l2, uint32_t flash_offset, uint32_t bytes); /* both 4-byte aligned */
void sc_flash_wait(uint32_t left); /* until at most `left` transfers are outstanding */

#endif
#if SC_RAM_BYTES > 0
/* ---- HyperRAM: up to 8 transfers outstanding, done in order, independent of flash ---- */
enum sc_direction { SC_FROM_RAM = 0, SC_TO_RAM = 1 };
void sc_ram_start(void *l2, uint32_t ram_offset, uint32_t bytes,
                  enum sc_direction direction); /* 4-byte aligned */
void sc_ram_wait(void);                         /* for all transfers */

#endif
/* ---- weight blobs; SC_HAS_<MEMORY>: the target has that memory ---- */
#ifdef SC_HAS_WMEM
extern const uint8_t sc_blob_wmem[]; /* weight memory */
#endif
#ifdef SC_HAS_L2
extern const uint8_t sc_blob_l2[]; /* L2 */
#endif

/* ---- time ---- */
/* Increasing counter, modulo 2^32: cluster cycles on PULP chips, else 0. */
uint32_t sc_time(void);

#endif
