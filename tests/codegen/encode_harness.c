/* Encodes the texts on stdin, each behind its length as a 32-bit word; a line of ids for each. */
#include "sc_encode.h"

#include <stdio.h>
#include <stdlib.h>

static void *read_whole(const char *name) {
    FILE *file = fopen(name, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) exit(2);
    long size = ftell(file);
    char *content = malloc((size_t)size);
    rewind(file);
    if (content == NULL || fread(content, 1, (size_t)size, file) != (size_t)size) exit(2);
    fclose(file);
    return content;
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    sc_tokenizer *t = read_whole(argv[1]);
    uint32_t bytes;
    while (fread(&bytes, sizeof bytes, 1, stdin) == 1) {
        char *text = malloc(bytes + 1u);
        size_t count;
        if (text == NULL || fread(text, 1, bytes, stdin) != bytes) return 2;
        if (sc_is_utf8(text, bytes)) {
            uint32_t *ids = sc_encode(t, text, bytes, &count);
            if (ids == NULL) return 2;
            for (size_t i = 0; i < count; i++) printf("%s%u", i > 0 ? " " : "", (unsigned)ids[i]);
            free(ids);
        } else {
            printf("not UTF-8");
        }
        printf("\n");
        free(text);
    }
    free(t);
    return 0;
}
