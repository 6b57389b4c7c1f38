// Runs one entry of a compiled network on an AArch64 machine or an emulator: run LIBRARY ENTRY TENSORS RESULTS
//
// TENSORS and RESULTS are files of tensors one after the other: int64 bytes per entry (4: float32, -4: int32, -8: int64),
// rank, dimensions; then the data. RESULTS gets the arguments, which the entry may have changed, then what it returned.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

using namespace tvm::ffi;

struct Allocator {
  void AllocData(DLTensor* t) { t->data = aligned_alloc(64, (GetDataSize(*t) + 63) / 64 * 64); }
  void FreeData(DLTensor* t) { free(t->data); }
};

static void Write(std::ofstream& out, const Tensor& t) {
  DLDataType type = t.dtype();
  int64_t kind = type.code == kDLFloat ? type.bits / 8 : -int64_t(type.bits / 8), rank = t.ndim();
  out.write(reinterpret_cast<char*>(&kind), 8).write(reinterpret_cast<char*>(&rank), 8);
  for (int64_t d : t.shape()) out.write(reinterpret_cast<char*>(&d), 8);
  out.write(static_cast<char*>(t.data_ptr()), t.numel() * (type.bits / 8));
}

static void WriteAll(std::ofstream& out, const Any& value) {
  if (auto tensor = value.try_cast<Tensor>()) {
    Write(out, *tensor);
  } else {
    for (const Any& field : value.cast<Array<Any>>()) WriteAll(out, field);
  }
}

int main(int argc, char** argv) {
  if (argc != 5) return std::fprintf(stderr, "usage: run LIBRARY ENTRY TENSORS RESULTS\n"), 2;
  Module library = Module::LoadFromFile(argv[1]);
  Module vm = library->GetFunction("vm_load_executable").value()().cast<Module>();
  vm->GetFunction("vm_initialization").value()(int(kDLCPU), 0, 2 /* pooled allocator */);
  Function entry = vm->GetFunction(argv[2]).value();
  std::ifstream in(argv[3], std::ios::binary);
  std::vector<Tensor> tensors;
  int64_t kind, rank;
  while (in.read(reinterpret_cast<char*>(&kind), 8)) {
    in.read(reinterpret_cast<char*>(&rank), 8);
    std::vector<int64_t> shape(rank);
    in.read(reinterpret_cast<char*>(shape.data()), 8 * rank);
    uint8_t code = kind == 4 ? kDLFloat : kDLInt;
    Tensor t = Tensor::FromNDAlloc(Allocator(), Shape(shape), DLDataType{code, uint8_t(8 * std::abs(kind)), 1},
                                   DLDevice{kDLCPU, 0});
    in.read(static_cast<char*>(t.data_ptr()), t.numel() * std::abs(kind));
    tensors.push_back(t);
  }
  std::vector<AnyView> arguments(tensors.begin(), tensors.end());
  Any result;
  entry.CallPacked(arguments.data(), int32_t(arguments.size()), &result);
  std::ofstream out(argv[4], std::ios::binary);
  for (const Tensor& t : tensors) Write(out, t);
  WriteAll(out, result);
  return 0;
}
