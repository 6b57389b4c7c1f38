/* Mean over the pixels of an image, channel by channel. */
#include "adr_kernels.h"

void adr_mean_f32(const adr_mean *p, const float *x, float *y) {
  for (int32_t c = 0; c < p->channels; ++c) y[c] = 0.0f;
  for (int32_t row = 0; row < p->rows; ++row) {
    for (int32_t c = 0; c < p->channels; ++c) y[c] += *x++;
  }
  for (int32_t c = 0; c < p->channels; ++c) y[c] /= (float)p->rows;
}
