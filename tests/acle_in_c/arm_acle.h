/* What the int8 kernels use of Arm's C language extensions, in plain C, to test their form for Arm on other machines. */
#ifndef ARM_ACLE_IN_C_H
#define ARM_ACLE_IN_C_H

#include <stdint.h>

typedef int32_t int8x4_t;
typedef int32_t int16x2_t;

static inline int16x2_t __sxtb16(int8x4_t x) {
  const uint32_t u = (uint32_t)x;
  const uint32_t low = (uint32_t)(int32_t)(int8_t)u & 0xffff, high = (uint32_t)(int32_t)(int8_t)(u >> 16) << 16;
  return (int16x2_t)(high | low);
}

static inline int32_t __smlad(int16x2_t a, int16x2_t b, int32_t sum) {
  return sum + (int16_t)a * (int16_t)b + (a >> 16) * (b >> 16);
}

#endif
