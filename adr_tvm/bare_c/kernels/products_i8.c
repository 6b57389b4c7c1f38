#include "adr_int8_products.h"

#include "adr_int8_neon.h"

uint32_t adr_widen_i8(const int8_t *values, int32_t steps, uint32_t *column) {
  uint32_t any = 0;
  for (; steps > 0; --steps, values += 4, column += ADR_STEP_WORDS) {
    const uint32_t four = adr_four(values);
    any |= four;
    adr_put_four(column, four);
  }
  return any;
}

#if defined(__thumb2__) && defined(__ARM_FEATURE_SIMD32) && defined(__GNUC__)

/* Eight sums, two addresses and four temporaries fill all 14 registers, which compilers do not manage without spilling:
 * 29 instructions for 32 multiply-adds, against 41 of GCC 12. On the stack: [0] end of columns, [4] columns, [8] pairs,
 * [12] bytes of weights to skip, [16] what sums start at; then r4 to r11 and lr; [56] where results go, [60] stride, [64] pair_words,
 * [68] shift. r0 weights, r1 columns, r2 to r5 sums of the first filter, r6 to r9 of the second. */
#define ADR_FOUR_COLUMNS         \
  "ldrd r12, lr, [r1], #8\n"     \
  "smlad r2, r10, r12, r2\n"     \
  "smlad r6, r11, r12, r6\n"     \
  "smlad r3, r10, lr, r3\n"      \
  "smlad r7, r11, lr, r7\n"      \
  "ldrd r12, lr, [r1], #8\n"     \
  "smlad r4, r10, r12, r4\n"     \
  "smlad r8, r11, r12, r8\n"     \
  "smlad r5, r10, lr, r5\n"      \
  "smlad r9, r11, lr, r9\n"

#define ADR_PRODUCTS(name, start, finish)                    \
  __asm__(                                                   \
      ".syntax unified\n"                                    \
      ".pushsection .text." #name ", \"ax\", %progbits\n"    \
      ".align 2\n"                                           \
      ".global " #name "\n"                                  \
      ".thumb_func\n"                                        \
      ".type " #name ", %function\n" #name ":\n"             \
      "push {r4-r11, lr}\n"                                  \
      "sub sp, sp, #20\n"                                    \
      "ldr r12, [sp, #64]\n"                                 \
      "sub r12, r12, r2, lsl #1\n"                           \
      "lsl r12, r12, #2\n"                                   \
      "str r12, [sp, #12]\n"                                 \
      "str r1, [sp, #4]\n"                                   \
      "add r2, r1, r2, lsl #5\n"                             \
      "str r2, [sp]\n"                                       \
      "str r3, [sp, #8]\n" start                             \
      "1:\n"                                                 \
      "ldr r2, [sp, #16]\n"                                  \
      "mov r3, r2\n"                                         \
      "mov r4, r2\n"                                         \
      "mov r5, r2\n"                                         \
      "mov r6, r2\n"                                         \
      "mov r7, r2\n"                                         \
      "mov r8, r2\n"                                         \
      "mov r9, r2\n"                                         \
      "2:\n"                                                 \
      "ldrd r10, r11, [r0]\n"                                \
      "sxtb16 r10, r10\n"                                    \
      "sxtb16 r11, r11\n" ADR_FOUR_COLUMNS                   \
      "ldrd r10, r11, [r0], #8\n"                            \
      "sxtb16 r10, r10, ror #8\n"                            \
      "sxtb16 r11, r11, ror #8\n" ADR_FOUR_COLUMNS           \
      "ldr r12, [sp]\n"                                      \
      "cmp r1, r12\n"                                        \
      "bne 2b\n"                                             \
      "ldrd r12, r1, [sp, #56]\n"                            \
      "lsls r1, r1, #2\n" finish                             \
      "str r12, [sp, #56]\n"                                 \
      "ldrd r2, r3, [sp, #8]\n"                              \
      "ldr r1, [sp, #4]\n"                                   \
      "add r0, r0, r3\n"                                     \
      "subs r2, r2, #1\n"                                    \
      "str r2, [sp, #8]\n"                                   \
      "bne 1b\n"                                             \
      "add sp, sp, #20\n"                                    \
      "pop {r4-r11, pc}\n"                                   \
      ".size " #name ", .-" #name "\n"                       \
      ".popsection\n")

ADR_PRODUCTS(adr_products_i8,
             "movs r2, #0\n"
             "str r2, [sp, #16]\n",
             "add r10, r12, r1\n"
             "add r11, r10, r1\n"
             "add lr, r11, r1\n"
             "strd r2, r6, [r12], #8\n"
             "strd r3, r7, [r10]\n"
             "strd r4, r8, [r11]\n"
             "strd r5, r9, [lr]\n");

/* Sums start at half of 2^shift, which makes the shift round to nearest. */
ADR_PRODUCTS(adr_small_products_i8,
             "ldr lr, [sp, #68]\n"
             "movs r2, #1\n"
             "lsl r2, r2, lr\n"
             "lsrs r2, r2, #1\n"
             "str r2, [sp, #16]\n",
             "ldr lr, [sp, #68]\n"
             "asr r2, r2, lr\n"
             "asr r3, r3, lr\n"
             "asr r4, r4, lr\n"
             "asr r5, r5, lr\n"
             "asr r6, r6, lr\n"
             "asr r7, r7, lr\n"
             "asr r8, r8, lr\n"
             "asr r9, r9, lr\n"
             "pkhbt r2, r2, r6, lsl #16\n"
             "pkhbt r3, r3, r7, lsl #16\n"
             "pkhbt r4, r4, r8, lsl #16\n"
             "pkhbt r5, r5, r9, lsl #16\n"
             "str r3, [r12, r1]\n"
             "str r4, [r12, r1, lsl #1]\n"
             "add r10, r1, r1, lsl #1\n"
             "str r5, [r12, r10]\n"
             "str r2, [r12], #4\n");

#elif defined(ADR_INT8_NEON)

static inline void store_transposed(int32x4_t filters[4], int32_t *sums, int32_t stride) {
  adr_transpose(filters);
  vst1q_s32(sums, filters[0]);
  vst1q_s32(sums + stride, filters[1]);
  vst1q_s32(sums + 2 * stride, filters[2]);
  vst1q_s32(sums + 3 * stride, filters[3]);
}

/* Sums / 2^-down, to nearest, as int16. */
static inline uint32x4_t eight_small(int32x4_t low, int32x4_t high, int32x4_t down) {
  const int16x4_t first = vmovn_s32(vrshlq_s32(low, down)), second = vmovn_s32(vrshlq_s32(high, down));
  return vreinterpretq_u32_s16(vcombine_s16(first, second));
}

void adr_products_i8(const int32_t *weights, const uint32_t *columns, int32_t steps, int32_t pairs, int32_t *sums,
                     int32_t stride, int32_t pair_words) {
  for (; pairs >= 4; pairs -= 4, sums += 8, weights += 4 * pair_words) {
    int32x4_t found[8];
    adr_multiply_four_pairs(weights, pair_words, columns, steps, found);
    store_transposed(found, sums, stride);
    store_transposed(found + 4, sums + 4, stride);
  }
  for (; pairs > 0; --pairs, sums += 2, weights += pair_words) {
    int32x4_t found[2];
    adr_multiply_pair(weights, columns, steps, found);
    const int32x4_t low = vzip1q_s32(found[0], found[1]), high = vzip2q_s32(found[0], found[1]);
    vst1_s32(sums, vget_low_s32(low));
    vst1_s32(sums + stride, vget_high_s32(low));
    vst1_s32(sums + 2 * stride, vget_low_s32(high));
    vst1_s32(sums + 3 * stride, vget_high_s32(high));
  }
}

void adr_small_products_i8(const int32_t *weights, const uint32_t *columns, int32_t steps, int32_t pairs,
                           uint32_t *products, int32_t stride, int32_t pair_words, int32_t shift) {
  const int32x4_t down = vdupq_n_s32(-shift);
  for (; pairs >= 4; pairs -= 4, products += 4, weights += 4 * pair_words) {
    int32x4_t found[8];
    adr_multiply_four_pairs(weights, pair_words, columns, steps, found);
    adr_transpose(found);
    adr_transpose(found + 4);
    vst1q_u32(products, eight_small(found[0], found[4], down));
    vst1q_u32(products + stride, eight_small(found[1], found[5], down));
    vst1q_u32(products + 2 * stride, eight_small(found[2], found[6], down));
    vst1q_u32(products + 3 * stride, eight_small(found[3], found[7], down));
  }
  for (; pairs > 0; --pairs, ++products, weights += pair_words) {
    int32x4_t found[2];
    adr_multiply_pair(weights, columns, steps, found);
    const int16x4_t first = vmovn_s32(vrshlq_s32(found[0], down)), second = vmovn_s32(vrshlq_s32(found[1], down));
    const uint32x2_t low = vreinterpret_u32_s16(vzip1_s16(first, second));
    const uint32x2_t high = vreinterpret_u32_s16(vzip2_s16(first, second));
    vst1_lane_u32(products, low, 0);
    vst1_lane_u32(products + stride, low, 1);
    vst1_lane_u32(products + 2 * stride, high, 0);
    vst1_lane_u32(products + 3 * stride, high, 1);
  }
}

#else

/* Sums of two filters and four columns. */
static void multiply_pair(const int32_t *weights, const uint32_t *columns, int32_t steps, int32_t start,
                          int32_t sums[2][4]) {
  for (int32_t c = 0; c < 4; ++c) sums[0][c] = sums[1][c] = start;
  for (int32_t step = 0; step < steps; ++step, columns += 8) {
    for (int32_t filter = 0; filter < 2; ++filter) {
      const uint32_t four = (uint32_t)weights[2 * step + filter];
      const uint32_t even = adr_even(four), odd = adr_odd(four);
      for (int32_t c = 0; c < 4; ++c)
        sums[filter][c] = adr_dual_mac(odd, columns[4 + c], adr_dual_mac(even, columns[c], sums[filter][c]));
    }
  }
}

void adr_products_i8(const int32_t *weights, const uint32_t *columns, int32_t steps, int32_t pairs, int32_t *sums,
                     int32_t stride, int32_t pair_words) {
  int32_t pair_sums[2][4];
  for (int32_t pair = 0; pair < pairs; ++pair, sums += 2, weights += pair_words) {
    multiply_pair(weights, columns, steps, 0, pair_sums);
    for (int32_t c = 0; c < 4; ++c) {
      sums[c * stride] = pair_sums[0][c];
      sums[c * stride + 1] = pair_sums[1][c];
    }
  }
}

void adr_small_products_i8(const int32_t *weights, const uint32_t *columns, int32_t steps, int32_t pairs,
                           uint32_t *products, int32_t stride, int32_t pair_words, int32_t shift) {
  int32_t sums[2][4];
  for (int32_t pair = 0; pair < pairs; ++pair, ++products, weights += pair_words) {
    multiply_pair(weights, columns, steps, ((int32_t)1 << shift) >> 1, sums);
    for (int32_t c = 0; c < 4; ++c)
      products[c * stride] = ((uint32_t)(sums[0][c] >> shift) & 0xffff) | (uint32_t)(sums[1][c] >> shift) << 16;
  }
}

#endif
