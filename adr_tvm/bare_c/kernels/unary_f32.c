/* Functions of one entry. */
#include "adr_kernels.h"

void adr_unary_f32(const adr_unary *p, const float *x, float *y) {
  for (int32_t i = 0; i < p->size; ++i) {
    const float v = x[i];
    switch (p->function) {
      case ADR_SIGMOID: y[i] = 1.0f / (1.0f + expf(-v)); break;
      case ADR_TANH: y[i] = tanhf(v); break;
      case ADR_EXP: y[i] = expf(v); break;
      case ADR_SQRT: y[i] = sqrtf(v); break;
      case ADR_ABS: y[i] = fabsf(v); break;
      default: y[i] = adr_activate(v, &p->activation); break;
    }
  }
}
