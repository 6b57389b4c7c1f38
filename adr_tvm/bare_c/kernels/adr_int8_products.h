/* Products of four vectors with many filters: what convolutions, hashes and tables of centroids come down to.
 *
 * Vectors are written side by side as columns, a step four entries: words [steps][4] of int8 on 64-bit Arm, elsewhere
 * [steps][2][4] of pairs of int16, of which the even entries come first, then the odd ones. */
#ifndef ADR_INT8_PRODUCTS_H
#define ADR_INT8_PRODUCTS_H

#include "adr_int8.h"
#include "adr_int8_neon.h"
#include "adr_int8_pairs.h"

#if defined(ADR_INT8_NEON)
#define ADR_STEP_WORDS 4 /* of four columns */
#else
#define ADR_STEP_WORDS 8
#endif

/* The four entries of a step into one of the four columns. */
static inline void adr_put_four(uint32_t *column, uint32_t four) {
#if defined(ADR_INT8_NEON)
  column[0] = four;
#else
  column[0] = adr_even(four);
  column[4] = adr_odd(four);
#endif
}

/* Writes one of the four columns from a vector of 4 * steps entries; returns 0 only if all of them are 0. */
uint32_t adr_widen_i8(const int8_t *values, int32_t steps, uint32_t *column);

/* sums[column * stride + filter] of 2 * pairs filters; stride is in words. The words of a pair of filters lie ``pair_words``
 * after those of the one before: 2 * steps, or more where only a part of each filter is multiplied. */
void adr_products_i8(const int32_t *weights, const uint32_t *columns, int32_t steps, int32_t pairs, int32_t *sums,
                     int32_t stride, int32_t pair_words);

/* The same as pairs of int16, (sum + 2^shift / 2) / 2^shift rounded down, which must fit: products[column * stride + pair],
 * the first filter of the pair in the lower half. */
void adr_small_products_i8(const int32_t *weights, const uint32_t *columns, int32_t steps, int32_t pairs,
                           uint32_t *products, int32_t stride, int32_t pair_words, int32_t shift);

/* The im2col rows of ``count`` (up to 4) output positions from ``first`` on, as columns; others are left. The channels of
 * each tap are cut into vectors of ``length`` entries, each filled up with zeros to a multiple of 4 where that is less than
 * all channels; else only the row's end is. */
void adr_columns_i8(const adr_window *window, int32_t length, const int8_t *x, int32_t first, int32_t count,
                    uint32_t *columns);

#endif
