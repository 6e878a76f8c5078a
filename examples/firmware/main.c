/* SPDX-License-Identifier: Apache-2.0
 * A conversation over a serial line: reads a line, lets the model go on, and again. The model remembers what was
 * said, because the session keeps its KV cache. MODEL and TOKENIZER: from the Makefile. */
#include "board.h"
#include "llm.h"

#ifndef ANSWER
#define ANSWER 24 /* most tokens of an answer */
#endif
enum { CONTEXT = 512, LINE = 256 }; /* CONTEXT: at least that of the compiled model */

extern const llm_model MODEL;
extern const llm_tokenizer TOKENIZER;

int main(void) {
    static llm session;
    static uint32_t tokens[CONTEXT], ids[2 * LINE];
    static char line[LINE], text[256];
    int length, result = llm_init(&session, &MODEL, tokens, CONTEXT);
    if (MODEL.text_bytes > sizeof text) result = LLM_ERROR_MEMORY;
    while (result == LLM_OK && (length = board_read_line(line, LINE)) >= 0) {
        const int n = llm_encode(&TOKENIZER, line, (size_t)length, ids, 2 * LINE);
        /* the id that begins every text is only for the first line */
        const int from = session.count > 0 && n > 0 && ids[0] == tokens[0];
        result = n < 0 ? n : llm_feed(&session, ids + from, (size_t)(n - from));
        for (int i = 0, id; i < ANSWER && result == LLM_OK; i++)
            if ((id = llm_next(&session, 0)) < 0)
                result = id;
            else
                board_write(text, llm_text(&session, (uint32_t)id, text, sizeof text));
        board_write("\n", 1);
        if (result == LLM_END) result = LLM_OK;
    }
    return -result; /* 0, or the number of an error in llm.h */
}
