/* Pairs of 16-bit values in a word, and two multiply-adds at once. */
#ifndef ADR_INT8_PAIRS_H
#define ADR_INT8_PAIRS_H

#include <stdint.h>
#include <string.h>

#if defined(__ARM_FEATURE_SIMD32)
#include <arm_acle.h>
#endif

/* Four int8, in the order of memory, the first in the lowest byte. */
static inline uint32_t adr_four(const int8_t *values) {
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  uint32_t word;
  memcpy(&word, values, 4);
  return word;
#else
  return (uint8_t)values[0] | (uint32_t)(uint8_t)values[1] << 8 | (uint32_t)(uint8_t)values[2] << 16 |
       (uint32_t)(uint8_t)values[3] << 24;
#endif
}

/* Key of 4 * steps int8: equal data have equal keys. */
static inline uint32_t adr_key_of_data(const int8_t *data, int32_t steps) {
  uint32_t key = 0;
  for (int32_t step = 0; step < steps; ++step) {
    key = (key ^ adr_four(data + 4 * step)) * 0x9E3779B1u;
    key ^= key >> 15;
  }
  return key;
}

/* Bytes 0 and 2 of a word, and bytes 1 and 3, as pairs of int16. */
static inline uint32_t adr_even(uint32_t four) {
#if defined(__ARM_FEATURE_SIMD32)
  return (uint32_t)__sxtb16((int8x4_t)four);
#else
  return ((uint32_t)(int32_t)(int8_t)four & 0xffff) | (uint32_t)(int32_t)(int8_t)(four >> 16) << 16;
#endif
}

static inline uint32_t adr_odd(uint32_t four) {
  return adr_even(four >> 8 | four << 24);
}

/* a.low * b.low + a.high * b.high + sum */
static inline int32_t adr_dual_mac(uint32_t a, uint32_t b, int32_t sum) {
#if defined(__ARM_FEATURE_SIMD32)
  return __smlad((int16x2_t)a, (int16x2_t)b, sum);
#else
  return sum + (int16_t)a * (int16_t)b + (int16_t)(a >> 16) * (int16_t)(b >> 16);
#endif
}

#endif
