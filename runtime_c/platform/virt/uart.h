/* SPDX-License-Identifier: Apache-2.0
 * Console of a board, beside sc_console.h. */
#ifndef UART_H
#define UART_H

#include <stdint.h>

uint8_t sc_read(void); /* waits for a byte */

#endif
