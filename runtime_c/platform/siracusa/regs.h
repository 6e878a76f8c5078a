/* SPDX-License-Identifier: Apache-2.0
 * Addresses and sizes of Siracusa that differ from other PULP chips. Verified on GVSoC. */
#ifndef SC_REGS_H
#define SC_REGS_H

#define SC_CORES 8             /* workers; the controller is core 8 */
#define L1_END 0x10040000u     /* L1 begins at 0x10000000 */
#define HYPERBUS_PERIPHERAL 4u /* number in the uDMA */
#define SC_NEUREKA 1           /* has N-EUREKA: sc_neureka.h */

#endif
