/* SPDX-License-Identifier: Apache-2.0
 * Platform of PULP chips: start-up, workers, DMA, flash, HyperRAM, console, end of the run. The controller
 * runs it; workers wait for dispatched functions. */
#include "sc_platform.h"

#include "sc_abi.h"

#define PAINT 0x57AC57ACu /* crt0.S fills the stacks with this word */
#define ALL_WORKERS ((1u << SC_CORES) - 1)
#define ALL_CORES ((1u << CLUSTER_CORES) - 1)

/* Replaced in the ELF file before a run; initialised so that the file has bytes for it. */
uint32_t sc_input_section[SC_INPUT_WORDS] __attribute__((section(".sc_input"), used)) = {0};

/* From crt0.S and link.ld. The address of SC_CL_STACK is a size in bytes. */
extern char sc_cluster_start[];
extern void sc_fill(uint32_t *from, uint32_t *to, uint32_t word);
extern uint32_t __sc_cluster_stacks[], __sc_fc_stack_start[];
extern uint32_t __sc_l1_start[], __sc_l2_start[], __sc_l2_end[];
#ifdef SC_HAS_WMEM
extern uint32_t __sc_wmem_start[], __sc_wmem_end[];
#endif
extern char SC_CL_STACK[];

uint32_t *sc_input_words(void) { return sc_input_section; }

/* ---- DMA ---- */

sc_dma sc_dma_start_long(uintptr_t l1, uintptr_t ext, uint32_t bytes, uint32_t direction) {
    const sc_dma counter = REG(DMA_COMMAND);
    for (uint32_t n; bytes; bytes -= n, l1 += n, ext += n) {
        n = bytes < DMA_MAX_BYTES ? bytes : DMA_MAX_BYTES;
        sc_dma_command(l1, ext, n, direction);
    }
    return counter;
}

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

static void put_text(const char *text) {
    while (*text != 0) {
        put(*text++);
    }
}

static void put_hex(uint32_t value) {
    put_text("0x");
    for (int shift = 28; shift >= 0; shift -= 4) {
        put("0123456789abcdef"[value >> shift & 15]);
    }
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
        put_text("platform: stack bytes used by core ");
        put((char)('0' + core));
        put_text(": ");
        put_hex((uintptr_t)SC_CL_STACK - unused);
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
            put_text("platform: stack overflow on core ");
            put((char)('0' + core));
            put('\n');
            code = SC_EXIT_STACK;
        }
    }
    if (*__sc_fc_stack_start != PAINT) {
        put_text("platform: stack overflow on the fabric controller\n");
        code = SC_EXIT_STACK;
    }
    leave(code);
}

void __attribute__((noreturn, used)) sc_trap_report(uint32_t cause, uint32_t pc) {
    put_text("platform: trap on hart ");
    put_hex(hart_id());
    put_text(" cause ");
    put_hex(cause);
    put_text(" pc ");
    put_hex(pc);
    put('\n');
    leave(SC_EXIT_TRAP);
}

/* ---- profile ---- */

#ifdef SC_PROFILE
struct sc_waits sc_waits[CLUSTER_CORES];
#endif

/* ---- flash ---- */

/* Once: flash is only read. */
static void flash_init(void) {
    REG(UDMA_CLOCKS) = REG(UDMA_CLOCKS) | UDMA_HYPERBUS_CLOCK;
    REG(HYPER_PAGE_BOUND) = 4;
    REG(HYPER_LATENCY) = 0;
    REG(HYPER_CHIP_SELECT) = 1;
    REG(HYPER_COMMAND) = 5;
    REG(HYPER_2D) = 0;
    REG(HYPER_L2_2D) = 0;
#if SC_RAM_BYTES > 0
    REG(RAM_2D) = 0;
    REG(RAM_L2_2D) = 0;
#endif
}

void sc_flash_start(void *l2, uint32_t flash_offset, uint32_t bytes) {
    __asm__ volatile("" ::: "memory");
    REG(HYPER_FLASH_ADDRESS) = flash_offset;
    REG(HYPER_L2_ADDRESS) = (uintptr_t)l2;
    REG(HYPER_BYTES) = bytes;
    REG(HYPER_GO) = HYPER_GO_TRANSFER;
}

void sc_flash_wait(uint32_t left) {
    SC_WAIT_BEGIN
    while (left > 0 ? HYPER_QUEUED(REG(HYPER_STATUS)) > left : (REG(HYPER_STATUS) & 1) != 0) {
    }
    __asm__ volatile("" ::: "memory");
    SC_WAIT_END
}

#if SC_RAM_BYTES > 0

/* Both channels share the chip select. It stays on flash except at the start of a HyperRAM transfer. */
void sc_ram_start(void *l2, uint32_t ram_offset, uint32_t bytes, enum sc_direction direction) {
    __asm__ volatile("" ::: "memory");
    REG(HYPER_CHIP_SELECT) = 0;
    REG(RAM_ADDRESS) = ram_offset;
    REG(RAM_COMMAND) = direction == SC_FROM_RAM ? 5 : 1;
    REG(RAM_L2_ADDRESS(direction)) = (uintptr_t)l2;
    REG(RAM_BYTES(direction)) = bytes;
    REG(RAM_GO(direction)) = HYPER_GO_TRANSFER;
    REG(HYPER_CHIP_SELECT) = 1;
}

void sc_ram_wait(void) {
    SC_WAIT_BEGIN
    while ((REG(RAM_STATUS) & 1) != 0) {
    }
    __asm__ volatile("" ::: "memory");
    SC_WAIT_END
}

#endif

/* ---- workers ---- */

static void start(sc_worker_fn fn, void *arg) {
    __asm__ volatile("" ::: "memory");
    REG(EU_DISPATCH) = (uintptr_t)fn;
    REG(EU_DISPATCH) = (uintptr_t)arg;
}

SC_HOT void sc_run_workers(sc_worker_fn fn, void *arg) {
    start(fn, arg);
    sc_meet();
}

SC_HOT void sc_run_team(sc_worker_fn fn, void *arg) {
    start(fn, arg);
    fn(arg, CONTROLLER);
    sc_meet();
}

SC_HOT static void __attribute__((noreturn)) work(int core) {
    for (;;) {
        sc_worker_fn fn = (sc_worker_fn)(uintptr_t)elw(EU_DISPATCH);
        void *arg = (void *)(uintptr_t)elw(EU_DISPATCH);
        fn(arg, core);
        sc_meet();
    }
}

/* ---- start-up ---- */

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
    uint32_t zeros = L1_END - (uintptr_t)__sc_l1_start; /* link.ld guarantees at least 64 bytes */
    for (uint32_t *at = from; at < to; at += zeros / sizeof(uint32_t)) {
        uint32_t left = (uintptr_t)to - (uintptr_t)at;
        sc_dma_wait(sc_dma_out(at, __sc_l1_start, left < zeros ? left : zeros));
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
    flash_init();
}

void __attribute__((noreturn, used)) sc_cluster_main(uint32_t core) {
    REG(EU_MASK) = SC_EVENTS;
    if (core != CONTROLLER) {
        work((int)core);
    }
    controller_init();
    sc_run_workers(zero_l1, NULL);
    zero_with_dma(__sc_l2_start, __sc_l2_end);
#ifdef SC_HAS_WMEM
    zero_with_dma(__sc_wmem_start, __sc_wmem_end);
#endif
    sc_exit(sc_main());
}

void __attribute__((used)) sc_fc_main(void) {
    for (uint32_t core = 0; core < CLUSTER_CORES; core++) {
        REG(CLUSTER_BOOT(core)) = (uintptr_t)sc_cluster_start;
    }
    REG(CLUSTER_FETCH_ENABLE) = ALL_CORES;
}
