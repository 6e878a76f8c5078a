/* A client of llm.h that obeys commands, for test_session.py. Each line of stdin is a command of words; each answer is
 * a line. Fails if a call writes outside of the token buffer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llm.h"

extern const llm_model SC_MODEL;

#define ROOM 512
#define GUARD 0xDEADBEEFu

static llm session, other;
static uint32_t memory[ROOM + 2], second[ROOM];
static int layers_seen, stop_at = -1;

static int on_layer(void *user, uint32_t layer) {
    (void)user;
    layers_seen++;
    return (int)layer == stop_at;
}

static long number(void) {
    const char *word = strtok(NULL, " \n");
    return word ? strtol(word, NULL, 10) : 0;
}

int main(void) {
    static char line[1 << 16];
    static uint32_t ids[1 << 12];
    uint32_t *const tokens = memory + 1;
    memory[0] = GUARD;
    while (fgets(line, sizeof line, stdin)) {
        const char *what = strtok(line, " \n");
        tokens[SC_MODEL.context] = GUARD;
        int result = 0;
        if (!what) continue;
        if (!strcmp(what, "init")) {
            result = llm_init(&session, &SC_MODEL, tokens, (size_t)number());
        } else if (!strcmp(what, "null")) {
            result = llm_init(&session, &SC_MODEL, NULL, ROOM);
        } else if (!strcmp(what, "version")) {
            llm_model old = SC_MODEL;
            old.version++;
            result = llm_init(&session, &old, tokens, ROOM);
        } else if (!strcmp(what, "other")) { /* another session takes the model over */
            result = llm_init(&other, &SC_MODEL, second, ROOM);
        } else if (!strcmp(what, "feed")) {
            size_t n = (size_t)number();
            for (size_t i = 0; i < n; i++) ids[i] = (uint32_t)number();
            result = llm_feed(&session, ids, n);
        } else if (!strcmp(what, "next")) {
            llm_sampling how = {0};
            how.inverse_temperature = (uint32_t)number(), how.top_p = (uint32_t)number();
            how.seed = (uint32_t)number(), how.lookup = (uint32_t)number(), how.ignore_end = (int)number();
            result = llm_next(&session, &how);
        } else if (!strcmp(what, "greedy")) {
            result = llm_next(&session, NULL);
        } else if (!strcmp(what, "rewind")) {
            result = llm_rewind(&session, (uint32_t)number());
        } else if (!strcmp(what, "text")) {
            char text[64];
            uint32_t id = (uint32_t)number();
            size_t n = llm_text(&session, id, text, sizeof text);
            for (size_t i = 0; i < n && i < sizeof text; i++) printf("%02x", (unsigned char)text[i]);
            result = (int)n;
            printf(" ");
        } else if (!strcmp(what, "stop")) { /* after a layer; -1: never */
            stop_at = (int)number();
            llm_on_layer(&session, on_layer, NULL);
        } else if (!strcmp(what, "layers")) {
            result = layers_seen;
        } else {
            return 2;
        }
        if (memory[0] != GUARD || tokens[SC_MODEL.context] != GUARD) return 3;
        printf("%d\n", result);
        fflush(stdout);
    }
    return 0;
}
