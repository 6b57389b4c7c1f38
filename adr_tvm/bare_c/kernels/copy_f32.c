/* Copies that move entries: transposes, slices, pads and concatenations. */
#include "adr_kernels.h"

void adr_copy_f32(const adr_copy *p, const float *x, float *y) {
  const int32_t inner = p->rank - 1, n = p->shape[inner];
  const int32_t x_step = p->x_strides[inner], y_step = p->y_strides[inner];
  int32_t index[ADR_MAX_RANK] = {0}, from = p->x_start, to = p->y_start;
  do {
    for (int32_t i = 0; i < n; ++i) y[to + i * y_step] = x[from + i * x_step];
  } while (adr_copy_next(p, index, &from, &to));
}

void adr_pad_f32(const adr_pad *p, const float *x, float *y) {
  for (int32_t i = 0; i < p->size; ++i) y[i] = p->value;
  adr_copy_f32(&p->copy, x, y);
}
