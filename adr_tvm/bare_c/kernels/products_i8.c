#include "int8_products.h"

#include "int8_pairs.h"

void adr_widen_i8(const int8_t *values, int32_t steps, uint32_t *column) {
  for (; steps > 0; --steps, values += 4, column += 8) {
    const uint32_t four = adr_four(values);
    column[0] = adr_even(four);
    column[4] = adr_odd(four);
  }
}

#if defined(__thumb2__) && defined(__ARM_FEATURE_SIMD32) && defined(__GNUC__)

/* Eight sums, two addresses and four temporaries fill all 14 registers, which compilers do not manage without spilling:
 * 29 instructions for 32 multiply-adds, against 41 of GCC 12. */
__asm__(
  ".syntax unified\n"
  ".pushsection .text.adr_products_i8, \"ax\", %progbits\n"
  ".align 2\n"
  ".global adr_products_i8\n"
  ".thumb_func\n"
  ".type adr_products_i8, %function\n"
  "adr_products_i8:\n"
  "push {r4-r11, lr}\n"
  "sub sp, sp, #20\n" /* [0] end of columns, [4] columns, [8] pairs, [12] weights; [56] sums, [60] stride, [64] pair_words */
  "str r1, [sp, #4]\n"
  "str r0, [sp, #12]\n"
  "add r2, r1, r2, lsl #5\n"
  "str r2, [sp]\n"
  "str r3, [sp, #8]\n"
  "1:\n"
  "movs r2, #0\n"
  "movs r3, #0\n"
  "movs r4, #0\n"
  "movs r5, #0\n"
  "movs r6, #0\n"
  "movs r7, #0\n"
  "mov r8, #0\n"
  "mov r9, #0\n"
  "2:\n" /* r0 weights, r1 columns, r2-r5 sums of the first filter, r6-r9 of the second */
  "ldrd r10, r11, [r0]\n"
  "sxtb16 r10, r10\n"
  "sxtb16 r11, r11\n"
  "ldrd r12, lr, [r1], #8\n"
  "smlad r2, r10, r12, r2\n"
  "smlad r6, r11, r12, r6\n"
  "smlad r3, r10, lr, r3\n"
  "smlad r7, r11, lr, r7\n"
  "ldrd r12, lr, [r1], #8\n"
  "smlad r4, r10, r12, r4\n"
  "smlad r8, r11, r12, r8\n"
  "smlad r5, r10, lr, r5\n"
  "smlad r9, r11, lr, r9\n"
  "ldrd r10, r11, [r0], #8\n"
  "sxtb16 r10, r10, ror #8\n"
  "sxtb16 r11, r11, ror #8\n"
  "ldrd r12, lr, [r1], #8\n"
  "smlad r2, r10, r12, r2\n"
  "smlad r6, r11, r12, r6\n"
  "smlad r3, r10, lr, r3\n"
  "smlad r7, r11, lr, r7\n"
  "ldrd r12, lr, [r1], #8\n"
  "smlad r4, r10, r12, r4\n"
  "smlad r8, r11, r12, r8\n"
  "smlad r5, r10, lr, r5\n"
  "smlad r9, r11, lr, r9\n"
  "ldr r12, [sp]\n"
  "cmp r1, r12\n"
  "bne 2b\n"
  "ldrd r12, lr, [sp, #56]\n"
  "lsls r1, lr, #2\n"
  "add r10, r12, r1\n"
  "add r11, r10, r1\n"
  "add lr, r11, r1\n"
  "strd r2, r6, [r12], #8\n"
  "strd r3, r7, [r10]\n"
  "strd r4, r8, [r11]\n"
  "strd r5, r9, [lr]\n"
  "str r12, [sp, #56]\n"
  "ldr r0, [sp, #12]\n"
  "ldr r1, [sp, #64]\n"
  "add r0, r0, r1, lsl #2\n"
  "str r0, [sp, #12]\n"
  "ldrd r1, r2, [sp, #4]\n"
  "subs r2, r2, #1\n"
  "str r2, [sp, #8]\n"
  "bne 1b\n"
  "add sp, sp, #20\n"
  "pop {r4-r11, pc}\n"
  ".size adr_products_i8, .-adr_products_i8\n"
  ".popsection\n");

#else

void adr_products_i8(const int32_t *weights, const uint32_t *columns, int32_t steps, int32_t pairs, int32_t *sums,
          int32_t stride, int32_t pair_words) {
  for (int32_t pair = 0; pair < pairs; ++pair, sums += 2, weights += pair_words) {
    int32_t total[2][4] = {{0}};
    const uint32_t *column = columns;
    for (int32_t step = 0; step < steps; ++step, column += 8) {
      for (int32_t filter = 0; filter < 2; ++filter) {
        const uint32_t four = (uint32_t)weights[2 * step + filter];
        const uint32_t even = adr_even(four), odd = adr_odd(four);
        for (int32_t c = 0; c < 4; ++c)
          total[filter][c] = adr_dual_mac(odd, column[4 + c], adr_dual_mac(even, column[c], total[filter][c]));
      }
    }
    for (int32_t c = 0; c < 4; ++c) {
      sums[c * stride] = total[0][c];
      sums[c * stride + 1] = total[1][c];
    }
  }
}

#endif
