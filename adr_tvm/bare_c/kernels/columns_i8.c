#include <string.h>

#include "adr_int8_products.h"

/* A column that is written from its first entry to its last. Entries that do not fill a word wait in ``pending``. */
typedef struct {
  uint32_t *word;
  int8_t pending[4];
  int32_t waiting;
} adr_column;

static inline void put_word(adr_column *column, uint32_t four) {
  adr_put_four(column->word, four);
  column->word += ADR_STEP_WORDS;
}

static void put_entry(adr_column *column, int8_t value) {
  column->pending[column->waiting++] = value;
  if (column->waiting == 4) {
    put_word(column, adr_four(column->pending));
    column->waiting = 0;
  }
}

static void put(adr_column *column, const int8_t *values, int32_t count) {
  for (; count > 0 && column->waiting > 0; --count) put_entry(column, *values++);
#if defined(ADR_INT8_NEON)
  for (; count >= 16; count -= 16, values += 16, column->word += 4 * ADR_STEP_WORDS) {
    const uint32x4_t four = vreinterpretq_u32_s8(vld1q_s8(values));
    vst1q_lane_u32(column->word, four, 0);
    vst1q_lane_u32(column->word + ADR_STEP_WORDS, four, 1);
    vst1q_lane_u32(column->word + 2 * ADR_STEP_WORDS, four, 2);
    vst1q_lane_u32(column->word + 3 * ADR_STEP_WORDS, four, 3);
  }
#endif
  for (; count >= 4; count -= 4, values += 4) put_word(column, adr_four(values));
  for (; count > 0; --count) put_entry(column, *values++);
}

static void put_zeros(adr_column *column, int32_t count) {
  for (; count > 0 && column->waiting > 0; --count) put_entry(column, 0);
  for (; count >= 4; count -= 4) put_word(column, 0);
  for (; count > 0; --count) put_entry(column, 0);
}

static void fill_word(adr_column *column) {
  while (column->waiting > 0) put_entry(column, 0);
}

/* One pixel in vectors of ``length`` entries. */
static void put_vectors(adr_column *column, const int8_t *pixel, int32_t channels, int32_t length) {
  for (int32_t c = 0; c < channels; c += length) {
    put(column, pixel + c, channels - c < length ? channels - c : length);
    if (c + length > channels) put_zeros(column, c + length - channels);
    fill_word(column);
  }
}

/* A row of taps; ``row`` is the image's row, ``left`` the column of the first tap. */
static void put_taps(adr_column *column, const adr_window *window, int32_t length, const int8_t *row, int32_t left) {
  const int32_t C = window->channels, padded = length < C ? (C + length - 1) / length * ((length + 3) & ~3) : C;
  const int32_t whole = padded == C && window->dilation_x == 1;
  for (int32_t kx = 0; kx < window->kernel_width;) {
    const int32_t ix = left + kx * window->dilation_x;
    if (ix < 0 || ix >= window->width) {
      put_zeros(column, padded);
      ++kx;
    } else if (whole) {
      const int32_t taps = window->kernel_width - kx, inside = window->width - ix;
      const int32_t run = taps < inside ? taps : inside;
      put(column, row + ix * C, run * C);
      kx += run;
    } else {
      if (padded == C) put(column, row + ix * C, C);
      else put_vectors(column, row + ix * C, C, length);
      ++kx;
    }
  }
}

void adr_columns_i8(const adr_window *window, int32_t length, const int8_t *x, int32_t first, int32_t count,
                    uint32_t *columns) {
  const int32_t C = window->channels, padded = length < C ? (C + length - 1) / length * ((length + 3) & ~3) : C;
  for (int32_t c = 0; c < count; ++c) {
    const int32_t oy = (first + c) / window->out_width, ox = (first + c) % window->out_width;
    const int32_t top = oy * window->stride_y - window->pad_top, left = ox * window->stride_x - window->pad_left;
    adr_column column = {columns + c, {0}, 0};
    for (int32_t ky = 0; ky < window->kernel_height; ++ky) {
      const int32_t iy = top + ky * window->dilation_y;
      if (iy < 0 || iy >= window->height) put_zeros(&column, window->kernel_width * padded);
      else put_taps(&column, window, length, x + iy * window->width * C, left);
    }
    fill_word(&column);
  }
}
