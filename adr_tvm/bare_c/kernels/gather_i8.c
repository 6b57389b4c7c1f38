#include "int8_gather.h"

#if defined(ADR_GATHER_LDM)

/* Eight sums, four products, two addresses: all 14 registers. A tap is 12 instructions for eight additions, against 21 of
 * GCC 12. Counters live on the stack: [0] entries of this output, [4] sums, [8] outputs, [12] bytes between outputs,
 * [16] bytes between rows. */
#define ADR_TAP(offset, shift)          \
  "ldr lr, [r0, #" #offset " * 4]\n"    \
  "add lr, lr, #((" #shift ") * 32)\n"  \
  "ldm lr!, {r9-r12}\n"                 \
  "add r1, r1, r9\n"                    \
  "add r2, r2, r10\n"                   \
  "add r3, r3, r11\n"                   \
  "add r4, r4, r12\n"                   \
  "ldm lr, {r9-r12}\n"                  \
  "add r5, r5, r9\n"                    \
  "add r6, r6, r10\n"                   \
  "add r7, r7, r11\n"                   \
  "add r8, r8, r12\n"

#define ADR_NEXT_ROW     \
  "ldr lr, [sp, #16]\n"  \
  "add r0, r0, lr\n"

#define ADR_ROW_1(t) ADR_TAP(0, t)
#define ADR_ROW_3(t) ADR_TAP(0, t) ADR_TAP(1, t + 1) ADR_TAP(2, t + 2)
#define ADR_ROW_5(t) ADR_ROW_3(t) ADR_TAP(3, t + 3) ADR_TAP(4, t + 4)

/* void name(entries, sums, outputs, bytes between outputs, bytes between rows) */
#define ADR_GATHER(name, taps)                               \
  __asm__(                                                   \
      ".syntax unified\n"                                    \
      ".pushsection .text." #name ", \"ax\", %progbits\n"    \
      ".align 2\n"                                           \
      ".thumb_func\n"                                        \
      ".type " #name ", %function\n" #name ":\n"             \
      "push {r4-r11, lr}\n"                                  \
      "ldr r12, [sp, #36]\n"                                 \
      "sub sp, sp, #20\n"                                    \
      "str r0, [sp]\n"                                       \
      "str r1, [sp, #4]\n"                                   \
      "str r2, [sp, #8]\n"                                   \
      "str r3, [sp, #12]\n"                                  \
      "str r12, [sp, #16]\n"                                 \
      "1:\n"                                                 \
      "ldrd r0, lr, [sp]\n"                                  \
      "ldm lr, {r1-r8}\n" taps                               \
      "ldr lr, [sp, #4]\n"                                   \
      "stm lr!, {r1-r8}\n"                                   \
      "ldr r0, [sp]\n"                                       \
      "ldrd r1, r2, [sp, #8]\n"                              \
      "add r0, r0, r2\n"                                     \
      "strd r0, lr, [sp]\n"                                  \
      "subs r1, r1, #1\n"                                    \
      "str r1, [sp, #8]\n"                                   \
      "bne 1b\n"                                             \
      "add sp, sp, #20\n"                                    \
      "pop {r4-r11, pc}\n"                                   \
      ".size " #name ", .-" #name "\n"                       \
      ".popsection\n");                                      \
  void name(const adr_entry *, int32_t *, int32_t, int32_t, int32_t)

ADR_GATHER(adr_gather_1x1, ADR_ROW_1(0));
ADR_GATHER(adr_gather_1x3, ADR_ROW_3(0));
ADR_GATHER(adr_gather_1x5, ADR_ROW_5(0));
ADR_GATHER(adr_gather_3x3, ADR_ROW_3(0) ADR_NEXT_ROW ADR_ROW_3(3) ADR_NEXT_ROW ADR_ROW_3(6));
ADR_GATHER(adr_gather_5x5, ADR_ROW_5(0) ADR_NEXT_ROW ADR_ROW_5(5) ADR_NEXT_ROW ADR_ROW_5(10) ADR_NEXT_ROW ADR_ROW_5(15)
                               ADR_NEXT_ROW ADR_ROW_5(20));

static int gather_unrolled(const adr_gather_taps *taps, const adr_entry *entries, int32_t outputs, int32_t *sums) {
  const int32_t step = 4 * taps->step, row = 4 * taps->row;
  if (taps->tap != 1) return 0;
  if (taps->rows == 1 && taps->columns == 1) adr_gather_1x1(entries, sums, outputs, step, row);
  else if (taps->rows == 1 && taps->columns == 3) adr_gather_1x3(entries, sums, outputs, step, row);
  else if (taps->rows == 1 && taps->columns == 5) adr_gather_1x5(entries, sums, outputs, step, row);
  else if (taps->rows == 3 && taps->columns == 3) adr_gather_3x3(entries, sums, outputs, step, row);
  else if (taps->rows == 5 && taps->columns == 5) adr_gather_5x5(entries, sums, outputs, step, row);
  else return 0;
  return 1;
}

static const int32_t *products_at(const int32_t *table, adr_entry entry) {
  (void)table;
  return entry;
}

#else

static int gather_unrolled(const adr_gather_taps *taps, const adr_entry *entries, int32_t outputs, int32_t *sums) {
  (void)taps, (void)entries, (void)outputs, (void)sums;
  return 0;
}

static const int32_t *products_at(const int32_t *table, adr_entry entry) {
  return table + entry;
}

#endif

void adr_gather_i8(const adr_gather_taps *taps, const int32_t *table, const adr_entry *entries, int32_t outputs,
                   int32_t *sums) {
  if (gather_unrolled(taps, entries, outputs, sums)) return;
  for (int32_t output = 0; output < outputs; ++output, entries += taps->step, sums += 8) {
    for (int32_t ky = 0; ky < taps->rows; ++ky) {
      for (int32_t kx = 0; kx < taps->columns; ++kx) {
        const int32_t *products = products_at(table, entries[ky * taps->row + kx * taps->tap]);
        products += 8 * (ky * taps->columns + kx);
        for (int32_t m = 0; m < 8; ++m) sums[m] += products[m];
      }
    }
  }
}
