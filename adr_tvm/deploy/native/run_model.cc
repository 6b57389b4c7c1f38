// Runs a network on .npy files, one for each input, and prints the highest results and the time.
//
//     run_model BUNDLE INPUT.npy... [--dense] [--top N] [--labels FILE] [--repeat N] [--threads N] [--save PREFIX]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "adr_model.hpp"
#include "npy.hpp"

namespace {

const char* const kUsage =
    "usage: run_model BUNDLE INPUT.npy... [--dense] [--top N] [--labels FILE] [--repeat N] [--threads N] "
    "[--save PREFIX]\n"
    "  --dense         without reuse\n"
    "  --top N         highest values of an output to print (default: 5)\n"
    "  --labels FILE   names of the classes, one a line\n"
    "  --repeat N      runs to take the median time of (default: 10)\n"
    "  --threads N     that kernels use (default: TVM_NUM_THREADS, else all cores)\n"
    "  --save PREFIX   write outputs to PREFIX0.npy, PREFIX1.npy, ...\n";

// By adr_type.
const char* const kNpyTypes[] = {"<f4", "<f8", "|i1", "|u1", "<i2", "<u2", "<i4", "<i8", "|b1"};

struct Options {
  std::string bundle, labels, save;
  std::vector<std::string> inputs;
  bool dense = false;
  int top = 5, repeat = 10, threads = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    auto value = [&]() -> std::string {
      if (i + 1 >= argc) throw std::runtime_error(word + " needs a value");
      return argv[++i];
    };
    auto number = [&] {
      int found = std::atoi(value().c_str());
      if (found < 1) throw std::runtime_error(word + " needs a number from 1 on");
      return found;
    };
    if (word == "--dense") options.dense = true;
    else if (word == "--top") options.top = number();
    else if (word == "--repeat") options.repeat = number();
    else if (word == "--threads") options.threads = number();
    else if (word == "--labels") options.labels = value();
    else if (word == "--save") options.save = value();
    else if (word.rfind("--", 0) == 0) throw std::runtime_error(word + " is not known");
    else if (options.bundle.empty()) options.bundle = word;
    else options.inputs.push_back(word);
  }
  return options;
}

adr::Tensor load(const std::string& path, const adr_tensor_info& info) {
  npy::Array array = npy::read(path);
  if (array.type != kNpyTypes[info.type]) {
    throw std::runtime_error(path + " is " + array.type + ", input '" + info.name + "' is " + kNpyTypes[info.type]);
  }
  size_t bytes = adr_type_bytes(info.type);
  for (int64_t size : array.shape) bytes *= static_cast<size_t>(size);
  if (bytes != array.data.size()) throw std::runtime_error(path + " is damaged");
  bytes = adr_type_bytes(info.type);
  adr::Tensor tensor = adr::Tensor::of<char>({static_cast<int64_t>(array.data.size())}, array.data.data());
  tensor.shape = array.shape;
  return tensor;
}

std::vector<std::string> lines(const std::string& path) {
  std::vector<std::string> found;
  std::ifstream file(path);
  if (!file && !path.empty()) throw std::runtime_error("cannot read " + path);
  for (std::string line; std::getline(file, line);) found.push_back(line);
  return found;
}

// The first image's highest values.
void print_top(const adr::Tensor& tensor, const adr_tensor_info& info, int top, const std::vector<std::string>& names) {
  std::string shape;
  for (int64_t size : tensor.shape) shape += (shape.empty() ? "" : "x") + std::to_string(size);
  std::printf("%s [%s]\n", info.name, shape.c_str());
  size_t count = tensor.bytes / adr_type_bytes(info.type);
  if (tensor.shape.size() > 1) count /= static_cast<size_t>(std::max<int64_t>(1, tensor.shape[0]));
  if (info.type != ADR_FLOAT32 || count == 0) return;
  const float* values = tensor.as<float>();
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t(0));
  size_t shown = std::min(count, static_cast<size_t>(top));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shown), order.end(),
                    [&](size_t a, size_t b) { return values[a] > values[b]; });
  for (size_t i = 0; i < shown; ++i) {
    const char* name = order[i] < names.size() ? names[order[i]].c_str() : "";
    std::printf("%8zu  %-12g %s\n", order[i], static_cast<double>(values[order[i]]), name);
  }
}

int run(const Options& options) {
  if (options.threads > 0 && adr_set_threads(options.threads) != ADR_OK) throw adr::Error(ADR_ERROR_ARGUMENT);
  adr::Model model(options.bundle);
  if (options.inputs.size() != model.inputs.size()) {
    std::string wanted;
    for (const adr_tensor_info& info : model.inputs) wanted += std::string(" ") + info.name;
    throw std::runtime_error("the network takes " + std::to_string(model.inputs.size()) + " inputs:" + wanted);
  }
  std::vector<adr::Tensor> inputs;
  for (size_t i = 0; i < model.inputs.size(); ++i) inputs.push_back(load(options.inputs[i], model.inputs[i]));
  std::vector<std::string> names = lines(options.labels);
  std::vector<adr::Tensor> outputs = model.run(inputs, options.dense);
  std::vector<double> times;
  for (int i = 0; i < options.repeat; ++i) {
    auto start = std::chrono::steady_clock::now();
    outputs = model.run(inputs, options.dense);
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  for (size_t i = 0; i < outputs.size(); ++i) {
    print_top(outputs[i], model.outputs[i], options.top, names);
    if (options.save.empty()) continue;
    const char* data = outputs[i].as<char>();
    npy::write(options.save + std::to_string(i) + ".npy",
               {kNpyTypes[model.outputs[i].type], outputs[i].shape, std::vector<char>(data, data + outputs[i].bytes)});
  }
  std::printf("%.3f ms (median of %d runs)\n", times[times.size() / 2], options.repeat);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options = parse(argc, argv);
    if (options.bundle.empty()) return std::fputs(kUsage, stderr), 2;
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_model: error: %s\n", error.what());
    return 1;
  }
}
