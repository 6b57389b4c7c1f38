/* Sums of products on 64-bit Arm: int8 as they are, four pairs of filters with four columns.
 *
 * A vector of weights holds two steps of a pair of filters, (a0, b0, a1, b1); one of columns a step of four columns. With
 * dot products (Armv8.2) a lane of weights meets all columns: one instruction for 16 multiply-adds. Without, products are
 * int16, and two of them fit: |weight| <= 127; three instructions for 16. */
#ifndef ADR_INT8_NEON_H
#define ADR_INT8_NEON_H

#include <stdint.h>

#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)
#define ADR_INT8_NEON 1
#include <arm_neon.h>

static inline int8x16_t adr_load_words(const int32_t *words) {
  return vreinterpretq_s8_s32(vld1q_s32(words));
}

static inline int8x8_t adr_load_two_words(const int32_t *words) {
  return vreinterpret_s8_s32(vld1_s32(words));
}

static inline int8x16_t adr_load_columns(const uint32_t *words) {
  return vreinterpretq_s8_u32(vld1q_u32(words));
}

/* Two filters with one vector: adds two steps of each to ``sums``, which adr_both_sums adds up. ``two`` holds steps
 * (a0, b0, a1, b1), ``same`` the vector's, each twice. */
static inline int32x4_t adr_add_two_steps(int32x4_t sums, int8x16_t two, int8x16_t same) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sums, two, same);
#else
  return vpadalq_s16(sums, vmlal_high_s8(vmull_s8(vget_low_s8(two), vget_low_s8(same)), two, same));
#endif
}

static inline int32x2_t adr_both_sums(int32x4_t sums) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vadd_s32(vget_low_s32(sums), vget_high_s32(sums));
#else
  return vpadd_s32(vget_low_s32(sums), vget_high_s32(sums));
#endif
}

#if defined(__ARM_FEATURE_DOTPROD)

/* The first filter of a pair is ``a``, the second ``b``; of each the sums of four columns. */
#define ADR_DECLARE_PAIR(n) int32x4_t a##n = vdupq_n_s32(0), b##n = vdupq_n_s32(0)
#define ADR_TWO_STEPS(n)                                                    \
  do {                                                                      \
    const int8x16_t two = adr_load_words(weights + (n) * pair_words);       \
    a##n = vdotq_laneq_s32(a##n, first, two, 0);                            \
    b##n = vdotq_laneq_s32(b##n, first, two, 1);                            \
    a##n = vdotq_laneq_s32(a##n, second, two, 2);                           \
    b##n = vdotq_laneq_s32(b##n, second, two, 3);                           \
  } while (0)
#define ADR_LAST_STEP(n)                                                    \
  do {                                                                      \
    const int8x8_t one = adr_load_two_words(weights + (n) * pair_words);    \
    a##n = vdotq_lane_s32(a##n, first, one, 0);                             \
    b##n = vdotq_lane_s32(b##n, first, one, 1);                             \
  } while (0)
#define ADR_FINISH_PAIR(n) sums[2 * (n)] = a##n, sums[2 * (n) + 1] = b##n
#define ADR_ARRANGE_TWO_STEPS
#define ADR_ARRANGE_LAST_STEP

#else

/* Sums of filters and columns (a c0, b c1), (a c1, b c0), (a c2, b c3), (a c3, b c2), each in two halves. */
#define ADR_DECLARE_PAIR(n)                                          \
  int32x4_t a##n = vdupq_n_s32(0), b##n = a##n, c##n = a##n, d##n = a##n
#define ADR_TWO_STEPS(n)                                                    \
  do {                                                                      \
    const int8x16_t two = adr_load_words(weights + (n) * pair_words);       \
    a##n = adr_add_two_steps(a##n, two, c01);                                       \
    b##n = adr_add_two_steps(b##n, two, c10);                                       \
    c##n = adr_add_two_steps(c##n, two, c23);                                       \
    d##n = adr_add_two_steps(d##n, two, c32);                                       \
  } while (0)
#define ADR_LAST_STEP(n)                                                    \
  do {                                                                      \
    const int8x8_t one = adr_load_two_words(weights + (n) * pair_words);    \
    a##n = vpadalq_s16(a##n, vmull_s8(one, vget_low_s8(c01)));              \
    b##n = vpadalq_s16(b##n, vmull_s8(one, vget_low_s8(c10)));              \
    c##n = vpadalq_s16(c##n, vmull_s8(one, vget_low_s8(c23)));              \
    d##n = vpadalq_s16(d##n, vmull_s8(one, vget_low_s8(c32)));              \
  } while (0)
#define ADR_FINISH_PAIR(n)                                                  \
  do {                                                                      \
    const int32x4_t c01 = vpaddq_s32(a##n, b##n), c23 = vpaddq_s32(c##n, d##n);   \
    sums[2 * (n)] = vuzp1q_s32(c01, c23);                                   \
    sums[2 * (n) + 1] = vrev64q_s32(vuzp2q_s32(c01, c23));                  \
  } while (0)
#define ADR_ARRANGE(low, high)                                                                           \
  const int64x2_t low_half = vreinterpretq_s64_s8(low), high_half = vreinterpretq_s64_s8(high);          \
  const int8x16_t c01 = vreinterpretq_s8_s64(vzip1q_s64(low_half, high_half));                           \
  const int8x16_t c23 = vreinterpretq_s8_s64(vzip2q_s64(low_half, high_half));                           \
  const int8x16_t c10 = vreinterpretq_s8_s32(vrev64q_s32(vreinterpretq_s32_s8(c01)));                    \
  const int8x16_t c32 = vreinterpretq_s8_s32(vrev64q_s32(vreinterpretq_s32_s8(c23)));
#define ADR_ARRANGE_TWO_STEPS ADR_ARRANGE(first, second)
#define ADR_ARRANGE_LAST_STEP ADR_ARRANGE(first, first)

#endif

#define ADR_MULTIPLY(declare, two_steps, last_step, finish)             \
  declare;                                                              \
  for (; steps >= 2; steps -= 2, weights += 4, columns += 8) {          \
    const int8x16_t first = adr_load_columns(columns);                  \
    const int8x16_t second = adr_load_columns(columns + 4);             \
    ADR_ARRANGE_TWO_STEPS                                               \
    two_steps;                                                          \
  }                                                                     \
  if (steps > 0) {                                                      \
    const int8x16_t first = adr_load_columns(columns);                  \
    ADR_ARRANGE_LAST_STEP                                               \
    last_step;                                                          \
  }                                                                     \
  finish
#define ADR_TWO(each) each(0); each(1)
#define ADR_FOUR(each) ADR_TWO(each); each(2); each(3)

/* sums[filter] of four columns, for four pairs of filters and for one. Registers hold the sums of four pairs, or without
 * dot products of two. */
#if defined(__ARM_FEATURE_DOTPROD)

static inline void adr_multiply_four_pairs(const int32_t *weights, int32_t pair_words, const uint32_t *columns,
                                           int32_t steps, int32x4_t sums[8]) {
  ADR_MULTIPLY(ADR_FOUR(ADR_DECLARE_PAIR), ADR_FOUR(ADR_TWO_STEPS), ADR_FOUR(ADR_LAST_STEP), ADR_FOUR(ADR_FINISH_PAIR));
}

#else

static inline void adr_multiply_two_pairs(const int32_t *weights, int32_t pair_words, const uint32_t *columns,
                                          int32_t steps, int32x4_t sums[4]) {
  ADR_MULTIPLY(ADR_TWO(ADR_DECLARE_PAIR), ADR_TWO(ADR_TWO_STEPS), ADR_TWO(ADR_LAST_STEP), ADR_TWO(ADR_FINISH_PAIR));
}

static inline void adr_multiply_four_pairs(const int32_t *weights, int32_t pair_words, const uint32_t *columns,
                                           int32_t steps, int32x4_t sums[8]) {
  adr_multiply_two_pairs(weights, pair_words, columns, steps, sums);
  adr_multiply_two_pairs(weights + 2 * pair_words, pair_words, columns, steps, sums + 4);
}

#endif

static inline void adr_multiply_pair(const int32_t *weights, const uint32_t *columns, int32_t steps, int32x4_t sums[2]) {
  const int32_t pair_words = 0;
  ADR_MULTIPLY(ADR_DECLARE_PAIR(0), ADR_TWO_STEPS(0), ADR_LAST_STEP(0), ADR_FINISH_PAIR(0));
}

/* From four filters of four columns each to four columns of four filters each. */
static inline void adr_transpose(int32x4_t rows[4]) {
  const int32x4_t low01 = vzip1q_s32(rows[0], rows[1]), high01 = vzip2q_s32(rows[0], rows[1]);
  const int32x4_t low23 = vzip1q_s32(rows[2], rows[3]), high23 = vzip2q_s32(rows[2], rows[3]);
  rows[0] = vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(low01), vreinterpretq_s64_s32(low23)));
  rows[1] = vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(low01), vreinterpretq_s64_s32(low23)));
  rows[2] = vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(high01), vreinterpretq_s64_s32(high23)));
  rows[3] = vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(high01), vreinterpretq_s64_s32(high23)));
}

#endif

#endif
