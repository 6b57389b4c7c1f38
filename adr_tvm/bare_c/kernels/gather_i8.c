#include "adr_int8_gather.h"

#if defined(ADR_GATHER_LDM)

/* Eight words of sums, four of products, two addresses: all 14 registers. A tap is 12 instructions for 8 or 16 additions;
 * GCC 12 takes 21 for 8. On the stack: [0] entries of this output, [4] sums, [8] outputs, [12] bytes between outputs,
 * [16] bytes between rows. r0 entries, r1 to r8 sums, r9 to r12 products. */
#define ADR_TAP(add, offset, tap)       \
  "ldr lr, [r0, #" #offset " * 4]\n"    \
  "add lr, lr, #((" #tap ") * 32)\n"    \
  "ldm lr!, {r9-r12}\n"                 \
  add " r1, r1, r9\n"                   \
  add " r2, r2, r10\n"                  \
  add " r3, r3, r11\n"                  \
  add " r4, r4, r12\n"                  \
  "ldm lr, {r9-r12}\n"                  \
  add " r5, r5, r9\n"                   \
  add " r6, r6, r10\n"                  \
  add " r7, r7, r11\n"                  \
  add " r8, r8, r12\n"

#define ADR_NEXT_ROW    \
  "ldr lr, [sp, #16]\n" \
  "add r0, r0, lr\n"

/* Rows of taps, from tap ``t`` on; the very first tap is how registers start. */
#define ADR_FIRST_3(add) ADR_TAP(add, 1, 1) ADR_TAP(add, 2, 2)
#define ADR_FIRST_5(add) ADR_FIRST_3(add) ADR_TAP(add, 3, 3) ADR_TAP(add, 4, 4)
#define ADR_3(add, t) ADR_TAP(add, 0, t) ADR_TAP(add, 1, t + 1) ADR_TAP(add, 2, t + 2)
#define ADR_5(add, t) ADR_3(add, t) ADR_TAP(add, 3, t + 3) ADR_TAP(add, 4, t + 4)
#define ADR_3X3(add) ADR_FIRST_3(add) ADR_NEXT_ROW ADR_3(add, 3) ADR_NEXT_ROW ADR_3(add, 6)
#define ADR_5X5(add)                                                                                     \
  ADR_FIRST_5(add) ADR_NEXT_ROW ADR_5(add, 5) ADR_NEXT_ROW ADR_5(add, 10) ADR_NEXT_ROW ADR_5(add, 15) ADR_NEXT_ROW \
  ADR_5(add, 20)

/* int32: sums in memory go on in registers. */
#define ADR_WORDS_START "ldm lr, {r1-r8}\n" ADR_TAP("add", 0, 0)
#define ADR_WORDS_END "stm lr!, {r1-r8}\n"

/* int16: registers start as the first tap's products; each half is in the end added to its own int32. */
#define ADR_HALVES_START  \
  "ldr lr, [r0]\n"        \
  "ldm lr, {r1-r8}\n"
#define ADR_FOUR_HALVES(first, second)          \
  "ldm lr, {r9-r12}\n"                          \
  "sxtah r9, r9, " first "\n"                   \
  "sxtah r10, r10, " first ", ror #16\n"        \
  "sxtah r11, r11, " second "\n"                \
  "sxtah r12, r12, " second ", ror #16\n"       \
  "stm lr!, {r9-r12}\n"
#define ADR_HALVES_END \
  ADR_FOUR_HALVES("r1", "r2") ADR_FOUR_HALVES("r3", "r4") ADR_FOUR_HALVES("r5", "r6") ADR_FOUR_HALVES("r7", "r8")

/* void name(entries, sums, outputs, bytes between outputs, bytes between rows) */
#define ADR_GATHER(name, start, taps, end)                   \
  __asm__(                                                   \
      ".syntax unified\n"                                    \
      ".pushsection .text." #name ", \"ax\", %progbits\n"    \
      ".align 2\n"                                           \
      ".thumb_func\n"                                        \
      ".type " #name ", %function\n" #name ":\n"             \
      "push {r4-r11, lr}\n"                                  \
      "ldr r12, [sp, #36]\n"                                 \
      "sub sp, sp, #20\n"                                    \
      "strd r0, r1, [sp]\n"                                  \
      "strd r2, r3, [sp, #8]\n"                              \
      "str r12, [sp, #16]\n"                                 \
      "1:\n"                                                 \
      "ldrd r0, lr, [sp]\n" start taps                       \
      "ldr lr, [sp, #4]\n" end                               \
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

#define ADR_GATHERS(name, add, start, end)                \
  ADR_GATHER(name##_1x1, start, "", end);                 \
  ADR_GATHER(name##_1x3, start, ADR_FIRST_3(add), end);   \
  ADR_GATHER(name##_1x5, start, ADR_FIRST_5(add), end);   \
  ADR_GATHER(name##_3x3, start, ADR_3X3(add), end);       \
  ADR_GATHER(name##_5x5, start, ADR_5X5(add), end);       \
  static const adr_unrolled name[] = {{1, 1, name##_1x1}, \
                                      {1, 3, name##_1x3}, \
                                      {1, 5, name##_1x5}, \
                                      {3, 3, name##_3x3}, \
                                      {5, 5, name##_5x5}}

typedef struct {
  int32_t rows, columns;
  void (*gather)(const adr_entry *, int32_t *, int32_t, int32_t, int32_t);
} adr_unrolled;

ADR_GATHERS(adr_gather_words, "add", ADR_WORDS_START, ADR_WORDS_END);
ADR_GATHERS(adr_gather_halves, "sadd16", ADR_HALVES_START, ADR_HALVES_END);

static int run_unrolled(const adr_unrolled *kinds, const adr_gather_taps *taps, const adr_entry *entries, int32_t outputs,
                        int32_t *sums) {
  for (int32_t i = 0; i < 5 && taps->tap == 1; ++i) {
    if (kinds[i].rows == taps->rows && kinds[i].columns == taps->columns) {
      kinds[i].gather(entries, sums, outputs, 4 * taps->step, 4 * taps->row);
      return 1;
    }
  }
  return 0;
}

#endif

#if defined(ADR_INT8_NEON)

/* The sums of an output stay in two vectors while its taps are added up. */
#define ADR_ADD_TAPS(first, second, load, add)                                                                     \
  for (int32_t ky = 0, tap = 0; ky < taps->rows; ++ky) {                                                           \
    const adr_entry *at = entries + ky * taps->row;                                                                \
    for (int32_t kx = 0; kx < taps->columns; ++kx, ++tap, at += taps->tap) {                                       \
      const uint32_t *row = table + *at + ADR_ROW_WORDS * tap;                                                     \
      first = add(first, load(vld1q_u32(row)));                                                                    \
      second = add(second, load(vld1q_u32(row + 4)));                                                              \
    }                                                                                                              \
  }

void adr_gather_i8(const adr_gather_taps *taps, const uint32_t *table, const adr_entry *entries, int32_t outputs,
                   int32_t *sums) {
  for (int32_t output = 0; output < outputs; ++output, entries += taps->step, sums += 8) {
    int32x4_t first = vld1q_s32(sums), second = vld1q_s32(sums + 4);
    ADR_ADD_TAPS(first, second, vreinterpretq_s32_u32, vaddq_s32)
    vst1q_s32(sums, first);
    vst1q_s32(sums + 4, second);
  }
}

void adr_gather_small_i8(const adr_gather_taps *taps, const uint32_t *table, const adr_entry *entries, int32_t outputs,
                         int32_t *sums) {
  for (int32_t output = 0; output < outputs; ++output, entries += taps->step, sums += 16) {
    int16x8_t first = vdupq_n_s16(0), second = first;
    ADR_ADD_TAPS(first, second, vreinterpretq_s16_u32, vaddq_s16)
    vst1q_s32(sums, vaddw_s16(vld1q_s32(sums), vget_low_s16(first)));
    vst1q_s32(sums + 4, vaddw_high_s16(vld1q_s32(sums + 4), first));
    vst1q_s32(sums + 8, vaddw_s16(vld1q_s32(sums + 8), vget_low_s16(second)));
    vst1q_s32(sums + 12, vaddw_high_s16(vld1q_s32(sums + 12), second));
  }
}

#else

static const uint32_t *row_at(const uint32_t *table, adr_entry entry) {
#if defined(ADR_GATHER_LDM)
  (void)table;
  return entry;
#else
  return table + entry;
#endif
}

void adr_gather_i8(const adr_gather_taps *taps, const uint32_t *table, const adr_entry *entries, int32_t outputs,
                   int32_t *sums) {
#if defined(ADR_GATHER_LDM)
  if (run_unrolled(adr_gather_words, taps, entries, outputs, sums)) return;
#endif
  for (int32_t output = 0; output < outputs; ++output, entries += taps->step, sums += 8) {
    for (int32_t ky = 0; ky < taps->rows; ++ky) {
      for (int32_t kx = 0; kx < taps->columns; ++kx) {
        const uint32_t *row = row_at(table, entries[ky * taps->row + kx * taps->tap]);
        row += ADR_ROW_WORDS * (ky * taps->columns + kx);
        for (int32_t m = 0; m < 8; ++m) sums[m] += (int32_t)row[m];
      }
    }
  }
}

void adr_gather_small_i8(const adr_gather_taps *taps, const uint32_t *table, const adr_entry *entries, int32_t outputs,
                         int32_t *sums) {
#if defined(ADR_GATHER_LDM)
  if (run_unrolled(adr_gather_halves, taps, entries, outputs, sums)) return;
#endif
  for (int32_t output = 0; output < outputs; ++output, entries += taps->step, sums += 16) {
    for (int32_t ky = 0; ky < taps->rows; ++ky) {
      for (int32_t kx = 0; kx < taps->columns; ++kx) {
        const uint32_t *row = row_at(table, entries[ky * taps->row + kx * taps->tap]);
        row += ADR_ROW_WORDS * (ky * taps->columns + kx);
        for (int32_t m = 0; m < 8; ++m) {
          sums[2 * m] += (int16_t)row[m];
          sums[2 * m + 1] += (int16_t)(row[m] >> 16);
        }
      }
    }
  }
}

#endif
