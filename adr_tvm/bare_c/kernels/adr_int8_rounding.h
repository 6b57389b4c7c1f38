/* Rounding to nearest, ties to even, and what becomes of int32 sums. */
#ifndef ADR_INT8_ROUNDING_H
#define ADR_INT8_ROUNDING_H

#include "adr_int8.h"
#include "adr_int8_neon.h"
#include "adr_int8_pairs.h"

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

#if defined(ADR_INT8_NEON)

/* Four values of ``words`` words each, of which the first is at ``table``. */
static inline int32x4_t adr_load_apart(const int32_t *table, int32_t words) {
  int32x4_t values = vdupq_n_s32(table[0]);
  values = vld1q_lane_s32(table + words, values, 1);
  values = vld1q_lane_s32(table + 2 * words, values, 2);
  return vld1q_lane_s32(table + 3 * words, values, 3);
}

/* What adr_round_shift and adr_rescale do, four at once; half is 2^(shift - 1) - 1. */
static inline int32x4_t adr_round_shift_four(int32x4_t value, int32x4_t down, int32x4_t half) {
  const int32x4_t odd = vandq_s32(vshlq_s32(value, down), vdupq_n_s32(1));
  return vshlq_s32(vaddq_s32(vaddq_s32(value, half), odd), down);
}

static inline int32x4_t adr_rescale_four(int32x4_t sum, int32x4_t multiplier, int32x4_t down, int32x4_t half) {
  const int32x4_t one = vdupq_n_s32(1);
  const int32x4_t first = vreinterpretq_s32_s64(vmull_s32(vget_low_s32(sum), vget_low_s32(multiplier)));
  const int32x4_t second = vreinterpretq_s32_s64(vmull_high_s32(sum, multiplier));
  const int32x4_t low = vuzp1q_s32(first, second), high = vuzp2q_s32(first, second);
  const int32x4_t rest = vandq_s32(vreinterpretq_s32_u32(vtstq_s32(low, low)), one);
  const int32x4_t up = vorrq_s32(vandq_s32(vshlq_s32(high, down), one), rest);
  return vshlq_s32(vaddq_s32(vaddq_s32(high, half), up), down);
}

/* Four channels of all rows; the arguments are those of adr_finish_rows. */
static inline void adr_finish_four(const adr_int8_layer *p, const int32_t *table, int32_t count, const int32_t *sums,
                                   int32_t stride, int32_t unit, const int8_t *residual, int8_t *y) {
  const int32_t words = p->rescale_words, M = p->window.out_channels;
  const int32x4_t one = vdupq_n_s32(1), bias = adr_load_apart(table, words), multiplier = adr_load_apart(table + 1, words);
  const int32x4_t shift = adr_load_apart(table + 2, words), down = vnegq_s32(shift);
  const int32x4_t half = vsubq_s32(vshlq_s32(one, vsubq_s32(shift, one)), one);
  int32x4_t factor = one, r_down = one, r_half = one;
  if (residual != NULL) {
    const int32x4_t r_shift = adr_load_apart(table + 4, words);
    factor = adr_load_apart(table + 3, words);
    r_down = vnegq_s32(r_shift);
    r_half = vsubq_s32(vshlq_s32(one, vsubq_s32(r_shift, one)), one);
  }
  for (int32_t row = 0; row < count; ++row, sums += stride) {
    int32x4_t sum = vmlaq_n_s32(bias, vld1q_s32(sums), unit);
    if (residual != NULL) {
      const int32_t four = (int32_t)adr_four(residual + row * M);
      const int32x4_t values = vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
      sum = vaddq_s32(sum, adr_round_shift_four(vmulq_s32(values, factor), r_down, r_half));
    }
    sum = adr_rescale_four(sum, multiplier, down, half);
    sum = vminq_s32(vmaxq_s32(sum, vdupq_n_s32(p->low)), vdupq_n_s32(p->high));
    const int16x4_t narrow = vmovn_s32(sum);
    const int32_t bytes = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(narrow, narrow))), 0);
    memcpy(y + row * M, &bytes, 4);
  }
}

#endif

/* y [count][channels] of sums [count][stride] * unit, for the channels from ``first`` on; y and residual have M a row. */
static inline void adr_finish_rows(const adr_int8_layer *p, const int32_t *rescale, int32_t first, int32_t channels,
                                   int32_t count, const int32_t *sums, int32_t stride, int32_t unit,
                                   const int8_t *residual, int8_t *y) {
  const int32_t words = p->rescale_words, low = p->low, high = p->high, M = p->window.out_channels;
#if defined(ADR_INT8_NEON)
  for (; channels >= 4; channels -= 4, first += 4, sums += 4)
    adr_finish_four(p, rescale + first * words, count, sums, stride, unit, residual == NULL ? NULL : residual + first,
                    y + first);
#endif
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
