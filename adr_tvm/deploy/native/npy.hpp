// NumPy's .npy files, little-endian and in C order: as much as run_model needs.
#ifndef ADR_NPY_HPP_
#define ADR_NPY_HPP_

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace npy {

struct Array {
  std::string type;  // NumPy's, such as <f4
  std::vector<int64_t> shape;
  std::vector<char> data;
};

inline Array read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[8] = {};
  if (!file.read(magic, 8) || std::string(magic, 6) != "\x93NUMPY") throw std::runtime_error(path + " is no .npy file");
  uint32_t length = 0;
  file.read(reinterpret_cast<char*>(&length), magic[6] == 1 ? 2 : 4);
  if (!file || length > 1 << 16) throw std::runtime_error(path + " is damaged");
  std::string header(length, ' ');
  file.read(header.data(), length);
  auto field = [&](const std::string& key) {
    size_t at = header.find("'" + key + "'");
    if (at == std::string::npos) throw std::runtime_error(path + " is damaged");
    return header.substr(header.find(':', at) + 1);
  };
  Array array;
  std::string type = field("descr"), order = field("fortran_order"), shape = field("shape");
  size_t quote = type.find('\'');
  array.type = type.substr(quote + 1, type.find('\'', quote + 1) - quote - 1);
  if (order.find("True") < order.find("False")) throw std::runtime_error(path + " is in Fortran order");
  int64_t size = 0;
  bool digits = false;
  for (size_t i = shape.find('(') + 1; i < shape.size(); ++i) {
    char c = shape[i];
    if (c >= '0' && c <= '9') {
      size = 10 * size + (c - '0');
      digits = true;
    } else if (c == ',' || c == ')') {
      if (digits) array.shape.push_back(size);
      size = 0;
      digits = false;
      if (c == ')') break;
    }
  }
  array.data.assign(std::istreambuf_iterator<char>(file), {});
  return array;
}

inline void write(const std::string& path, const Array& array) {
  std::string header = "{'descr': '" + array.type + "', 'fortran_order': False, 'shape': (";
  for (int64_t size : array.shape) header += std::to_string(size) + ", ";
  header += "), }";
  header.append(63 - (10 + header.size()) % 64, ' ');
  header += '\n';
  uint16_t length = static_cast<uint16_t>(header.size());
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8).write(reinterpret_cast<char*>(&length), 2);
  file.write(header.data(), length).write(array.data.data(), static_cast<std::streamsize>(array.data.size()));
  if (!file) throw std::runtime_error("cannot write " + path);
}

}  // namespace npy

#endif  // ADR_NPY_HPP_
