/* SPDX-License-Identifier: Apache-2.0
 * What PULP open has in other places, or of other sizes, than its relatives; tried on GVSoC. */
#ifndef SC_REGS_H
#define SC_REGS_H

#define SC_CORES 8             /* workers; the controller is the core behind them */
#define L1_END 0x10010000u     /* from 0x10000000 on */
#define HYPERBUS_PERIPHERAL 8u /* of the uDMA */

#endif
