/* SPDX-License-Identifier: Apache-2.0
 * Form ids of N-EUREKA's two contexts (sc_neureka.h). */
#include "sc_platform.h"

SC_L1 uint32_t sc_neureka_forms[2];
