/* SPDX-License-Identifier: Apache-2.0
 * Registers of the Siracusa SoC that the platform touches; offsets and bits were tried on GVSoC. */
#ifndef SC_REGS_H
#define SC_REGS_H

#include <stdint.h>

#define REG(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* ---- cluster ---- */
#define L1_BASE 0x10000000u
#define L1_END 0x10040000u

#define CLUSTER_FETCH_ENABLE 0x10200008u /* one bit per core */
#define CLUSTER_BOOT(core) (0x10200040u + 4u * (core))
#define CLUSTER_CORES 9u /* 8 workers and the controller */
#define CONTROLLER 8u

#define TIMER_CONFIG 0x10200400u /* 1 = run */
#define TIMER_COUNT 0x10200408u

#define ICACHE_ENABLE 0x10201400u

/* ---- event unit, the view of the core that asks ---- */
#define EU_MASK 0x10204000u
#define EU_WAIT_CLEAR 0x1020403Cu
#define EU_DISPATCH 0x10204080u /* FIFO: the controller writes, every team member reads each word */
#define EU_DISPATCH_TEAM 0x10204084u
#define EU_BARRIER_MEMBERS(n) (0x10204200u + 0x20u * (n))
#define EU_BARRIER_TARGETS(n) (0x1020420Cu + 0x20u * (n))
#define EU_BARRIER_WAIT(n) (0x1020421Cu + 0x20u * (n)) /* arrive, sleep, clear */

#define EVENT_DMA (1u << 8)
#define EVENT_BARRIER (1u << 16)
#define EVENT_DISPATCH (1u << 18)

#define JOIN_BARRIER 0u /* the workers and the controller */
#define TEAM_BARRIER 1u /* the workers */

/* A load that puts the core to sleep until the event unit answers (p.elw). */
static inline uint32_t elw(uint32_t address) {
    uint32_t value;
    __asm__ volatile(".insn i 0x03, 6, %0, 0(%1)" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline uint32_t hart_id(void) {
    uint32_t id;
    __asm__ volatile("csrr %0, 0xF14" : "=r"(id));
    return id; /* 0..8 in the cluster, 0x3E0 the fabric controller */
}

/* ---- DMA (mchan), the channel of the core that asks ---- */
#define DMA_COMMAND 0x10204400u /* read: a free counter; write: command, L1 and other address */
#define DMA_STATUS 0x10204404u  /* read: busy counters; write 1 << n: give counter n back */
#define DMA_TO_L1 (1u << 17)
#define DMA_LINEAR (1u << 18)
#define DMA_EVENT (1u << 20)   /* wake the core when its counter drops to 0 */
#define DMA_MAX_BYTES 0x10000u /* the length field ends at 131071; a power of two keeps alignment */

/* ---- SoC ---- */
#define SOC_EXIT 0x1A1040A0u /* 0x80000000 | code ends the simulation */
#define STDOUT_BYTE(cluster, core) (0x1A10F000u + ((cluster) << 7) + ((core) << 3))

#define UDMA_CLOCKS 0x1A102000u
#define UDMA_HYPERBUS_CLOCK (1u << 4)
#define HYPER_L2_ADDRESS 0x1A102280u
#define HYPER_BYTES 0x1A102284u
#define HYPER_GO 0x1A102288u
#define HYPER_GO_READ 0x10u
#define HYPER_COMMAND 0x1A102298u /* bit 2 read, bit 0 linear burst */
#define HYPER_FLASH_ADDRESS 0x1A10229Cu
#define HYPER_STATUS 0x1A1022A4u /* bit 0: busy */
#define HYPER_2D 0x1A1022A8u
#define HYPER_L2_2D 0x1A1022B4u
#define HYPER_PAGE_BOUND 0x1A102380u /* 4 = bursts are not cut at pages */
#define HYPER_LATENCY 0x1A102384u
#define HYPER_CHIP_SELECT 0x1A1023A0u /* 0 = HyperRAM, 1 = HyperFlash */

#endif
