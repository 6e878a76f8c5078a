/* SPDX-License-Identifier: Apache-2.0
 * Start-up, console and end of programs for PULP chips. main() runs on the cluster's controller; workers wait
 * for dispatched functions. */
#include "sc_platform.h"

#include "sc_console.h"
#include "sc_contract.h"

#define PAINT 0x57AC57ACu /* crt0.S fills the stacks with this word */
#define ALL_WORKERS ((1u << SC_CORES) - 1)
#define ALL_CORES ((1u << CLUSTER_CORES) - 1)

/* From crt0.S and link.ld. The address of SC_CL_STACK is a size in bytes. */
extern char sc_cluster_start[];
extern void sc_fill(uint32_t *from, uint32_t *to, uint32_t word);
extern uint32_t __sc_cluster_stacks[], __sc_fc_stack_start[];
extern uint32_t __sc_l1_start[], __sc_l2_start[], __sc_l2_end[];
#ifdef SC_HAS_WMEM
extern uint32_t __sc_wmem_start[], __sc_wmem_end[];
#endif
extern char SC_CL_STACK[];

/* ---- console ---- */

static char last_written = '\n';

static void put(char c) {
    uint32_t hart = hart_id();
    REG(STDOUT_BYTE(hart >> 5 & 31, hart & 15)) = (uint8_t)c;
    last_written = c;
}

void sc_write(const char *text, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++) {
        put(text[i]);
    }
}

/* GVSoC passes nothing to the UART, but its cores answer semihosting calls. */
uint32_t sc_read_stdin(void *to, uint32_t bytes) {
    const uint32_t arguments[3] = {0, (uintptr_t)to, bytes};
    register uintptr_t a0 __asm__("a0") = 6; /* read */
    register uintptr_t a1 __asm__("a1") = (uintptr_t)arguments;
    __asm__ volatile(".option push\n"
                     ".option norvc\n"
                     "slli x0, x0, 0x1f\n"
                     "ebreak\n"
                     "srai x0, x0, 7\n"
                     ".option pop"
                     : "+r"(a0)
                     : "r"(a1)
                     : "memory");
    return a0;
}

/* ---- end of the run ---- */

static void __attribute__((noreturn)) leave(int code) {
    if (last_written != '\n') {
        put('\n'); /* the simulator prints whole lines only */
    }
    REG(SOC_EXIT) = 0x80000000u | (uint32_t)code;
    for (;;) {
    }
}

static uint32_t *stack_of(uint32_t core) {
    return __sc_cluster_stacks + core * ((uintptr_t)SC_CL_STACK / sizeof(uint32_t));
}

#ifdef SC_STACK_REPORT
static void report_stacks(void) {
    for (uint32_t core = 0; core < CLUSTER_CORES; core++) {
        uint32_t unused = 0;
        while (unused < (uintptr_t)SC_CL_STACK && stack_of(core)[unused / 4] == PAINT) {
            unused += 4;
        }
        sc_message("platform: stack bytes used by core ");
        put((char)('0' + core));
        sc_message(": ");
        sc_message_hex((uintptr_t)SC_CL_STACK - unused);
        put('\n');
    }
}
#endif

void sc_exit(int code) {
#ifdef SC_STACK_REPORT
    report_stacks();
#endif
    for (uint32_t core = 0; core < CLUSTER_CORES; core++) {
        if (*stack_of(core) != PAINT) {
            sc_message("platform: stack overflow on core ");
            put((char)('0' + core));
            put('\n');
            code = SC_EXIT_STACK;
        }
    }
    if (*__sc_fc_stack_start != PAINT) {
        sc_message("platform: stack overflow on the fabric controller\n");
        code = SC_EXIT_STACK;
    }
    leave(code);
}

void __attribute__((noreturn, used)) sc_trap_report(uint32_t cause, uint32_t pc) {
    sc_message("platform: trap on hart ");
    sc_message_hex(hart_id());
    sc_message(" cause ");
    sc_message_hex(cause);
    sc_message(" pc ");
    sc_message_hex(pc);
    put('\n');
    leave(SC_EXIT_TRAP);
}

/* ---- start-up ---- */

int main(void);

#if defined(SC_HAS_FLASH) || SC_RAM_BYTES > 0
/* Once: flash is only read. */
static void flash_init(void) {
    REG(UDMA_CLOCKS) = REG(UDMA_CLOCKS) | UDMA_HYPERBUS_CLOCK;
    REG(HYPER_PAGE_BOUND) = 4;
    REG(HYPER_LATENCY) = 0;
    REG(HYPER_CHIP_SELECT) = 1;
    REG(HYPER_COMMAND) = 5;
    REG(HYPER_2D) = 0;
    REG(HYPER_L2_2D) = 0;
    REG(RAM_2D) = 0;
    REG(RAM_L2_2D) = 0;
}
#endif

SC_HOT static void __attribute__((noreturn)) work(int core) {
    for (;;) {
        sc_worker_fn fn = (sc_worker_fn)(uintptr_t)elw(EU_DISPATCH);
        void *arg = (void *)(uintptr_t)elw(EU_DISPATCH);
        fn(arg, core);
        sc_team_barrier();
    }
}

/* Zeroes L1 above the initialised data. Workers take 64-byte pieces in turn, so that they use different
 * banks. */
static void zero_l1(void *arg, int core) {
    (void)arg;
    const uint32_t piece = 64;
    uintptr_t first = (uintptr_t)__sc_l1_start + piece * (uint32_t)core;
    for (uintptr_t at = first; at < L1_END; at += piece * SC_CORES) {
        uintptr_t end = at + piece;
        sc_fill((uint32_t *)at, (uint32_t *)(end < L1_END ? end : L1_END), 0);
    }
}

/* Zeroes L2 and weight memory by DMA from L1: 8 bytes per cycle, where a core needs 15 cycles per word. */
static void zero_with_dma(uint32_t *from, uint32_t *to) {
    const uint32_t zeros = L1_END - (uintptr_t)__sc_l1_start; /* link.ld guarantees at least 64 bytes */
    const uint32_t most = zeros < DMA_MAX_BYTES ? zeros : DMA_MAX_BYTES;
    for (uintptr_t at = (uintptr_t)from, end = (uintptr_t)to, n; at < end; at += n) {
        n = end - at < most ? end - at : most;
        const sc_dma counter = REG(DMA_COMMAND);
        sc_dma_command((uintptr_t)__sc_l1_start, at, n, 0);
        sc_dma_wait(counter);
    }
}

static void controller_init(void) {
    REG(ICACHE_ENABLE) = 0xFFFFFFFFu;
    REG(TIMER_CONFIG) = 1;
    REG(EU_BARRIER_MEMBERS(TEAM_BARRIER)) = ALL_CORES;
    REG(EU_BARRIER_TARGETS(TEAM_BARRIER)) = ALL_CORES;
    REG(EU_BARRIER_MEMBERS(WORKER_BARRIER)) = ALL_WORKERS;
    REG(EU_BARRIER_TARGETS(WORKER_BARRIER)) = ALL_WORKERS;
    REG(EU_DISPATCH_TEAM) = ALL_WORKERS;
#if defined(SC_HAS_FLASH) || SC_RAM_BYTES > 0
    flash_init();
#endif
}

void __attribute__((noreturn, used)) sc_cluster_main(uint32_t core) {
    REG(EU_MASK) = SC_EVENTS;
    if (core != CONTROLLER) {
        work((int)core);
    }
    controller_init();
    REG(EU_DISPATCH) = (uintptr_t)zero_l1;
    REG(EU_DISPATCH) = 0; /* its argument */
    sc_team_barrier();
    zero_with_dma(__sc_l2_start, __sc_l2_end);
#ifdef SC_HAS_WMEM
    zero_with_dma(__sc_wmem_start, __sc_wmem_end);
#endif
    sc_exit(main());
}

void __attribute__((used)) sc_fc_main(void) {
    for (uint32_t core = 0; core < CLUSTER_CORES; core++) {
        REG(CLUSTER_BOOT(core)) = (uintptr_t)sc_cluster_start;
    }
    REG(CLUSTER_FETCH_ENABLE) = ALL_CORES;
}
