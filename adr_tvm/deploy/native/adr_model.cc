// Implements adr_model.h over TVM's runtime; what adr_tvm/deploy/runtime.py does in Python.
#include "adr_model.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using tvm::ffi::Any;
using tvm::ffi::AnyView;
using tvm::ffi::Function;
using tvm::ffi::Module;
using tvm::ffi::Tensor;
namespace json = tvm::ffi::json;

constexpr size_t kAlignment = 64;  // compiled code assumes it of every tensor
constexpr size_t kMostShapes = 4;  // TVM keeps the memory of every size it ever gave out; after so many it is emptied

struct Failure : std::runtime_error {
  Failure(adr_status status, const std::string& what) : std::runtime_error(what), status(status) {}
  adr_status status;
};

thread_local std::string last_error;

struct TypeEntry {
  const char* name;
  DLDataTypeCode code;
  uint8_t bits;
};

// By adr_type.
constexpr TypeEntry kTypes[] = {{"float32", kDLFloat, 32}, {"float64", kDLFloat, 64}, {"int8", kDLInt, 8},
                                {"uint8", kDLUInt, 8},     {"int16", kDLInt, 16},     {"uint16", kDLUInt, 16},
                                {"int32", kDLInt, 32},     {"int64", kDLInt, 64},     {"bool", kDLBool, 8}};

struct Spec {
  std::string name;
  adr_type type;
  std::vector<int64_t> shape;        // ADR_ANY where free
  std::vector<std::string> symbols;  // the name of a free dimension, else empty
};

struct Allocator {
  void AllocData(DLTensor* t) {
    size_t bytes = tvm::ffi::GetDataSize(*t);
    t->data = aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
    if (t->data == nullptr) throw std::bad_alloc();
  }
  void FreeData(DLTensor* t) { free(t->data); }
};

// Memory of the caller, which outlives the call.
struct Borrowed {
  void* data;
  void AllocData(DLTensor* t) { t->data = data; }
  void FreeData(DLTensor*) {}
};

DLDataType TypeOf(adr_type type) { return DLDataType{uint8_t(kTypes[type].code), kTypes[type].bits, 1}; }

constexpr DLDevice kCpu{kDLCPU, 0};

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) throw Failure(ADR_ERROR_BUNDLE, "cannot read " + path);
  return text.str();
}

Tensor ReadWeights(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw Failure(ADR_ERROR_BUNDLE, "cannot read " + path);
  int64_t size = file.tellg();
  Tensor weights = Tensor::FromNDAlloc(Allocator(), tvm::ffi::Shape({size}), TypeOf(ADR_UINT8), kCpu);
  file.seekg(0);
  if (!file.read(static_cast<char*>(weights.data_ptr()), size)) {
    throw Failure(ADR_ERROR_BUNDLE, "cannot read " + path);
  }
  return weights;
}

std::vector<Spec> SpecsOf(const json::Object& manifest, const char* key) {
  std::vector<Spec> specs;
  for (const Any& each : manifest.at(tvm::ffi::String(key)).cast<json::Array>()) {
    json::Object entry = each.cast<json::Object>();
    Spec spec;
    spec.name = entry.at(tvm::ffi::String("name")).cast<tvm::ffi::String>();
    std::string type = entry.at(tvm::ffi::String("dtype")).cast<tvm::ffi::String>();
    size_t index = 0;
    while (index < std::size(kTypes) && type != kTypes[index].name) ++index;
    if (index == std::size(kTypes)) throw Failure(ADR_ERROR_BUNDLE, "tensor " + spec.name + " is of type " + type);
    spec.type = static_cast<adr_type>(index);
    for (const Any& dim : entry.at(tvm::ffi::String("shape")).cast<json::Array>()) {
      auto size = dim.try_cast<int64_t>();
      spec.shape.push_back(size ? *size : ADR_ANY);
      spec.symbols.push_back(size ? "" : std::string(dim.cast<tvm::ffi::String>()));
    }
    if (spec.shape.size() > ADR_MAX_RANK) throw Failure(ADR_ERROR_BUNDLE, "tensor " + spec.name + " has too many axes");
    specs.push_back(spec);
  }
  return specs;
}

// The processor's vector extensions as Linux names them, without separators; empty where it does not tell.
std::set<std::string> Extensions() {
#if defined(__aarch64__)
  const std::string key = "Features";
#else
  const std::string key = "flags";
#endif
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> found;
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) {
      std::string plain;
      for (char c : word) {
        if (std::isalnum(static_cast<unsigned char>(c))) plain += c;
      }
      found.insert(plain);
    }
    break;
  }
  return found;
}

void CheckProcessor(const json::Object& manifest) {
  std::set<std::string> have = Extensions();
  if (have.empty()) return;
  std::string cpu = manifest.at(tvm::ffi::String("cpu")).cast<tvm::ffi::String>();
  for (const Any& each : manifest.at(tvm::ffi::String("cpu_features")).cast<json::Array>()) {
    std::string name = each.cast<tvm::ffi::String>();
    if (!have.count(name)) {
      throw Failure(ADR_ERROR_BUNDLE, "compiled for " + cpu + ", which has " + name + "; this processor has not");
    }
  }
}

std::string Text(const int64_t* shape, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + (shape[i] == ADR_ANY ? "any" : std::to_string(shape[i]));
  return text + "]";
}

void CheckInput(const Spec& spec, const adr_tensor& given, std::map<std::string, int64_t>* symbols) {
  const std::string label = "input '" + spec.name + "'";
  size_t rank = spec.shape.size();
  if (given.data == nullptr) throw Failure(ADR_ERROR_ARGUMENT, label + " has no data");
  bool fits = given.rank == static_cast<int32_t>(rank);
  size_t bytes = kTypes[spec.type].bits / 8;
  for (size_t i = 0; fits && i < rank; ++i) {
    int64_t size = given.shape[i];
    fits = spec.shape[i] == ADR_ANY ? size >= 1 : size == spec.shape[i];
    if (fits && spec.shape[i] == ADR_ANY) fits = symbols->emplace(spec.symbols[i], size).first->second == size;
    if (fits && __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) fits = false;
  }
  if (!fits) {
    size_t shown = given.rank < 0 ? 0 : given.rank < ADR_MAX_RANK ? size_t(given.rank) : ADR_MAX_RANK;
    std::string found = Text(given.shape, shown), wanted = Text(spec.shape.data(), rank);
    throw Failure(ADR_ERROR_ARGUMENT, label + " has shape " + found + ", expected " + wanted);
  }
  if (given.bytes != bytes) {
    std::string sizes = std::to_string(given.bytes) + " bytes, expected " + std::to_string(bytes);
    throw Failure(ADR_ERROR_ARGUMENT, label + " has " + sizes + " of " + kTypes[spec.type].name);
  }
}

Tensor Feed(const Spec& spec, const adr_tensor& given) {
  tvm::ffi::ShapeView shape(given.shape, given.rank);
  if (reinterpret_cast<uintptr_t>(given.data) % kAlignment == 0) {
    return Tensor::FromNDAlloc(Borrowed{given.data}, shape, TypeOf(spec.type), kCpu);
  }
  Tensor copy = Tensor::FromNDAlloc(Allocator(), shape, TypeOf(spec.type), kCpu);
  std::memcpy(copy.data_ptr(), given.data, given.bytes);
  return copy;
}

// Copies a result out; `*allocated` tells whether memory was made for it.
void Return(const Spec& spec, const Tensor& result, adr_tensor* out, bool* allocated) {
  size_t bytes = result.numel() * (result.dtype().bits / 8), room = out->bytes;
  if (result.ndim() > ADR_MAX_RANK) throw Failure(ADR_ERROR_RUN, "output '" + spec.name + "' has too many axes");
  out->bytes = bytes;
  out->rank = result.ndim();
  for (int i = 0; i < result.ndim(); ++i) out->shape[i] = result.shape()[i];
  if (out->data == nullptr) {
    out->data = std::malloc(bytes ? bytes : 1);
    if (out->data == nullptr) throw std::bad_alloc();
    *allocated = true;
  } else if (room < bytes) {
    std::string sizes = std::to_string(bytes) + " bytes, there is room for " + std::to_string(room);
    throw Failure(ADR_ERROR_ARGUMENT, "output '" + spec.name + "' takes " + sizes);
  }
  std::memcpy(out->data, result.data_ptr(), bytes);
}

// Runs `body`; what it throws becomes a status and the thread's error.
template <typename F>
adr_status Guarded(adr_status otherwise, F body) {
  try {
    body();
    return ADR_OK;
  } catch (const Failure& failure) {
    last_error = failure.what();
    otherwise = failure.status;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown error";
  }
  for (char& c : last_error) c = c == '\n' || c == '\r' ? ' ' : c;
  return otherwise;
}

void Require(bool holds, const char* what) {
  if (!holds) throw Failure(ADR_ERROR_ARGUMENT, what);
}

bool loaded = false;
std::mutex loading;

}  // namespace

struct adr_model {
  std::vector<Spec> inputs, outputs;
  Tensor weights;
  Module library, machine;
  Function main, dense, release;
  std::set<std::vector<int64_t>> shapes;
  std::mutex running;

  adr_model(const std::string& folder, const json::Object& manifest)
      : inputs(SpecsOf(manifest, "inputs")),
        outputs(SpecsOf(manifest, "outputs")),
        weights(ReadWeights(folder + "/weights.bin")),
        library(Module::LoadFromFile(folder + "/lib/libmodel.so")),
        machine(library->GetFunction("vm_load_executable").value()().cast<Module>()) {
    machine->GetFunction("vm_initialization").value()(int(kDLCPU), 0, 2 /* pooled allocator */);
    main = machine->GetFunction("main").value();
    dense = machine->GetFunction("dense").value();
    release = Function::GetGlobalRequired("vm.builtin.memory_manager.clear");
  }

  void Run(const Function& entry, const adr_tensor* given, adr_tensor* out, std::vector<bool>* allocated) {
    std::map<std::string, int64_t> symbols;
    for (size_t i = 0; i < inputs.size(); ++i) CheckInput(inputs[i], given[i], &symbols);
    std::lock_guard<std::mutex> lock(running);
    std::vector<int64_t> sizes;
    for (const auto& [_, size] : symbols) sizes.push_back(size);
    shapes.insert(sizes);
    if (shapes.size() > kMostShapes) {
      release();
      shapes = {sizes};
    }
    std::vector<Tensor> tensors;
    for (size_t i = 0; i < inputs.size(); ++i) tensors.push_back(Feed(inputs[i], given[i]));
    tensors.push_back(weights);
    std::vector<AnyView> arguments(tensors.begin(), tensors.end());
    Any result;
    entry.CallPacked(arguments.data(), int32_t(arguments.size()), &result);
    std::vector<Tensor> found;
    if (auto one = result.try_cast<Tensor>()) {
      found.push_back(*one);
    } else {
      for (const Any& each : result.cast<tvm::ffi::Array<Any>>()) found.push_back(each.cast<Tensor>());
    }
    if (found.size() != outputs.size()) throw Failure(ADR_ERROR_RUN, "the library is not that of the manifest");
    for (size_t i = 0; i < found.size(); ++i) {
      bool made = false;
      Return(outputs[i], found[i], &out[i], &made);
      (*allocated)[i] = made;
    }
  }
};

namespace {

adr_status Describe(const std::vector<Spec>* specs, int32_t index, adr_tensor_info* info) {
  return Guarded(ADR_ERROR_ARGUMENT, [&] {
    Require(specs != nullptr && info != nullptr, "a null pointer was given");
    Require(index >= 0 && size_t(index) < specs->size(), "there is no input or output of that index");
    const Spec& spec = (*specs)[index];
    *info = {};
    info->name = spec.name.c_str();
    info->type = spec.type;
    info->rank = int32_t(spec.shape.size());
    for (size_t i = 0; i < spec.shape.size(); ++i) info->shape[i] = spec.shape[i];
  });
}

adr_status Run(adr_model* model, bool dense, const adr_tensor* inputs, int32_t input_count, adr_tensor* outputs,
               int32_t output_count) {
  std::vector<bool> allocated;
  adr_status status = Guarded(ADR_ERROR_RUN, [&] {
    Require(model != nullptr, "a null pointer was given");
    Require(input_count >= 0 && size_t(input_count) == model->inputs.size(), "the number of inputs is another");
    Require(output_count >= 0 && size_t(output_count) == model->outputs.size(), "the number of outputs is another");
    Require((inputs != nullptr || !input_count) && (outputs != nullptr || !output_count), "a null pointer was given");
    allocated.assign(output_count, false);
    model->Run(dense ? model->dense : model->main, inputs, outputs, &allocated);
  });
  for (size_t i = 0; status != ADR_OK && i < allocated.size(); ++i) {
    if (!allocated[i]) continue;
    std::free(outputs[i].data);
    outputs[i].data = nullptr;
  }
  return status;
}

}  // namespace

extern "C" {

adr_status adr_set_threads(int32_t threads) {
  return Guarded(ADR_ERROR_ARGUMENT, [&] {
    std::lock_guard<std::mutex> lock(loading);
    Require(threads >= 1 && threads <= 1024, "the number of threads is not 1 to 1024");
    Require(!loaded, "the number of threads is fixed once a model was loaded");
    setenv("TVM_NUM_THREADS", std::to_string(threads).c_str(), 1);
  });
}

adr_status adr_model_load(const char* folder, adr_model** model) {
  if (model != nullptr) *model = nullptr;
  return Guarded(ADR_ERROR_BUNDLE, [&] {
    Require(folder != nullptr && model != nullptr, "a null pointer was given");
    std::lock_guard<std::mutex> lock(loading);
    setenv("TVM_BIND_THREADS", "0", 0);  // else TVM pins threads to cores, counted from core 0 on
    std::string path = folder, where = path + "/bundle.json";
    tvm::ffi::String problem;
    Any content = json::Parse(ReadFile(where), &problem);
    auto manifest = content.try_cast<json::Object>();
    if (!problem.empty() || !manifest) throw Failure(ADR_ERROR_BUNDLE, where + " is damaged");
    CheckProcessor(*manifest);
    *model = new adr_model(path, *manifest);
    loaded = true;
  });
}

void adr_model_free(adr_model* model) { delete model; }

int32_t adr_model_input_count(const adr_model* model) { return model ? int32_t(model->inputs.size()) : 0; }

int32_t adr_model_output_count(const adr_model* model) { return model ? int32_t(model->outputs.size()) : 0; }

adr_status adr_model_input(const adr_model* model, int32_t index, adr_tensor_info* info) {
  return Describe(model ? &model->inputs : nullptr, index, info);
}

adr_status adr_model_output(const adr_model* model, int32_t index, adr_tensor_info* info) {
  return Describe(model ? &model->outputs : nullptr, index, info);
}

adr_status adr_model_run(adr_model* model, const adr_tensor* inputs, int32_t input_count, adr_tensor* outputs,
                         int32_t output_count) {
  return Run(model, false, inputs, input_count, outputs, output_count);
}

adr_status adr_model_run_dense(adr_model* model, const adr_tensor* inputs, int32_t input_count, adr_tensor* outputs,
                               int32_t output_count) {
  return Run(model, true, inputs, input_count, outputs, output_count);
}

size_t adr_type_bytes(adr_type type) {
  return type >= ADR_FLOAT32 && type <= ADR_BOOL ? kTypes[type].bits / 8 : 0;
}

const char* adr_last_error(void) { return last_error.c_str(); }

}  // extern "C"
