/* Copies that move entries: transposes, slices, pads with zeros and concatenations. */
#include <string.h>

#include "adr_int8.h"

void adr_copy_i8(const adr_copy *p, const int8_t *x, int8_t *y) {
  const int32_t inner = p->rank - 1, n = p->shape[inner];
  const int32_t x_step = p->x_strides[inner], y_step = p->y_strides[inner];
  int32_t index[ADR_MAX_RANK] = {0}, from = p->x_start, to = p->y_start;
  do {
    if (x_step == 1 && y_step == 1) memcpy(y + to, x + from, (size_t)n);
    else
      for (int32_t i = 0; i < n; ++i) y[to + i * y_step] = x[from + i * x_step];
  } while (adr_copy_next(p, index, &from, &to));
}

void adr_pad_i8(const adr_pad *p, const int8_t *x, int8_t *y) {
  memset(y, 0, (size_t)p->size);
  adr_copy_i8(&p->copy, x, y);
}
