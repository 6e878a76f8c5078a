/* Two models linked into one program take turns; expected.h has the interpreter's tokens. The exit code is 0, or the
 * number of the first turn that differs. */
#include "expected.h"
#include "llm.h"

LLM_DECLARE(first);
LLM_DECLARE(second);

static uint32_t tokens[2][CONTEXT];

int main(void) {
    static const llm_model *const models[2] = {&first_model, &second_model};
    static const llm_tokenizer *const tokenizers[2] = {&first_tokenizer, &second_tokenizer};
    static llm sessions[2];
    uint32_t ids[64];
    for (int m = 0; m < 2; m++) {
        if (llm_init(&sessions[m], models[m], tokens[m], CONTEXT) != LLM_OK) return 101 + m;
        const int n = llm_encode(tokenizers[m], TEXT, sizeof TEXT - 1, ids, 64);
        if (n != encoded[m] || ids[n - 1] != last_id[m]) return 103 + m;
        if (llm_feed(&sessions[m], prompts[m], PROMPT) != LLM_OK) return 105 + m;
    }
    for (int turn = 0; turn < TURNS; turn++)
        for (int m = 0; m < 2; m++)
            if (llm_next(&sessions[m], &(llm_sampling){.ignore_end = 1}) != expected[m][turn]) return turn + 1;
    return 0;
}

#ifdef __riscv
void __attribute__((noreturn)) _start(void) {
    register int a0 __asm__("a0") = main();
    register int a7 __asm__("a7") = 93; /* exit */
    for (;;) __asm__ volatile("ecall" ::"r"(a0), "r"(a7));
}
#endif
