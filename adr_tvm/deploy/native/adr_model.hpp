// C++17 over adr_model.h: the same in classes, with exceptions.
//
//     adr::Model model("model-adr");
//     std::vector<adr::Tensor> outputs = model.run({adr::Tensor::of<float>({1, 3, 224, 224}, pixels)});
//     const float* scores = outputs[0].as<float>();
#ifndef ADR_MODEL_HPP_
#define ADR_MODEL_HPP_

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "adr_model.h"

namespace adr {

/// A call failed; `status` says of what kind, `what()` why.
class Error : public std::runtime_error {
 public:
  explicit Error(adr_status kind) : std::runtime_error(adr_last_error()), status(kind) {}
  adr_status status;
};

/// A tensor that owns its memory.
class Tensor {
 public:
  /// Takes over memory that free() frees.
  explicit Tensor(const adr_tensor& raw)
      : shape(raw.shape, raw.shape + raw.rank), bytes(raw.bytes), data_(raw.data, std::free) {}

  /// A copy of `values`, as many as the shape says, at a multiple of 64 bytes: the network reads it in place.
  template <typename T>
  static Tensor of(const std::vector<int64_t>& shape, const T* values) {
    adr_tensor raw = {};
    raw.rank = static_cast<int32_t>(shape.size());
    if (raw.rank > ADR_MAX_RANK) throw std::length_error("a tensor has at most ADR_MAX_RANK dimensions");
    raw.bytes = sizeof(T);
    for (size_t i = 0; i < shape.size(); ++i) raw.bytes *= static_cast<size_t>(raw.shape[i] = shape[i]);
    raw.data = std::aligned_alloc(64, (raw.bytes + 63) / 64 * 64 + 64);
    if (raw.data == nullptr) throw std::bad_alloc();
    std::memcpy(raw.data, values, raw.bytes);
    return Tensor(raw);
  }

  /// The elements.
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

  /// For the C functions.
  adr_tensor raw() const {
    adr_tensor raw = {data_.get(), bytes, static_cast<int32_t>(shape.size()), {}};
    for (size_t i = 0; i < shape.size(); ++i) raw.shape[i] = shape[i];
    return raw;
  }

  std::vector<int64_t> shape;
  size_t bytes;

 private:
  std::shared_ptr<void> data_;
};

/// A loaded network; see adr_model.h for threads.
class Model {
 public:
  explicit Model(const std::string& folder) {
    adr_model* model = nullptr;
    check(adr_model_load(folder.c_str(), &model));
    model_.reset(model);
    for (int32_t i = 0; i < adr_model_input_count(model); ++i) check(adr_model_input(model, i, &inputs.emplace_back()));
    for (int32_t i = 0; i < adr_model_output_count(model); ++i)
      check(adr_model_output(model, i, &outputs.emplace_back()));
  }

  /// The outputs, in order. `dense`: without reuse.
  std::vector<Tensor> run(const std::vector<Tensor>& given, bool dense = false) {
    std::vector<adr_tensor> in, out(outputs.size());
    for (const Tensor& tensor : given) in.push_back(tensor.raw());
    auto* call = dense ? adr_model_run_dense : adr_model_run;
    check(call(model_.get(), in.data(), static_cast<int32_t>(in.size()), out.data(), static_cast<int32_t>(out.size())));
    return std::vector<Tensor>(out.begin(), out.end());
  }

  std::vector<adr_tensor_info> inputs, outputs;

 private:
  static void check(adr_status status) {
    if (status != ADR_OK) throw Error(status);
  }

  struct Free {
    void operator()(adr_model* model) const { adr_model_free(model); }
  };
  std::unique_ptr<adr_model, Free> model_;
};

}  // namespace adr

#endif  // ADR_MODEL_HPP_
