/* Host: the program runs natively, one worker or, with -DSC_CORES=N, N threads.
 *
 *   -DSC_CORES=N      N workers as threads, with a real barrier (for thread and address sanitizers)
 *   -DSC_LAZY_DMA     a transfer moves nothing until it is waited for, so that a program that uses
 *                     the bytes too early computes garbage instead of being right by luck
 */
#ifndef SC_TARGET_H
#define SC_TARGET_H

#ifndef SC_CORES
#define SC_CORES 1
#endif
#define SC_XPULP 0

#define SC_L1 __attribute__((aligned(16)))
#define SC_L2 __attribute__((aligned(16)))
#define SC_L1_DATA __attribute__((aligned(16)))
#define SC_HOT __attribute__((noinline))

#endif
