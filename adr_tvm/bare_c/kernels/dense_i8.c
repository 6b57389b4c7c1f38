#include <string.h>

#include "adr_int8_neon.h"
#include "adr_int8_pairs.h"
#include "adr_int8_rounding.h"

#if defined(ADR_INT8_NEON)

/* Both sums of a pair of filters: a load of weights for 16 multiply-adds. */
static int32x2_t pair_sums(const int32_t *weight, const int32_t *data, int32_t steps) {
  int32x4_t sums = vdupq_n_s32(0);
  for (; steps >= 2; steps -= 2, weight += 4, data += 4)
    sums = adr_add_two_steps(sums, adr_load_words(weight), adr_load_words(data));
  if (steps > 0) {
    const int8x8_t none = vdup_n_s8(0);
    sums = adr_add_two_steps(sums, vcombine_s8(adr_load_two_words(weight), none),
                             vcombine_s8(adr_load_two_words(data), none));
  }
  return adr_both_sums(sums);
}

#endif

/* sums [M, to the next even number] of one vector, which is written to words [steps][2]: even entries and odd
 * entries, or on 64-bit Arm all four twice. */
static int32_t *dense_sums(int32_t channels, int32_t M, const int8_t *x, const int32_t *weight, uint32_t *scratch) {
  const int32_t steps = (channels + 3) / 4, whole = channels / 4;
  int32_t *sums = (int32_t *)scratch + 2 * steps;
  for (int32_t step = 0; step < steps; ++step) {
    int8_t last[4] = {0, 0, 0, 0};
    const int8_t *from = x + 4 * step;
    if (step == whole) from = memcpy(last, from, (size_t)(channels - 4 * whole));
    const uint32_t four = adr_four(from);
#if defined(ADR_INT8_NEON)
    scratch[2 * step] = scratch[2 * step + 1] = four;
#else
    scratch[2 * step] = adr_even(four);
    scratch[2 * step + 1] = adr_odd(four);
#endif
  }
#if defined(ADR_INT8_NEON)
  for (int32_t m = 0; m < M; m += 2, weight += 2 * steps)
    vst1_s32(sums + m, pair_sums(weight, (const int32_t *)scratch, steps));
#else
  for (int32_t m = 0; m < M; m += 2) {
    int32_t first = 0, second = 0;
    const uint32_t *data = scratch;
    for (int32_t step = 0; step < steps; ++step, data += 2, weight += 2) {
      const uint32_t even = data[0], odd = data[1], w0 = (uint32_t)weight[0], w1 = (uint32_t)weight[1];
      first = adr_dual_mac(odd, adr_odd(w0), adr_dual_mac(even, adr_even(w0), first));
      second = adr_dual_mac(odd, adr_odd(w1), adr_dual_mac(even, adr_even(w1), second));
    }
    sums[m] = first;
    sums[m + 1] = second;
  }
#endif
  return sums;
}

void adr_dense_i8(const adr_int8_layer *p, const int8_t *x, const int32_t *weight, const int32_t *rescale, int8_t *y,
                  void *scratch) {
  const int32_t M = p->window.out_channels;
  adr_finish_rows(p, rescale, 0, M, 1, dense_sums(p->window.channels, M, x, weight, scratch), M, 1, NULL, y);
}

void adr_logits_i8(const adr_int8_logits *p, const int8_t *x, const int32_t *weight, const int32_t *bias,
                   const float *scale, float *y, void *scratch) {
  const int32_t *sums = dense_sums(p->channels, p->out_channels, x, weight, scratch);
  for (int32_t m = 0; m < p->out_channels; ++m) y[m] = (float)(sums[m] + bias[m]) * scale[m];
}
