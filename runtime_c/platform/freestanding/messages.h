/* SPDX-License-Identifier: Apache-2.0
 * Messages of a platform about its own program: traps, stacks. */
#ifndef MESSAGES_H
#define MESSAGES_H

#include <stdint.h>

void sc_message(const char *text);
void sc_message_hex(uint32_t value); /* "0x" and 8 digits */

#endif
