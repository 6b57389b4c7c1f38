#include "adr_int8_pairs.h"
#include "adr_int8_rounding.h"

/* The taps of a window that lie inside, and the entry of x that its first tap would be, inside or not. */
typedef struct {
  int32_t top, bottom, left, right, origin;
} adr_taps;

/* Four channels at once: each tap is a word of x and a word of weights. */
static void four_channels(const adr_window *window, const adr_taps *taps, const int8_t *x, const int8_t *weight,
                          int32_t channel, int32_t sums[4]) {
  const int32_t C = window->channels, step = window->dilation_x * C;
  int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (int32_t ky = taps->top; ky < taps->bottom; ++ky) {
    const int8_t *at = x + (taps->origin + channel + ky * window->dilation_y * window->width * C + taps->left * step);
    const int8_t *w = weight + (ky * window->kernel_width + taps->left) * C + channel;
    for (int32_t kx = taps->left; kx < taps->right; ++kx, at += step, w += C) {
      const uint32_t four = adr_four(at), w_four = adr_four(w);
      const uint32_t even = adr_even(four), odd = adr_odd(four), w_even = adr_even(w_four), w_odd = adr_odd(w_four);
      s0 += (int16_t)even * (int16_t)w_even;
      s1 += (int16_t)odd * (int16_t)w_odd;
      s2 += (int16_t)(even >> 16) * (int16_t)(w_even >> 16);
      s3 += (int16_t)(odd >> 16) * (int16_t)(w_odd >> 16);
    }
  }
  sums[0] = s0;
  sums[1] = s1;
  sums[2] = s2;
  sums[3] = s3;
}

#if defined(ADR_INT8_NEON)

/* Eight channels at once. */
static void eight_channels(const adr_window *window, const adr_taps *taps, const int8_t *x, const int8_t *weight,
                           int32_t channel, int32_t sums[8]) {
  const int32_t C = window->channels, step = window->dilation_x * C;
  int32x4_t low = vdupq_n_s32(0), high = low;
  for (int32_t ky = taps->top; ky < taps->bottom; ++ky) {
    const int8_t *at = x + (taps->origin + channel + ky * window->dilation_y * window->width * C + taps->left * step);
    const int8_t *w = weight + (ky * window->kernel_width + taps->left) * C + channel;
    for (int32_t kx = taps->left; kx < taps->right; ++kx, at += step, w += C) {
      const int16x8_t products = vmull_s8(vld1_s8(at), vld1_s8(w));
      low = vaddw_s16(low, vget_low_s16(products));
      high = vaddw_high_s16(high, products);
    }
  }
  vst1q_s32(sums, low);
  vst1q_s32(sums + 4, high);
}

#endif

static int32_t one_channel(const adr_window *window, const adr_taps *taps, const int8_t *x, const int8_t *weight,
                           int32_t channel) {
  const int32_t C = window->channels;
  int32_t sum = 0;
  for (int32_t ky = taps->top; ky < taps->bottom; ++ky) {
    for (int32_t kx = taps->left; kx < taps->right; ++kx) {
      const int32_t at = (ky * window->dilation_y * window->width + kx * window->dilation_x) * C + channel;
      sum += x[taps->origin + at] * weight[(ky * window->kernel_width + kx) * C + channel];
    }
  }
  return sum;
}

void adr_depthwise_i8(const adr_int8_layer *p, const int8_t *x, const int8_t *weight, const int32_t *rescale, int8_t *y) {
  const adr_window *window = &p->window;
  const int32_t C = window->channels;
  for (int32_t oy = 0; oy < window->out_height; ++oy) {
    for (int32_t ox = 0; ox < window->out_width; ++ox, y += C) {
      const int32_t top = oy * window->stride_y - window->pad_top, left = ox * window->stride_x - window->pad_left;
      const adr_taps taps = {adr_first_tap(top, window->dilation_y),
                             adr_end_tap(top, window->dilation_y, window->kernel_height, window->height),
                             adr_first_tap(left, window->dilation_x),
                             adr_end_tap(left, window->dilation_x, window->kernel_width, window->width),
                             (top * window->width + left) * C};
      int32_t sums[8], c = 0;
#if defined(ADR_INT8_NEON)
      for (; c + 8 <= C; c += 8) {
        eight_channels(window, &taps, x, weight, c, sums);
        adr_finish_rows(p, rescale, c, 8, 1, sums, 8, 1, NULL, y);
      }
#endif
      for (; c + 4 <= C; c += 4) {
        four_channels(window, &taps, x, weight, c, sums);
        adr_finish_rows(p, rescale, c, 4, 1, sums, 4, 1, NULL, y);
      }
      for (; c < C; ++c) {
        sums[0] = one_channel(window, &taps, x, weight, c);
        adr_finish_rows(p, rescale, c, 1, 1, sums, 1, 1, NULL, y);
      }
    }
  }
}
