/* Rounding to nearest, ties to even, and what becomes of int32 sums. */
#ifndef ADR_INT8_ROUNDING_H
#define ADR_INT8_ROUNDING_H

#include "adr_int8.h"

static inline int32_t adr_limit(int32_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : value;
}

/* value / 2^shift; shift 1 to 30, |value| < 2^31 - 2^(shift - 1). */
static inline int32_t adr_round_shift(int32_t value, int32_t shift) {
  return (value + ((int32_t)1 << (shift - 1)) - 1 + ((value >> shift) & 1)) >> shift;
}

/* sum * multiplier / 2^(32 + shift): of the lower word only whether it is 0 matters. */
static inline int32_t adr_rescale(int32_t sum, int32_t multiplier, int32_t shift) {
  const int64_t product = (int64_t)sum * multiplier;
  const int32_t high = (int32_t)(product >> 32);
  const int32_t up = ((high >> shift) & 1) | ((uint32_t)product != 0);
  return (high + (((int32_t)1 << (shift - 1)) - 1) + up) >> shift;
}

/* y [count][channels] of sums [count][stride] * unit, for the channels from ``first`` on; y and residual have M a row. */
static inline void adr_finish_rows(const adr_int8_layer *p, const int32_t *rescale, int32_t first, int32_t channels,
                                   int32_t count, const int32_t *sums, int32_t stride, int32_t unit,
                                   const int8_t *residual, int8_t *y) {
  const int32_t words = p->rescale_words, low = p->low, high = p->high, M = p->window.out_channels;
  for (int32_t row = 0; row < count; ++row, sums += stride, y += M) {
    const int32_t *each = rescale + first * words;
    for (int32_t channel = 0; channel < channels; ++channel, each += words) {
      int32_t sum = sums[channel] * unit + each[0];
      if (residual != NULL) sum += adr_round_shift(residual[row * M + first + channel] * each[3], each[4]);
      y[first + channel] = (int8_t)adr_limit(adr_rescale(sum, each[1], each[2]), low, high);
    }
  }
}

#endif
