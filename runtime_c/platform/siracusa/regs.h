/* SPDX-License-Identifier: Apache-2.0
 * What Siracusa has in other places, or of other sizes, than its relatives; tried on GVSoC. */
#ifndef SC_REGS_H
#define SC_REGS_H

#define SC_CORES 8             /* workers; the controller is the core behind them */
#define L1_END 0x10040000u     /* from 0x10000000 on */
#define HYPERBUS_PERIPHERAL 4u /* of the uDMA */
#define SC_NEUREKA 1           /* has the engine: sc_neureka.h */

#endif
