/* SPDX-License-Identifier: Apache-2.0
 * Native program: input words from stdin or a prompt on the command line, answers on stdout. */
#define _POSIX_C_SOURCE 200809L /* isatty */

#include "program.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llm_tokenizer.h"
#include "sc_contract.h"

static void __attribute__((noreturn)) refuse(const char *why) {
    fflush(stdout);
    fprintf(stderr, "platform: %s\n", why);
    exit(SC_EXIT_PLATFORM);
}

/* ---- input on stdin ---- */

static uint32_t input[SC_INPUT_WORDS];

/* Missing words are 0. sc_program() checks the values. Returns 0 at the end of stdin. */
static int read_input(void) {
    memset(input, 0, sizeof input);
    size_t bytes = fread(input, 1, sizeof input, stdin);
    if (ferror(stdin)) {
        refuse("cannot read the input words from stdin");
    }
    static const char magic[] = "SCI"; /* SC_INPUT_MAGIC without the version */
    if (bytes > 0 && memcmp(input, magic, bytes < 3 ? bytes : 3) != 0) {
        refuse("stdin is for the input that --words makes; a prompt goes on the command line, see --help");
    }
    if (bytes % sizeof input[0] != 0) {
        refuse("the input on stdin is not a whole number of 32-bit words");
    }
    if (bytes > 0 && !input[SC_IN_MORE] && fgetc(stdin) != EOF) {
        refuse("more input words on stdin than the program was built for");
    }
    return bytes > 0;
}

uint32_t *sc_input_words(void) { return input; }

int sc_next_input(void) { return read_input(); }

/* ---- console ---- */

void sc_write(const char *text, uint32_t bytes) {
    fwrite(text, 1, bytes, stdout);
    if (memchr(text, '\n', bytes) != NULL) {
        fflush(stdout); /* so that a reader gets every line at once */
    }
}

void sc_exit(int code) {
    /* a failed write at a line end leaves no data, only the error flag */
    if (fflush(stdout) != 0 || ferror(stdout)) {
        refuse("cannot write to stdout");
    }
    exit(code);
}

/* ---- prompt and options ---- */

#define CONTEXT (SC_INPUT_WORDS - SC_IN_TOKENS)
#define DEFAULT_TOKENS 64

extern const llm_tokenizer SC_TOKENIZER;

static const llm_tokenizer *tokenizer(void) { return &SC_TOKENIZER; }

static const char help[] = /* numbers depend on the model */
    "usage: model [OPTIONS] [PROMPT]\n"
    "\n"
    "Prints PROMPT and how the model goes on.  Integer arithmetic, one program, no other files.\n"
    "\n"
    "  --tokens N         most tokens to generate [64, or what the context of %d leaves]\n"
    "  --temperature T    0 takes the most probable token; 0.02 to 100 [0]\n"
    "  --top-p P          sample only from the most probable tokens, up to this total probability [1]\n"
    "  --seed S           seed for sampling, with a temperature [0]\n"
    "  --ids 1,2,3        the prompt as token ids, each below %u\n"
    "  --ignore-eos       go on after an end token\n"
    "  --prompt-lookup N  guess up to N tokens from the text so far, 1 to %d; same text; temperature 0 only\n"
    "  --words            write the input of the programs for other machines to stdout, run nothing\n"
    "  --help             this\n"
    "\n"
    "Without arguments, and with stdin from elsewhere than a terminal, the input is what --words writes.\n";

static void say_help(FILE *to) { fprintf(to, help, CONTEXT, (unsigned)tokenizer()->vocab, SC_LOOKUP_MAX); }

static void __attribute__((noreturn, format(printf, 1, 2))) impossible(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("model: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\n", stderr);
    va_end(arguments);
    exit(SC_EXIT_USAGE);
}

static double number(const char *option, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != 0) {
        impossible("%s %s is not a number", option, text);
    }
    return value;
}

static uint32_t whole(const char *option, const char *text, uint32_t least, uint32_t most) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (strspn(text, "0123456789") == 0 || *end != 0 || errno != 0 || value < least || value > most) {
        impossible("%s %s is not possible; allowed: %u to %u", option, text, (unsigned)least, (unsigned)most);
    }
    return (uint32_t)value;
}

/* Nearest integer, halves to even, as in Python. For values from 0 to 2^31. */
static uint32_t rounded(double value) {
    uint32_t below = (uint32_t)value;
    double rest = value - below;
    return below + (rest > 0.5 || (rest == 0.5 && below % 2 == 1));
}

static uint32_t inverse_temperature(const char *text) {
    double t = number("--temperature", text);
    if (!(t == 0 || (t >= 0.02 && t <= 100))) {
        impossible("--temperature %s is not possible; allowed: 0 (the most probable token) or 0.02 to 100",
                   text);
    }
    return t == 0 ? 0 : rounded(65536 / t);
}

static uint32_t top_p(const char *text) {
    double p = number("--top-p", text);
    if (!(p > 0 && p <= 1)) {
        impossible("--top-p %s is not possible; allowed: above 0, at most 1", text);
    }
    uint32_t q16 = rounded(65536 * p);
    return q16 > 0 ? q16 : 1;
}

static void no_room(size_t prompt) {
    if (prompt >= CONTEXT) {
        impossible(
            "the prompt takes %zu tokens and the program was compiled for a context of %d, which leaves "
            "no room for an answer; use a prompt of at most %d tokens",
            prompt, CONTEXT, CONTEXT - 1);
    }
}

static size_t put_ids(const char *list, uint32_t *tokens) {
    size_t count = 0;
    for (const char *at = list + strspn(list, ", "); *at != 0; at += strspn(at, ", ")) {
        size_t digits = strspn(at, "0123456789");
        char id[16] = {0};
        if (digits == 0 || digits >= sizeof id || strcspn(at, ", ") != digits) {
            impossible("--ids %s is not a list of numbers; write for instance 1,403,407", list);
        }
        memcpy(id, at, digits);
        no_room(count + 1);
        tokens[count++] = whole("--ids", id, 0, tokenizer()->vocab - 1);
        at += digits;
    }
    return count;
}

static size_t put_text(const char *text, uint32_t *tokens) {
    const llm_tokenizer *t = tokenizer();
    size_t bytes = strlen(text), room = llm_encode_room(t, bytes);
    if (bytes > 0 && t->refusal.count > 0) {
        impossible("this program takes --ids only: the tokenizer's %.*s", (int)t->refusal.count,
                   (const char *)t + t->refusal.at);
    }
    /* not into `tokens`: a prompt that is too long is counted as well */
    uint32_t *ids = malloc((room + 1) * sizeof *ids);
    int count = ids == NULL ? LLM_ERROR_ROOM : llm_encode(t, text, bytes, ids, room);
    if (count == LLM_ERROR_UTF8) {
        impossible("the prompt is not UTF-8");
    }
    if (count == LLM_ERROR_ROOM) {
        impossible("not enough memory for the prompt");
    }
    if (count < 0) {
        impossible("blobs/tokenizer.bin is of another version than the program; compile the model again");
    }
    no_room((size_t)count);
    memcpy(tokens, ids, (size_t)count * sizeof *ids);
    free(ids);
    return (size_t)count;
}

typedef struct {
    const char *tokens, *temperature, *top_p, *seed, *ids, *prompt_lookup, *prompt;
    int ignore_eos, words;
} request;

/* Value of an option: the next argument, or after "=". */
static const char *value_of(const char *option, const char *argument, char ***rest) {
    size_t n = strlen(option);
    if (strncmp(argument, option, n) != 0 || (argument[n] != 0 && argument[n] != '=')) {
        return NULL;
    }
    if (argument[n] == '=') {
        return argument + n + 1;
    }
    if (**rest == NULL) {
        impossible("%s needs a value", option);
    }
    return *(*rest)++;
}

static request parse(char **rest) {
    request r = {0};
    struct {
        const char *option;
        const char **to;
    } valued[] = {{"--tokens", &r.tokens}, {"--temperature", &r.temperature},
                  {"--top-p", &r.top_p},   {"--seed", &r.seed},
                  {"--ids", &r.ids},       {"--prompt-lookup", &r.prompt_lookup}};
    int options = 1;
    while (*rest != NULL) {
        const char *argument = *rest++, *value = NULL;
        for (size_t i = 0; options && value == NULL && i < sizeof valued / sizeof valued[0]; i++) {
            value = value_of(valued[i].option, argument, &rest);
            if (value != NULL) {
                *valued[i].to = value;
            }
        }
        if (value != NULL) {
            continue;
        }
        if (options && strcmp(argument, "--help") == 0) {
            say_help(stdout);
            exit(fflush(stdout) != 0);
        } else if (options && strcmp(argument, "--ignore-eos") == 0) {
            r.ignore_eos = 1;
        } else if (options && strcmp(argument, "--words") == 0) {
            r.words = 1;
        } else if (options && strcmp(argument, "--") == 0) {
            options = 0;
        } else if (options && argument[0] == '-' && argument[1] != 0) {
            impossible("%s is not an option; --help lists them", argument);
        } else if (r.prompt != NULL) {
            impossible("more than one prompt: %s; put quotes around it", argument);
        } else {
            r.prompt = argument;
        }
    }
    if (r.prompt != NULL && r.ids != NULL) {
        impossible("a prompt and --ids cannot be used together; give one of them");
    }
    return r;
}

enum order {
    RUN,  /* run with these words */
    WORDS /* write the words to stdout, as input for another machine */
};

/* Fills in the words of sc_contract.h, with the same limits and rounding as `shrinkc run`. Exits for --help (0) and for
 * invalid arguments (2). */
static enum order read_arguments(int argc, char **argv, uint32_t words[SC_INPUT_WORDS]) {
    if (argc <= 1) {
        say_help(stderr);
        exit(SC_EXIT_USAGE);
    }
    request r = parse(argv + 1);
    uint32_t *tokens = words + SC_IN_TOKENS;
    memset(words, 0, SC_INPUT_WORDS * sizeof words[0]);
    size_t prompt = r.ids != NULL ? put_ids(r.ids, tokens) : put_text(r.prompt ? r.prompt : "", tokens);
    if (prompt == 0) {
        impossible("the prompt has no tokens, and the model has no token to begin with; give a prompt");
    }
    uint32_t room = CONTEXT - (uint32_t)prompt;
    words[SC_IN_MAGIC] = SC_INPUT_MAGIC;
    words[SC_IN_PROMPT] = (uint32_t)prompt;
    words[SC_IN_NEW] = r.tokens != NULL        ? whole("--tokens", r.tokens, 1, room)
                       : room < DEFAULT_TOKENS ? room
                                               : DEFAULT_TOKENS;
    words[SC_IN_SEED] = r.seed != NULL ? whole("--seed", r.seed, 0, UINT32_MAX) : 0;
    words[SC_IN_INV_TEMP] = r.temperature != NULL ? inverse_temperature(r.temperature) : 0;
    words[SC_IN_TOP_P] = r.top_p != NULL ? top_p(r.top_p) : 65536;
    words[SC_IN_LOOKUP] =
        r.prompt_lookup != NULL ? whole("--prompt-lookup", r.prompt_lookup, 1, SC_LOOKUP_MAX) : 0;
    if (words[SC_IN_LOOKUP] && words[SC_IN_INV_TEMP]) {
        impossible("--prompt-lookup is not possible with --temperature %s; it is for temperature 0",
                   r.temperature);
    }
    words[SC_IN_TRACE] = SC_TRACE_TEXT;
    words[SC_IN_IGNORE_EOS] = (uint32_t)r.ignore_eos;
    if (r.words && isatty(STDOUT_FILENO)) {
        impossible("--words is nothing for a terminal; write it to a file");
    }
    return r.words ? WORDS : RUN;
}

/* ---- start ---- */

/* Input words on stdin: how shrinkc runs the program. */
static int answer_words(void) {
    if (!read_input()) {
        refuse("no input words on stdin");
    }
    return sc_program();
}

/* A prompt on the command line. */
static int answer_arguments(int argc, char **argv) {
    if (read_arguments(argc, argv, input) == WORDS) {
        fwrite(input, 1, sizeof input, stdout);
        return 0;
    }
    return sc_program();
}

int main(int argc, char **argv) {
    sc_exit(argc > 1 || isatty(STDIN_FILENO) ? answer_arguments(argc, argv) : answer_words());
}
