/* Counts the instructions of functions of a network in bare C, under an emulator whose clock is its instructions.
 *
 * The linker's --wrap sends each call of a counted function through __wrap_NAME, which notes the clock, runs the function
 * with the stack as it was, and notes the clock again when it returns. Clocks are those of board.h. */
#include "board.h"
#include "model.h"
#include "network.h"

#define DEPTH 8
#define CALLS 4096 /* of kernels, in the order that they were called in */

typedef struct {
  int32_t function;
  uint32_t back, start;
} frame;

static frame frames[DEPTH];
static int32_t depth, called;
static uint32_t totals[COUNTED][COUNTED + 1], counts_of[COUNTED]; /* by function and by what called it */
static struct {
  int32_t function;
  uint32_t ticks;
} calls[CALLS];

__attribute__((used, noinline)) static void enter(int32_t function, uint32_t back) {
  frame *const top = &frames[depth++];
  top->function = function;
  top->back = back;
  top->start = board_ticks();
}

__attribute__((used, noinline)) static uint32_t leave(void) {
  const uint32_t now = board_ticks();
  const frame *const top = &frames[--depth];
  const uint32_t ticks = now - top->start;
  totals[top->function][depth > 0 ? frames[depth - 1].function : COUNTED] += ticks;
  ++counts_of[top->function];
  if (depth == 0 && called < CALLS) {
    calls[called].function = top->function;
    calls[called++].ticks = ticks;
  }
  return top->back;
}

__asm__(
    ".syntax unified\n"
    ".text\n"
    ".align 2\n"
    "count_exit:\n"
    "push {r0, r1}\n"
    "bl leave\n"
    "mov lr, r0\n"
    "pop {r0, r1}\n"
    "bx lr\n");

#define WRAP(number, name)            \
  __asm__(                            \
      ".text\n"                       \
      ".global __wrap_" #name "\n"    \
      ".thumb_func\n"                 \
      ".type __wrap_" #name ", %function\n" \
      "__wrap_" #name ":\n"           \
      "push {r0-r3, r12, lr}\n"       \
      "mov r1, lr\n"                  \
      "movs r0, #" #number "\n"       \
      "bl enter\n"                    \
      "pop {r0-r3, r12, lr}\n"        \
      "adr.w lr, count_exit\n"        \
      "orr lr, lr, #1\n"              \
      "b.w __real_" #name "\n");

WRAPS

static unsigned char arena[MODEL_ARENA_BYTES] __attribute__((aligned(MODEL_ARENA_ALIGNMENT)));
static BUFFERS;
static int32_t counts[2 * MODEL_REUSE_LAYERS + 2];

static void print_number(uint32_t number) {
  char text[12] = {0};
  int at = 11;
  do {
    text[--at] = (char)('0' + number % 10u);
    number /= 10u;
  } while (number > 0u);
  board_print(" ");
  board_print(text + at);
}

int main(void) {
  const int32_t file = board_open("input.bin", 0);
  if (file < 0 || READ != 0) return 1;
  if (model_run(arena, sizeof arena, ARGUMENTS, counts) != MODEL_OK) return 1;
  for (int32_t i = 0; i < called; ++i) {
    board_print("call");
    print_number((uint32_t)calls[i].function);
    print_number(calls[i].ticks);
    board_print("\n");
  }
  for (uint32_t function = 0; function < COUNTED; ++function) {
    for (uint32_t caller = 0; caller <= COUNTED; ++caller) {
      if (totals[function][caller] == 0) continue;
      board_print("total");
      print_number(function);
      print_number(caller);
      print_number(totals[function][caller]);
      print_number(counts_of[function]);
      board_print("\n");
    }
  }
  for (int32_t layer = 0; layer < MODEL_REUSE_LAYERS; ++layer) {
    board_print("counts");
    print_number((uint32_t)counts[2 * layer]);
    print_number((uint32_t)counts[2 * layer + 1]);
    board_print("\n");
  }
  return 0;
}
