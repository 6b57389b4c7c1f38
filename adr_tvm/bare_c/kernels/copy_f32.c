/* Copies that move entries: transposes, slices, pads and concatenations. */
#include "adr_kernels.h"

void adr_copy_f32(const adr_copy *p, const float *x, float *y) {
  const int32_t inner = p->rank - 1, n = p->shape[inner];
  const int32_t x_step = p->x_strides[inner], y_step = p->y_strides[inner];
  int32_t index[ADR_MAX_RANK] = {0}, axis;
  x += p->x_start;
  y += p->y_start;
  do {
    for (int32_t i = 0; i < n; ++i) y[i * y_step] = x[i * x_step];
    /* On to the next index of the outer axes, as an odometer goes. */
    for (axis = inner - 1; axis >= 0; --axis) {
      x += p->x_strides[axis];
      y += p->y_strides[axis];
      if (++index[axis] < p->shape[axis]) break;
      x -= p->shape[axis] * p->x_strides[axis];
      y -= p->shape[axis] * p->y_strides[axis];
      index[axis] = 0;
    }
  } while (axis >= 0);
}

void adr_pad_f32(const adr_pad *p, const float *x, float *y) {
  for (int32_t i = 0; i < p->size; ++i) y[i] = p->value;
  adr_copy_f32(&p->copy, x, y);
}
