/* Uses every function of adr_model.h: bundle_api BUNDLE BROKEN INPUT COUNT OUTPUT, for the classifier of bundles.py.
 * INPUT is float32 [COUNT, 4, 8, 8]; OUTPUT gets float32 [COUNT, 5]. BROKEN is the bundle with some weights missing. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adr_model.h"

#define CHECK(condition) \
  if (!(condition)) return printf("line %d: %s (%s)\n", __LINE__, #condition, adr_last_error()), 1

static float *input, *expected;
static int64_t count;
static const char* folder;

static int fails(adr_status found, adr_status status, const char* words) {
  return found == status && strstr(adr_last_error(), words) != NULL && strchr(adr_last_error(), '\n') == NULL;
}

static int same_in_a_thread(void) {
  adr_model* model;
  int i;
  CHECK(adr_model_load(folder, &model) == ADR_OK);
  for (i = 0; i < 50; ++i) {
    adr_tensor x = {input, (size_t)count * 256 * sizeof(float), 4, {0, 4, 8, 8}}, y = {NULL, 0, 0, {0}};
    x.shape[0] = count;
    CHECK(adr_model_run(model, &x, 1, &y, 1) == ADR_OK);
    CHECK(memcmp(y.data, expected, y.bytes) == 0);
    free(y.data);
  }
  adr_model_free(model);
  return 0;
}

static void* thread(void* failed) {
  *(int*)failed = same_in_a_thread();
  return NULL;
}

static int test(char** argv) {
  adr_model *model = NULL, *none = (adr_model*)1;
  adr_tensor_info info;
  adr_tensor x = {NULL, 0, 4, {0, 4, 8, 8}}, y = {NULL, 0, 0, {0}}, small = {NULL, 4, 0, {0}};
  int failed[2] = {1, 1}, i;
  pthread_t threads[2];
  float* odd;

  CHECK(fails(adr_set_threads(0), ADR_ERROR_ARGUMENT, "threads"));
  CHECK(adr_set_threads(2) == ADR_OK);
  CHECK(fails(adr_model_load("/nowhere", &none), ADR_ERROR_BUNDLE, "/nowhere/bundle.json") && none == NULL);
  CHECK(fails(adr_model_load(NULL, &none), ADR_ERROR_ARGUMENT, "null"));
  CHECK(adr_model_load(folder, &model) == ADR_OK);
  CHECK(fails(adr_set_threads(1), ADR_ERROR_ARGUMENT, "fixed"));
  CHECK(adr_model_input_count(model) == 1 && adr_model_output_count(model) == 1 && adr_model_input_count(NULL) == 0);
  CHECK(adr_model_input(model, 0, &info) == ADR_OK);
  CHECK(strcmp(info.name, "x") == 0 && info.type == ADR_FLOAT32 && info.rank == 4);
  CHECK(info.shape[0] == ADR_ANY && info.shape[1] == 4 && info.shape[3] == 8);
  CHECK(adr_model_output(model, 0, &info) == ADR_OK && strcmp(info.name, "y") == 0 && info.shape[1] == 5);
  CHECK(fails(adr_model_output(model, 1, &info), ADR_ERROR_ARGUMENT, "index"));
  CHECK(adr_type_bytes(ADR_FLOAT32) == 4 && adr_type_bytes(ADR_INT64) == 8 && adr_type_bytes(ADR_BOOL) == 1);

  x.data = input;
  x.shape[0] = count;
  x.bytes = (size_t)count * 256 * sizeof(float);
  CHECK(adr_model_run_dense(model, &x, 1, &y, 1) == ADR_OK && y.rank == 2 && y.shape[0] == count && y.shape[1] == 5);
  free(y.data);
  y.data = expected;
  CHECK(adr_model_run(model, &x, 1, &y, 1) == ADR_OK && y.bytes == (size_t)count * 5 * sizeof(float));

  /* Input that is not aligned; one image at a time, and more sizes than are kept. */
  odd = malloc(x.bytes + 64);
  CHECK(odd != NULL);
  for (i = 1; i <= 6; ++i) {
    float scores[6 * 5];
    adr_tensor one = {odd + 1, 0, 4, {0, 4, 8, 8}}, result = {scores, sizeof scores, 0, {0}};
    int images = i < count ? i : (int)count;
    one.shape[0] = images;
    one.bytes = (size_t)images * 256 * sizeof(float);
    memcpy(odd + 1, input, one.bytes);
    CHECK(adr_model_run(model, &one, 1, &result, 1) == ADR_OK);
    CHECK(memcmp(scores, expected, result.bytes) == 0 && result.shape[0] == images);
  }
  free(odd);

  CHECK(fails(adr_model_run(model, &x, 2, &y, 1), ADR_ERROR_ARGUMENT, "inputs"));
  CHECK(fails(adr_model_run(model, &x, 1, &y, 0), ADR_ERROR_ARGUMENT, "outputs"));
  CHECK(fails(adr_model_run(model, NULL, 1, &y, 1), ADR_ERROR_ARGUMENT, "null"));
  x.shape[1] = 3;
  CHECK(fails(adr_model_run(model, &x, 1, &y, 1), ADR_ERROR_ARGUMENT, "expected [any, 4, 8, 8]"));
  x.shape[1] = 4;
  x.shape[0] = 0;
  CHECK(fails(adr_model_run(model, &x, 1, &y, 1), ADR_ERROR_ARGUMENT, "shape"));
  x.shape[0] = INT64_MAX / 2;
  CHECK(fails(adr_model_run(model, &x, 1, &y, 1), ADR_ERROR_ARGUMENT, "shape"));
  x.shape[0] = count;
  x.bytes -= 4;
  CHECK(fails(adr_model_run(model, &x, 1, &y, 1), ADR_ERROR_ARGUMENT, "bytes"));
  x.bytes += 4;
  small.data = &info;
  CHECK(fails(adr_model_run(model, &x, 1, &small, 1), ADR_ERROR_ARGUMENT, "there is room for 4"));
  CHECK(small.bytes == (size_t)count * 5 * sizeof(float));

  CHECK(adr_model_load(argv[2], &none) == ADR_OK);
  small.data = NULL;
  CHECK(adr_model_run(none, &x, 1, &small, 1) == ADR_ERROR_RUN && small.data == NULL && *adr_last_error() != '\0');
  adr_model_free(none);
  adr_model_free(NULL);

  for (i = 0; i < 2; ++i) CHECK(pthread_create(&threads[i], NULL, thread, &failed[i]) == 0);
  for (i = 0; i < 2; ++i) pthread_join(threads[i], NULL);
  CHECK(!failed[0] && !failed[1]);
  adr_model_free(model);
  return 0;
}

int main(int argc, char** argv) {
  size_t read, wrote;
  FILE* file;
  if (argc != 6) return 2;
  folder = argv[1];
  count = atoi(argv[4]);
  input = malloc((size_t)count * 256 * sizeof(float));
  expected = malloc((size_t)count * 5 * sizeof(float));
  file = fopen(argv[3], "rb");
  if (!input || !expected || !file) return 2;
  read = fread(input, 256 * sizeof(float), (size_t)count, file);
  fclose(file);
  if (read != (size_t)count || test(argv)) return 1;
  file = fopen(argv[5], "wb");
  if (!file) return 2;
  wrote = fwrite(expected, 5 * sizeof(float), (size_t)count, file);
  fclose(file);
  free(input);
  free(expected);
  return wrote == (size_t)count ? 0 : 1;
}
