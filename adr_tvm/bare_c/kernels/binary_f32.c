/* Functions of two entries. */
#include "adr_kernels.h"

static float apply(int32_t function, float a, float b) {
  switch (function) {
    case ADR_SUBTRACT: return a - b;
    case ADR_MULTIPLY: return a * b;
    case ADR_DIVIDE: return a / b;
    case ADR_MAXIMUM: return a > b ? a : b;
    case ADR_MINIMUM: return a < b ? a : b;
    default: return a + b;
  }
}

void adr_binary_f32(const adr_binary *p, const float *a, const float *b, float *y) {
  int32_t at = 0;
  for (int32_t i = 0; i < p->size; ++i) {
    y[i] = p->swapped ? apply(p->function, b[at], a[i]) : apply(p->function, a[i], b[at]);
    at = at + 1 < p->period ? at + 1 : 0;
  }
}
