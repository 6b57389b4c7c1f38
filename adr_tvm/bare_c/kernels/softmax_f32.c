/* Softmax and its logarithm over the last axis; the largest entry is subtracted first, so that nothing overflows. */
#include "adr_kernels.h"

static float largest(const float *x, int32_t n) {
  float most = x[0];
  for (int32_t i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

void adr_softmax_f32(const adr_softmax *p, const float *x, float *y) {
  for (int32_t row = 0; row < p->rows; ++row, x += p->size, y += p->size) {
    const float most = largest(x, p->size);
    float sum = 0.0f;
    for (int32_t i = 0; i < p->size; ++i) {
      y[i] = expf(x[i] - most);
      sum += y[i];
    }
    for (int32_t i = 0; i < p->size; ++i) y[i] /= sum;
  }
}

void adr_log_softmax_f32(const adr_softmax *p, const float *x, float *y) {
  for (int32_t row = 0; row < p->rows; ++row, x += p->size, y += p->size) {
    const float most = largest(x, p->size);
    float sum = 0.0f;
    for (int32_t i = 0; i < p->size; ++i) sum += expf(x[i] - most);
    const float shift = most + logf(sum);
    for (int32_t i = 0; i < p->size; ++i) y[i] = x[i] - shift;
  }
}
