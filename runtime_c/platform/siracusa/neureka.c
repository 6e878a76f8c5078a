/* SPDX-License-Identifier: Apache-2.0
 * What is known of N-EUREKA's two contexts: whoever writes its jobs has them. */
#include "sc_platform.h"

SC_L1 uint32_t sc_neureka_forms[2];
