// What generated CUDA C needs to run on a CPU, one block after the other. The threads of a block are fibers: each runs
// until its next barrier. The order in which they run is chosen, so that a missing barrier shows in the results.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <deque>
#include <tuple>
#include <utility>
#include <vector>

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

// 16-bit types: kept as bits, arithmetic in fp32.
static inline float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

struct half {
  uint16_t bits;
  half() = default;
  half(float f) {
    _Float16 h = static_cast<_Float16>(f);
    memcpy(&bits, &h, 2);
  }
  operator float() const {
    _Float16 h;
    memcpy(&h, &bits, 2);
    return static_cast<float>(h);
  }
};
struct nv_bfloat16 {
  uint16_t bits;
  nv_bfloat16() = default;
  nv_bfloat16(float f) {
    uint32_t b = as_bits(f);
    bits = f != f ? 0x7fff : uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
  operator float() const { return as_float(uint32_t(bits) << 16); }
};
typedef half __half;
typedef nv_bfloat16 __nv_bfloat16;
VECTOR(half, half)
#define nv_bfloat164 nv_bfloat16_4
#define nv_bfloat162 nv_bfloat16_2
#define make_nv_bfloat164 make_nv_bfloat16_4
VECTOR(nv_bfloat16, nv_bfloat16_)
static inline half __float2half_rn(float f) { return half(f); }
static inline nv_bfloat16 __float2bfloat16_rn(float f) { return nv_bfloat16(f); }

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

// Copies from global to shared memory that a thread has begun, in groups; the last group is still open.
struct Copy { uint* to; const void* from; int bytes; };
static std::deque<std::vector<Copy>> copies[kMostThreads];

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
    if (ended == n) {
      for (int i = 0; i < n; ++i) {
        for (auto& group : copies[i])
          if (!group.empty()) { fprintf(stderr, "thread %d ended before its copies\n", i); abort(); }
        copies[i].clear();
      }
      return;
    }
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

// On a stream other than the default a launch is recorded: there lies the address of a function that takes it.
extern "C" void* TVMFFIEnvGetStream(int32_t device_type, int32_t device);
template <class F> static bool recorded(F* kernel, const TVMFFIAny* args, int count) {
  void* stream = TVMFFIEnvGetStream(2, 0);
  if (stream) (*static_cast<void (**)(void*, const void*, int)>(stream))(reinterpret_cast<void*>(kernel), args, count);
  return stream != nullptr;
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

// What tensor cores do (schedules/cuda/warp_matrix.py): all lanes of a warp take part, fragments are those of the PTX
// manual. Copies are made as late as the waits allow, so that a wait that is missing shows.
namespace emulated {

struct Fragments { uint a[4], b[2]; };
static Fragments fragments[kMostThreads];
static const uint* matrix_rows[kMostThreads];

static float entry(uint word, int i, half) { half h; h.bits = word >> (16 * i); return h; }
static float entry(uint word, int i, nv_bfloat16) { nv_bfloat16 h; h.bits = word >> (16 * i); return h; }
static float entry(uint word, int, float) {
  if (word & 0x1fff) { fprintf(stderr, "a factor that is not rounded to tf32\n"); abort(); }
  return as_float(word);
}

template <class T> static void multiply(float* c, const uint* a, const uint* b) {
  constexpr int each = sizeof(T) == 4 ? 1 : 2;  // entries of a word
  int first = current / kWarp * kWarp, lane = current - first;
  memcpy(fragments[current].a, a, 16);
  memcpy(fragments[current].b, b, 8);
  wait(kAtWarp);
  for (int i = 0; i < 4; ++i) {
    int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int h = 0; h < 2; ++h)
      for (int q = 0; q < 4; ++q)
        for (int e = 0; e < each; ++e) {
          float x = entry(fragments[first + row % 8 * 4 + q].a[h * 2 + row / 8], e, T());
          c[i] = fmaf(x, entry(fragments[first + column * 4 + q].b[h], e, T()), c[i]);
        }
  }
  wait(kAtWarp);
}

}  // namespace emulated

static void adr_multiply_f16(float* c, const uint* a, const uint* b) { emulated::multiply<half>(c, a, b); }
static void adr_multiply_bf16(float* c, const uint* a, const uint* b) { emulated::multiply<nv_bfloat16>(c, a, b); }
static void adr_multiply_tf32(float* c, const uint* a, const uint* b) { emulated::multiply<float>(c, a, b); }
static void adr_load_matrices(uint* to, const uint* row) {
  using namespace emulated;
  int first = current / kWarp * kWarp, lane = current - first;
  if (reinterpret_cast<uintptr_t>(row) % 16) { fprintf(stderr, "a row of a matrix is not aligned\n"); abort(); }
  matrix_rows[current] = row;
  wait(kAtWarp);
  for (int m = 0; m < 4; ++m) to[m] = matrix_rows[first + m * 8 + lane / 4][lane % 4];
  wait(kAtWarp);
}
static bool through_registers() { return getenv("EMULATED_OLD_COPIES") != nullptr; }  // as before sm_80
static void adr_begin_copy(uint* kept, uint* to, const void* from, int bytes) {
  if ((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % 16) {
    fprintf(stderr, "a copy that is not aligned\n");
    abort();
  }
  if (through_registers()) {
    memset(kept, 0, 16);
    memcpy(kept, from, bytes);
    return;
  }
  auto& groups = emulated::copies[emulated::current];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, from, bytes});
}
static void adr_end_copy(const uint* kept, uint* to) {
  if (through_registers()) memcpy(to, kept, 16);
}
static void adr_commit_copies() {
  auto& groups = emulated::copies[emulated::current];
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}
static void wait_copies(size_t left) {
  auto& groups = emulated::copies[emulated::current];
  for (; groups.size() > left + 1; groups.pop_front())
    for (auto& copy : groups.front()) {
      memset(copy.to, 0, 16);
      memcpy(copy.to, copy.from, copy.bytes);
    }
}
static void adr_wait_copies_0() { wait_copies(0); }
static void adr_wait_copies_1() { wait_copies(1); }
static void adr_wait_copies_2() { wait_copies(2); }
static void adr_wait_copies_3() { wait_copies(3); }
static void adr_wait_copies_4() { wait_copies(4); }
static void adr_store_unit(uint* to, const void* from) { memcpy(to, from, 16); }
static uint adr_round_tf32(uint bits) {
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fffe000;
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}

#define __syncthreads() emulated::wait(emulated::kAtBarrier)
#define __activemask() 0xffffffffu
#define __shfl_down_sync(mask, value, delta, ...) emulated::from_lane(value, emulated::current % emulated::kWarp + (delta))
#define __shfl_sync(mask, value, lane, ...) emulated::from_lane(value, lane)
