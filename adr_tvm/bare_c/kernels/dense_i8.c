#include <string.h>

#include "adr_int8_pairs.h"
#include "adr_int8_rounding.h"

/* sums [M, to the next even number] of one vector, which is widened to words [steps][2]: even entries, odd entries. */
static int32_t *dense_sums(int32_t channels, int32_t M, const int8_t *x, const int32_t *weight, uint32_t *scratch) {
  const int32_t steps = (channels + 3) / 4, whole = channels / 4;
  int32_t *sums = (int32_t *)scratch + 2 * steps;
  for (int32_t step = 0; step < steps; ++step) {
    int8_t last[4] = {0, 0, 0, 0};
    const int8_t *from = x + 4 * step;
    if (step == whole) from = memcpy(last, from, (size_t)(channels - 4 * whole));
    const uint32_t four = adr_four(from);
    scratch[2 * step] = adr_even(four);
    scratch[2 * step + 1] = adr_odd(four);
  }
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
