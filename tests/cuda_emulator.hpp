// What generated CUDA C needs to run on a CPU, one block after the other. The threads of a block are fibers: each runs
// until its next barrier. The order in which they run is chosen, so that a missing barrier shows in the results.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short

struct dim3 { unsigned int x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

#define VECTOR(T, name)                                                                   \
  struct __align__(2 * sizeof(T)) name##2 { T x, y; };                                    \
  struct __align__(4 * sizeof(T)) name##4 { T x, y, z, w; };                              \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                       \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR(float, float)
VECTOR(int, int)
VECTOR(unsigned int, uint)

template <class T> static inline T max(T a, T b) { return a > b ? a : b; }
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }

template <class T> static inline T __ldg(const T* p) { return *p; }

static inline int atomicCAS(int* p, int expected, int desired) {
  int old = *p;
  if (old == expected) *p = desired;
  return old;
}
static inline int atomicMin(int* p, int v) {
  int old = *p;
  if (v < old) *p = v;
  return old;
}
static inline int atomicMax(int* p, int v) {
  int old = *p;
  if (v > old) *p = v;
  return old;
}
static inline int atomicAdd(int* p, int v) {
  int old = *p;
  *p = old + v;
  return old;
}
static inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
  unsigned long long old = *p;
  *p = old + v;
  return old;
}

namespace emulated {

constexpr int kStack = 1 << 16, kMostThreads = 1024;
constexpr int kWarp = 32;
enum State { kReady, kAtBarrier, kAtWarp, kEnded };

struct Fiber { ucontext_t context; State state; };
static Fiber fibers[kMostThreads];
static ucontext_t scheduler;
static char* stacks = nullptr;
static int current = 0;

static void wait(State at) {
  fibers[current].state = at;
  swapcontext(&fibers[current].context, &scheduler);
}

// A value of another lane of the warp, all of which must take part.
static char lanes[kMostThreads][8];
template <class T> static T from_lane(T value, int lane) {
  int first = current / kWarp * kWarp;
  memcpy(lanes[current], &value, sizeof(T));
  wait(kAtWarp);
  if (lane >= 0 && lane < kWarp) memcpy(&value, lanes[first + lane], sizeof(T));
  wait(kAtWarp);
  return value;
}

template <class F> struct Body { static F* body; };
template <class F> F* Body<F>::body = nullptr;
template <class F> static void enter() {
  (*Body<F>::body)();
  fibers[current].state = kEnded;
}

template <class F> static void run_block(F& body, int order) {
  int n = blockDim.x * blockDim.y * blockDim.z;
  if (n > kMostThreads) { fprintf(stderr, "%d threads in a block\n", n); abort(); }
  if (!stacks) stacks = static_cast<char*>(malloc(size_t(kStack) * kMostThreads));
  Body<F>::body = &body;
  for (int i = 0; i < n; ++i) {
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = stacks + size_t(i) * kStack;
    fibers[i].context.uc_stack.ss_size = kStack;
    fibers[i].context.uc_link = &scheduler;
    makecontext(&fibers[i].context, enter<F>, 0);
  }
  for (int i = 0; i < n; ++i) fibers[i].state = kReady;
  for (int phase = 0;; ++phase) {
    int ran = 0, ended = 0, waiting = 0;
    for (int k = 0; k < n; ++k) {
      // 0: ascending; 1: descending; 2: another rotation in each phase
      int i = order == 0 ? k : order == 1 ? n - 1 - k : (k + phase * 7) % n;
      if (fibers[i].state == kReady) {
        ++ran;
        current = i;
        threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        swapcontext(&scheduler, &fibers[i].context);
      }
      ended += fibers[i].state == kEnded;
      waiting += fibers[i].state == kAtBarrier;
    }
    if (ended == n) return;
    if (waiting == n)
      for (int i = 0; i < n; ++i) fibers[i].state = kReady;
    for (int first = 0; first < n; first += kWarp) {
      int end = first + kWarp < n ? first + kWarp : n, arrived = 0;
      for (int i = first; i < end; ++i) arrived += fibers[i].state == kAtWarp;
      for (int i = first; i < end && arrived == end - first; ++i) fibers[i].state = kReady;
    }
    if (!ran) {
      fprintf(stderr, "of %d threads %d ended and %d wait at a barrier\n", n, ended, waiting);
      abort();
    }
  }
}

template <class T> static T argument(const TVMFFIAny& a) {
  if constexpr (std::is_pointer_v<T>) return static_cast<T>(a.v_ptr);
  else if constexpr (std::is_floating_point_v<T>) return static_cast<T>(a.v_float64);
  else return static_cast<T>(a.v_int64);
}

template <class... P, size_t... I>
static int launch(void (*kernel)(P...), const TVMFFIAny* args, int count, const char* tags,
                  std::index_sequence<I...>) {
  auto values = std::make_tuple(argument<P>(args[I])...);
  gridDim = blockDim = {1, 1, 1};
  for (int i = sizeof...(P); i < count; ++i, tags += 2) {
    dim3& dims = tags[0] == 'b' ? gridDim : blockDim;
    (tags[1] == 'x' ? dims.x : tags[1] == 'y' ? dims.y : dims.z) = static_cast<unsigned>(args[i].v_int64);
  }
  auto body = [&] { std::apply(kernel, values); };
  const char* given = getenv("EMULATED_ORDER");
  int order = given ? atoi(given) : 0;
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = order == 1 ? dim3{gridDim.x - 1 - x, gridDim.y - 1 - y, gridDim.z - 1 - z} : dim3{x, y, z};
        run_block(body, order);
      }
  return 0;
}

template <class... P>
static int launch(void (*kernel)(P...), const TVMFFIAny* args, int count, const char* tags) {
  return launch(kernel, args, count, tags, std::index_sequence_for<P...>{});
}

}  // namespace emulated

#define __syncthreads() emulated::wait(emulated::kAtBarrier)
#define __activemask() 0xffffffffu
#define __shfl_down_sync(mask, value, delta, ...) emulated::from_lane(value, emulated::current % emulated::kWarp + (delta))
#define __shfl_sync(mask, value, lane, ...) emulated::from_lane(value, lane)
