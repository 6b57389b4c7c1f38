/* Local response normalisation across channels (Krizhevsky, Sutskever, Hinton 2012, section 3.3). */
#include "adr_kernels.h"

/* s^-beta; the usual exponents need square roots only. */
static float inverse_power(float s, float beta) {
  if (beta == 0.75f) {
    const float root = sqrtf(s);
    return 1.0f / (root * sqrtf(root));
  }
  return beta == 0.5f ? 1.0f / sqrtf(s) : powf(s, -beta);
}

void adr_lrn_f32(const adr_lrn *p, const float *x, float *y) {
  const int32_t C = p->channels;
  for (int32_t pixel = 0; pixel < p->pixels; ++pixel, x += C, y += C) {
    for (int32_t c = 0; c < C; ++c) {
      const int32_t first = c > p->before ? c - p->before : 0;
      const int32_t last = c + p->after < C ? c + p->after : C - 1;
      float squares = 0.0f;
      for (int32_t i = first; i <= last; ++i) squares = ADR_FMA(x[i], x[i], squares);
      y[c] = x[c] * inverse_power(ADR_FMA(p->factor, squares, p->bias), p->beta);
    }
  }
}
