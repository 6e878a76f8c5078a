/* A stand-in for the engine that tries what sc_platform.h promises.
 *
 * Prints one line per check, the same on every target ("time" and "cycles" lines aside), and ends
 * with the number of failed checks.  The blobs hold pattern(kind, i) at byte i, see make_blobs() in
 * conftest.py; the input words are printed back. */
#include "program.h"
#include "sc_contract.h"
#include "sc_platform.h"

#define BIG SC_TEST_BIG /* more than one DMA command can move, where L1 has that */
#define GUARD 0xC7      /* around every destination */

enum { WMEM = 1, L2 = 2, FLASH = 3 };

/* what weights fill first, as a blob and a pattern */
#ifdef SC_HAS_WMEM
#define FIRST_BLOB sc_blob_wmem
#define FIRST WMEM
#else
#define FIRST_BLOB sc_blob_l2
#define FIRST L2
#endif

static int failed;

/* ---- printing ---- */

static char line[160];
static uint32_t used;

static void text(const char *s) {
    while (*s != 0 && used < sizeof line) {
        line[used++] = *s++;
    }
}

static void number(uint32_t v) {
    char digits[10];
    uint32_t n = 0;
    do {
        digits[n++] = (char)('0' + v % 10);
        v /= 10;
    } while (v != 0);
    while (n > 0 && used < sizeof line) {
        line[used++] = digits[--n];
    }
}

static void end_line(void) {
    text("\n");
    sc_write(line, used);
    used = 0;
}

static void report(const char *what, uint32_t done, uint32_t wrong) {
    text(wrong == 0 && done > 0 ? "ok   " : "FAIL ");
    text(what);
    text(": checked ");
    number(done);
    text(", wrong ");
    number(wrong);
    end_line();
    failed += wrong != 0 || done == 0;
}

static uint8_t pattern(uint32_t kind, uint32_t i) {
    uint32_t x = (i + 1) * 2654435761u + kind * 40503u;
    return (uint8_t)(x >> 24 ^ x >> 13);
}

/* ---- memories ---- */

#define SMALL 512

static SC_L1 uint8_t l1_small[SC_CORES][SMALL];
static SC_L1 uint8_t l1_big[BIG + 64];
static SC_L2 uint8_t l2_small[SC_CORES][SMALL];
static SC_L2 uint8_t l2_big[BIG + 64] __attribute__((aligned(4)));
static SC_L2 uint32_t l2_flash[(70000 + 16) / 4];
static SC_L1_DATA uint32_t l1_data[4] = {1, 0x80000000u, 3, 0xDEADBEEFu};
static uint32_t plain_bss[64];
static uint32_t plain_data[3] = {7, 8, 9};

static uint32_t count_nonzero(const uint8_t *p, uint32_t n) {
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < n; i++) {
        wrong += p[i] != 0;
    }
    return wrong;
}

static void check_initial_memory(void) {
    report("L1 zeroed", sizeof l1_big, count_nonzero(l1_big, sizeof l1_big));
    report("L2 zeroed", sizeof l2_big, count_nonzero(l2_big, sizeof l2_big));
    report("bss zeroed", sizeof plain_bss, count_nonzero((const uint8_t *)plain_bss, sizeof plain_bss));
    report("data set", 3, (plain_data[0] != 7) + (plain_data[1] != 8) + (plain_data[2] != 9));
    report("L1 data set", 4,
           (l1_data[0] != 1) + (l1_data[1] != 0x80000000u) + (l1_data[2] != 3) + (l1_data[3] != 0xDEADBEEFu));
}

static uint32_t count_unlike(const uint8_t *p, uint32_t kind, uint32_t first, uint32_t n) {
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < n; i++) {
        wrong += p[i] != pattern(kind, first + i);
    }
    return wrong;
}

static void check_blobs(void) {
#ifdef SC_HAS_WMEM
    report("wmem blob", SC_TEST_WMEM, count_unlike(sc_blob_wmem, WMEM, 0, SC_TEST_WMEM));
#endif
    report("L2 blob", SC_TEST_L2, count_unlike(sc_blob_l2, L2, 0, SC_TEST_L2));
}

/* ---- workers ---- */

#define ROUNDS 40

static SC_L1 uint32_t ran[SC_CORES], wrong_in[SC_TEAM];
static SC_L1 uint32_t turn[2][ROUNDS][SC_TEAM]; /* of the workers, and of the team */

static void count_me(void *arg, int core) { ran[core] += *(uint32_t *)arg; }

/* Every core must see what all others wrote before the barrier, and nobody may be a round ahead. */
static void meet(void *arg, int core) {
    const int team = arg != NULL;
    uint32_t(*const turns)[SC_TEAM] = turn[team];
    wrong_in[core] = 0;
    for (uint32_t r = 0; r < ROUNDS; r++) {
        for (uint32_t wait = 0; wait < ((uint32_t)core * 7 + r) % 23; wait++) {
            __asm__ volatile("");
        }
        turns[r][core] = r + 1;
        team ? sc_team_barrier() : sc_worker_barrier();
        for (int other = 0; other < (team ? SC_TEAM : SC_CORES); other++) {
            wrong_in[core] += turns[r][other] != r + 1;
            wrong_in[core] += r + 1 < ROUNDS && turns[r + 1][other] != 0;
        }
        team ? sc_team_barrier() : sc_worker_barrier();
    }
}

static uint32_t sum(const uint32_t *v) {
    uint32_t total = 0;
    for (int i = 0; i < SC_TEAM; i++) {
        total += v[i];
    }
    return total;
}

static void check_workers(void) {
    uint32_t wrong = 0, step = 3;
    for (uint32_t i = 1; i <= 20; i++) {
        sc_run_workers(count_me, &step);
        for (int core = 0; core < SC_CORES; core++) {
            wrong += ran[core] != step * i;
        }
    }
    report("every worker runs once", 20, wrong);
    sc_run_workers(meet, NULL);
    report("barrier", ROUNDS, sum(wrong_in));
    sc_run_team(meet, turn);
    report("the team's barrier", ROUNDS, sum(wrong_in));
}

/* ---- DMA ---- */

static void fill(uint8_t *p, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        p[i] = GUARD;
    }
}

/* Bytes that are wrong in a row of SMALL bytes that should hold `n` pattern bytes at `at`. */
static uint32_t faults(const uint8_t *row, uint32_t at, uint32_t n, uint32_t kind, uint32_t first) {
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < SMALL; i++) {
        int inside = i >= at && i < at + n;
        wrong += row[i] != (inside ? pattern(kind, first + i - at) : GUARD);
    }
    return wrong;
}

/* All sizes 1..300, each core its own alignments: blob -> L1 -> L2, with guards around both. */
static void copy_small(void *from_first, int core) {
    const uint8_t *blob = from_first != NULL ? FIRST_BLOB : sc_blob_l2;
    uint32_t kind = from_first != NULL ? FIRST : L2;
    wrong_in[core] = 0;
    for (uint32_t n = 1; n <= 300; n++) {
        uint32_t from = (n * 5 + (uint32_t)core) % 61, at = 32 + (n + (uint32_t)core) % 9;
        uint32_t to = 32 + (n / 3 + 2 * (uint32_t)core) % 7;
        fill(l1_small[core], SMALL);
        fill(l2_small[core], SMALL);
        sc_dma_wait(sc_dma_in(l1_small[core] + at, blob + from, n));
        wrong_in[core] += faults(l1_small[core], at, n, kind, from);
        sc_dma_wait(sc_dma_out(l2_small[core] + to, l1_small[core] + at, n));
        wrong_in[core] += faults(l2_small[core], to, n, kind, from);
    }
}

/* Two outstanding on every core at once; eight, the most a core may have, on one core.  The SoC has
 * 16 counters in all: eight on each of 8 cores would wait for each other for ever. */
static void copy_overlapping(void *eight, int core) {
    uint32_t n = eight == NULL ? 2 : core == 0 ? 8 : 0;
    sc_dma d[8];
    fill(l1_small[core], SMALL);
    for (uint32_t i = 0; i < n; i++) {
        d[i] = sc_dma_in(l1_small[core] + 60 * i, sc_blob_l2 + 60 * i, 60);
    }
    for (uint32_t i = n; i-- > 0;) {
        sc_dma_wait(d[i]); /* not in the order they were started */
    }
    wrong_in[core] = faults(l1_small[core], 0, 60 * n, L2, 0);
}

static void check_big(void) {
    fill(l1_big, sizeof l1_big);
    fill(l2_big, sizeof l2_big);
    sc_dma_wait(sc_dma_in(l1_big + 3, FIRST_BLOB + 5, BIG));
    sc_dma_wait(sc_dma_out(l2_big + 1, l1_big + 3, BIG));
    uint32_t wrong = count_unlike(l1_big + 3, FIRST, 5, BIG);
    wrong += count_unlike(l2_big + 1, FIRST, 5, BIG);
    wrong += (l1_big[2] != GUARD) + (l1_big[3 + BIG] != GUARD);
    wrong += (l2_big[0] != GUARD) + (l2_big[1 + BIG] != GUARD);
    report("big DMA by the controller", BIG, wrong);
}

static void big_by_worker(void *arg, int core) {
    (void)arg;
    if (core == SC_CORES - 1) {
        sc_dma_wait(sc_dma_in(l1_big, FIRST_BLOB, BIG));
    }
}

static void check_dma(void) {
    sc_run_workers(copy_small, NULL);
    report("DMA 1..300 bytes, L2", 300, sum(wrong_in));
#ifdef SC_HAS_WMEM
    sc_run_workers(copy_small, &failed);
    report("DMA 1..300 bytes, wmem", 300, sum(wrong_in));
#endif
    sc_run_workers(copy_overlapping, NULL);
    report("DMA two outstanding", 2, sum(wrong_in));
    sc_run_workers(copy_overlapping, &failed);
    report("DMA eight outstanding", 8, sum(wrong_in));
    check_big();
    sc_run_workers(big_by_worker, NULL);
    report("big DMA by a worker", BIG, count_unlike(l1_big, FIRST, 0, BIG));
}

/* ---- flash ---- */

struct piece {
    uint32_t offset, bytes;
};

static uint32_t flash_faults(uint32_t offset, uint32_t bytes) {
    const uint8_t *got = (const uint8_t *)l2_flash;
    uint32_t wrong = 0;
    /* the end first: it is what arrives last */
    for (uint32_t i = bytes; i-- > 0;) {
        wrong += got[4 + i] != pattern(FLASH, offset + i);
    }
    return wrong + (got[0] != GUARD) + (got[3] != GUARD) + (got[4 + bytes] != GUARD);
}

static void read_flash(void *arg, int core) {
    struct piece *p = arg;
    if (core == 0) {
        sc_flash_start(l2_flash + 1, p->offset, p->bytes);
        sc_flash_wait(0);
        p->bytes = flash_faults(p->offset, p->bytes);
    }
}

static void check_flash(void) {
    static const struct piece pieces[] = {{0, 4},        {4, 64},         {1020, 8},
                                          {65532, 1024}, {100000, 65536}, {SC_TEST_FLASH - 70000, 70000}};
    uint32_t wrong = 0, pieces_read = sizeof pieces / sizeof pieces[0];
    for (uint32_t i = 0; i < pieces_read; i++) {
        struct piece p = pieces[i];
        fill((uint8_t *)l2_flash, sizeof l2_flash);
        sc_run_workers(read_flash, &p); /* by a worker */
        wrong += p.bytes;
        fill((uint8_t *)l2_flash, sizeof l2_flash);
        sc_flash_start(l2_flash + 1, pieces[i].offset, pieces[i].bytes); /* by the controller */
        sc_flash_wait(0);
        wrong += flash_faults(pieces[i].offset, pieces[i].bytes);
    }
    report("flash", pieces_read, wrong);
}

/* As many transfers as the queue holds: each is whole, to its last word, when all but those behind it are done. */
enum { QUEUED = 8, QUEUED_BYTES = 4 * 1021 };

static void check_flash_queue(void) {
    uint32_t wrong = 0;
    for (uint32_t round = 0; round < 3; round++) {
        fill(l2_big, QUEUED * QUEUED_BYTES + 4);
        for (uint32_t i = 0; i < QUEUED; i++) {
            sc_flash_start(l2_big + i * QUEUED_BYTES, 4 * (1000 * i + round), QUEUED_BYTES);
        }
        for (uint32_t i = 0; i < QUEUED; i++) {
            sc_flash_wait(QUEUED - 1 - i);
            const uint8_t *got = l2_big + i * QUEUED_BYTES;
            /* the end first: it is what arrives last */
            for (uint32_t at = QUEUED_BYTES; at-- > 0;) {
                wrong += got[at] != pattern(FLASH, 4 * (1000 * i + round) + at);
            }
        }
        wrong += l2_big[QUEUED * QUEUED_BYTES] != GUARD;
    }
    report("flash queue", 3 * QUEUED, wrong);
}

/* ---- HyperRAM ---- */

enum { RAM_PARTS = 4, RAM_PART = 4 * 1021, RAM_KIND = 77 };

/* All parts out, and back in another order into where they were not, beside a transfer from flash. */
static uint32_t ram_faults(uint32_t first) {
    uint8_t *out = l2_big, *back = l2_big + RAM_PARTS * RAM_PART;
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < RAM_PARTS * RAM_PART; i++) {
        out[i] = pattern(RAM_KIND, first + i);
    }
    fill(back, RAM_PARTS * RAM_PART + 4);
    for (uint32_t i = 0; i < RAM_PARTS; i++) {
        sc_ram_start(out + i * RAM_PART, first + 2 * i * RAM_PART, RAM_PART, SC_TO_RAM);
    }
    sc_flash_start(l2_flash + 1, 65532, 1024);
    for (uint32_t i = 0; i < RAM_PARTS; i++) {
        uint32_t part = (i + 1) % RAM_PARTS;
        sc_ram_start(back + i * RAM_PART, first + 2 * part * RAM_PART, RAM_PART, SC_FROM_RAM);
    }
    sc_ram_wait();
    for (uint32_t i = 0; i < RAM_PARTS; i++) {
        uint32_t part = (i + 1) % RAM_PARTS;
        wrong += count_unlike(back + i * RAM_PART, RAM_KIND, first + part * RAM_PART, RAM_PART);
    }
    sc_flash_wait(0);
    return wrong + flash_faults(65532, 1024) + (back[RAM_PARTS * RAM_PART] != GUARD);
}

static void ram_by_worker(void *arg, int core) {
    if (core == SC_CORES - 1) {
        *(uint32_t *)arg = ram_faults(SC_RAM_BYTES - 2 * RAM_PARTS * RAM_PART);
    }
}

static void check_ram(void) {
    uint32_t wrong = 0;
    fill((uint8_t *)l2_flash, sizeof l2_flash);
    sc_run_workers(ram_by_worker, &wrong);
    report("HyperRAM", 2 * RAM_PARTS, wrong + ram_faults(0));
}

/* ---- console, input, time ---- */

static void check_console(void) {
    static char long_line[3001];
    for (uint32_t i = 0; i < sizeof long_line - 1; i++) {
        long_line[i] = (char)('a' + i % 26);
    }
    long_line[sizeof long_line - 1] = '\n';
    sc_write(long_line, sizeof long_line);
    sc_write("in ", 3);
    sc_write("pieces, caf\xc3\xa9", 13);
    sc_write("\n\n", 2);
}

static void echo_input(void) {
    const uint32_t *in = sc_input_words();
    for (uint32_t i = 0; i < SC_INPUT_WORDS; i++) {
        text("input ");
        number(i);
        text(" = ");
        number(in[i]);
        end_line();
    }
}

static void check_time(void) {
    uint32_t stood_still = 0, first = sc_time(), last = first;
    for (uint32_t i = 0; i < 100; i++) {
        uint32_t now = sc_time();
        stood_still += now == last;
        last = now;
    }
    text("time ");
    number(stood_still);
    text(last - first < 100000 ? " sane" : " wild");
    end_line();
}

/* ---- what things cost; all zero where there is no clock ---- */

static void nothing(void *arg, int core) {
    (void)arg;
    (void)core;
}

static SC_L1 uint32_t spent[8];

static void time_worker_parts(void *arg, int core) {
    (void)arg;
    for (int warm = 0; warm < 3; warm++) {
        uint32_t a = sc_time();
        for (int i = 0; i < 16; i++) {
            sc_worker_barrier();
        }
        uint32_t b = sc_time();
        if (core == 0) {
            spent[0] = b - a;
            for (uint32_t k = 0; k < 4; k++) {
                a = sc_time();
                sc_dma d = sc_dma_in(l1_big, sc_blob_l2, 4u << 4 * k); /* 4 B .. 16 KiB */
                b = sc_time();
                sc_dma_wait(d);
                spent[1 + k] = sc_time() - a;
                spent[5] = b - a;
            }
        }
        sc_worker_barrier();
    }
}

static void show_cycles(const char *what, uint32_t cycles) {
    text("cycles ");
    text(what);
    text(" ");
    number(cycles);
    end_line();
}

static void measure(void) {
    uint32_t spent_running = 0;
    for (int warm = 0; warm < 4; warm++) {
        uint32_t a = sc_time();
        sc_run_workers(nothing, NULL);
        spent_running = sc_time() - a;
    }
    sc_run_workers(time_worker_parts, NULL);
    show_cycles("run_workers, empty body", spent_running);
    show_cycles("16 barriers", spent[0]);
    show_cycles("dma_in without wait", spent[5]);
    show_cycles("dma 4 B", spent[1]);
    show_cycles("dma 64 B", spent[2]);
    show_cycles("dma 1 KiB", spent[3]);
    show_cycles("dma 16 KiB", spent[4]);
    uint32_t a = sc_time();
    sc_flash_start(l2_flash, 0, 4096);
    uint32_t b = sc_time();
    sc_flash_wait(0);
    uint32_t c = sc_time();
    show_cycles("flash_start", b - a);
    show_cycles("flash 4 KiB", c - a);
}

/* ---- deliberate failures, chosen by the input ---- */

enum { END_CODE = 42, END_TRAP = 1001, END_STACK = 1002, END_HANG = 1003, END_EARLY_USE = 1004 };

/* All of the own stack below here and a little more, but not through the next one. */
static void overflow(void *arg, int core) {
    (void)arg;
    if (core == 1) {
        volatile uint32_t start;
        volatile uint32_t *below = &start;
        __asm__ volatile("" : "+r"(below)); /* the compiler need not know how large it is */
        for (uint32_t i = 0; i < 1040 / 4; i++) {
            *below-- = i;
        }
    }
}

static void fail_on_purpose(uint32_t how) {
    switch (how) {
    case END_TRAP:
#ifdef __riscv
        __asm__ volatile(".word 0"); /* illegal */
#else
        __builtin_trap();
#endif
        break;
    case END_STACK:
        sc_run_workers(overflow, NULL);
        break;
    case END_HANG:
        sc_write("hanging\n", 8);
        for (;;) {
            __asm__ volatile("");
        }
    case END_EARLY_USE: {
        sc_dma d = sc_dma_in(l1_small[0], sc_blob_l2, 64);
        report("bytes used before the wait", 64, count_unlike(l1_small[0], L2, 0, 64));
        sc_dma_wait(d);
        break;
    }
    default:
        sc_exit((int)how);
    }
}

int sc_program(void) {
    check_initial_memory();
    check_blobs();
    check_workers();
    check_dma();
#if SC_TEST_FLASH
    check_flash();
    check_flash_queue();
    check_ram();
#endif
    check_console();
    echo_input();
    check_time();
    measure();
    text("failed checks: ");
    number((uint32_t)failed);
    end_line();
    uint32_t how = sc_input_words()[SC_IN_SEED];
    if (how != 0) {
        fail_on_purpose(how);
    }
    return failed;
}
