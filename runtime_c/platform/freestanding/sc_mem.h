/* SPDX-License-Identifier: Apache-2.0
 * The four functions that GCC may call even in freestanding programs. */
#ifndef SC_MEM_H
#define SC_MEM_H

#include <stddef.h>

void *memcpy(void *to, const void *from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);

#endif
