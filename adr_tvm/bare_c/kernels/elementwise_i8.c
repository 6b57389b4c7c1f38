#include <string.h>

#include "adr_int8_rounding.h"

void adr_add_i8(const adr_int8_add *p, const int8_t *a, const int8_t *b, int8_t *y) {
  for (int32_t i = 0; i < p->size; ++i) {
    const int32_t sum = a[i] * p->multiplier_a + b[i] * p->multiplier_b;
    y[i] = (int8_t)adr_limit(adr_round_shift(sum, p->shift), p->low, p->high);
  }
}

/* Adding 1.5 * 2^23 leaves a float whose last bits are the nearest integer, ties to even. */
void adr_quantise_i8(const adr_int8_scale *p, const float *x, int8_t *y) {
  const float magic = 12582912.0f;
  for (int32_t i = 0; i < p->size; ++i) {
    float value = x[i] * p->factor;
    int32_t bits;
    value = value > -128.0f ? value : -128.0f;
    value = value < 127.0f ? value : 127.0f;
    value = x[i] == x[i] ? value + magic : magic;
    memcpy(&bits, &value, 4);
    y[i] = (int8_t)(bits - 0x4B400000);
  }
}

void adr_dequantise_i8(const adr_int8_scale *p, const int8_t *x, float *y) {
  for (int32_t i = 0; i < p->size; ++i) y[i] = (float)x[i] * p->factor;
}
