/* SPDX-License-Identifier: Apache-2.0
 * main() of the programs that shrinkc runs without an operating system. */
#include "program.h"

int main(void) { return sc_program(); }
