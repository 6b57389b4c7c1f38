/* Runs networks that adr-compile --emit bundle wrote. C99; link with libadr_model.so.
 *
 * Load a bundle once, run it often:
 *
 *     adr_model* model;
 *     if (adr_model_load("model-adr", &model) != ADR_OK) return fprintf(stderr, "%s\n", adr_last_error()), 1;
 *     float image[3 * 224 * 224] = {...}, scores[1000];
 *     adr_tensor x = {image, sizeof image, 4, {1, 3, 224, 224}};
 *     adr_tensor y = {scores, sizeof scores};
 *     if (adr_model_run(model, &x, 1, &y, 1) != ADR_OK) ...
 *     adr_model_free(model);
 *
 * Threads: calls on one model take turns; different models, also of one bundle, run side by side, each with worker
 * threads of its own for each thread that calls it. How many: adr_set_threads, else the environment's TVM_NUM_THREADS,
 * else all cores (on x86 half of the logical processors).
 *
 * A bundle holds machine code: load only what you would also execute.
 */
#ifndef ADR_MODEL_H_
#define ADR_MODEL_H_

#include <stddef.h>
#include <stdint.h>

#if defined(ADR_MODEL_BUILD)
#define ADR_API __attribute__((visibility("default")))
#else
#define ADR_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define ADR_MAX_RANK 8
#define ADR_ANY (-1) /* a dimension that takes any size from 1 on */

/* What a call returns. */
typedef enum {
  ADR_OK = 0,
  ADR_ERROR_ARGUMENT = 1, /* a null pointer, a count, an index, a shape, or too little memory */
  ADR_ERROR_BUNDLE = 2,   /* a file of the bundle is missing or damaged, or is for another processor */
  ADR_ERROR_RUN = 3       /* the network or the system failed */
} adr_status;

/* Type of a tensor's elements. */
typedef enum {
  ADR_FLOAT32 = 0,
  ADR_FLOAT64 = 1,
  ADR_INT8 = 2,
  ADR_UINT8 = 3,
  ADR_INT16 = 4,
  ADR_UINT16 = 5,
  ADR_INT32 = 6,
  ADR_INT64 = 7,
  ADR_BOOL = 8
} adr_type;

/* An input or output of a network. `name` is the ONNX model's, and lives as long as the model. */
typedef struct {
  const char* name;
  adr_type type;
  int32_t rank;
  int64_t shape[ADR_MAX_RANK]; /* ADR_ANY where the size is free */
} adr_tensor_info;

/* A dense tensor in row-major order.
 *
 * As an input: `data` with its size, rank and shape. It is read in place where it lies at a multiple of 64 bytes, else
 * copied. As an output: `data` with the size of that memory, or NULL: then memory is allocated, for the caller to
 * free(). Either way the call fills in rank, shape, and in `bytes` what the result takes. */
typedef struct {
  void* data;
  size_t bytes;
  int32_t rank;
  int64_t shape[ADR_MAX_RANK];
} adr_tensor;

typedef struct adr_model adr_model;

/* Number of threads that kernels use; before the first model is loaded. */
ADR_API adr_status adr_set_threads(int32_t threads);

/* Load a bundle's folder. On success `*model` is to be freed by adr_model_free; else it is NULL. */
ADR_API adr_status adr_model_load(const char* folder, adr_model** model);

/* Free a model; NULL is fine. */
ADR_API void adr_model_free(adr_model* model);

/* How many inputs and outputs a model has; 0 for NULL. */
ADR_API int32_t adr_model_input_count(const adr_model* model);
ADR_API int32_t adr_model_output_count(const adr_model* model);

/* Name, type and shape of the index-th input or output, from 0 on. */
ADR_API adr_status adr_model_input(const adr_model* model, int32_t index, adr_tensor_info* info);
ADR_API adr_status adr_model_output(const adr_model* model, int32_t index, adr_tensor_info* info);

/* Run the network, all inputs and outputs in its order; adr_model_run_dense: without reuse. After an error outputs that
 * were allocated are NULL again. */
ADR_API adr_status adr_model_run(adr_model* model, const adr_tensor* inputs, int32_t input_count, adr_tensor* outputs,
                                 int32_t output_count);
ADR_API adr_status adr_model_run_dense(adr_model* model, const adr_tensor* inputs, int32_t input_count,
                                       adr_tensor* outputs, int32_t output_count);

/* Bytes of an element. */
ADR_API size_t adr_type_bytes(adr_type type);

/* What went wrong in this thread's last call that failed, in one line; valid until its next call. Never NULL. */
ADR_API const char* adr_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* ADR_MODEL_H_ */
