// Repeat the golden cases of an artifact with the C++ interface of ONNX Runtime.
//
//     check_golden [DIR]        the artifact; two folders above golden.tsv's when not given: ../..
//
// Exit code 0: every case is reproduced; 1: an output differs; 2: the artifact cannot be read or run.

#include <onnxruntime_cxx_api.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Entry {
  std::string name, dtype, file;
  std::vector<int64_t> shape;
  double limit = 0;
};

struct Case {
  std::vector<Entry> inputs, outputs;
};

static const std::map<std::string, std::pair<ONNXTensorElementDataType, size_t>> kTypes = {
    {"float32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4}},   {"float64", {ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8}},
    {"float16", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}}, {"int8", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1}},
    {"uint8", {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1}},     {"int16", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16, 2}},
    {"uint16", {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, 2}},   {"int32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4}},
    {"uint32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, 4}},   {"int64", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8}},
    {"uint64", {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64, 8}},   {"bool", {ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1}},
};

static std::vector<std::string> split(const std::string& text, char mark) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, mark);) parts.push_back(part);
  return parts;
}

static std::vector<Case> read_cases(const std::string& path) {
  std::ifstream stream(path);
  if (!stream) throw std::runtime_error(path + " cannot be read");
  std::vector<Case> cases;
  for (std::string line; std::getline(stream, line);) {
    const auto parts = split(line, '\t');
    if (parts.empty()) continue;
    if (parts[0] == "case") {
      cases.emplace_back();
      continue;
    }
    if (cases.empty() || parts.size() < 4) throw std::runtime_error(path + " is malformed: " + line);
    Entry entry{parts[1], parts[2], parts[3], {}, 0};
    if (parts.size() > 4)
      for (const auto& size : split(parts[4], ',')) entry.shape.push_back(std::stoll(size));
    if (parts[0] == "output") {
      entry.limit = std::stod(parts.at(5));
      cases.back().outputs.push_back(entry);
    } else {
      cases.back().inputs.push_back(entry);
    }
  }
  if (cases.empty()) throw std::runtime_error(path + " holds no cases");
  return cases;
}

static std::vector<char> read_bytes(const std::string& folder, const Entry& entry) {
  const std::string path = folder + "/golden/" + entry.file;
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  size_t count = 1;
  for (const auto size : entry.shape) count *= static_cast<size_t>(size);
  const auto type = kTypes.find(entry.dtype);
  if (type == kTypes.end()) throw std::runtime_error(entry.name + ": unknown type " + entry.dtype);
  if (bytes.size() != count * type->second.second) throw std::runtime_error(path + " has another size than its tensor");
  return bytes;
}

static double half(uint16_t bits) {
  const int exponent = (bits >> 10) & 0x1f, fraction = bits & 0x3ff;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 0x1f) return fraction ? NAN : sign * INFINITY;
  return exponent == 0 ? sign * std::ldexp(fraction, -24) : sign * std::ldexp(1024 + fraction, exponent - 25);
}

template <typename T>
static double at(const char* data, size_t index) {
  T value;
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return static_cast<double>(value);
}

static double element(const std::string& dtype, const char* data, size_t index) {
  if (dtype == "float32") return at<float>(data, index);
  if (dtype == "float64") return at<double>(data, index);
  if (dtype == "float16") return half(static_cast<uint16_t>(at<uint16_t>(data, index)));
  if (dtype == "int64") return at<int64_t>(data, index);
  if (dtype == "uint64") return at<uint64_t>(data, index);
  if (dtype == "int32") return at<int32_t>(data, index);
  if (dtype == "uint32") return at<uint32_t>(data, index);
  if (dtype == "int16") return at<int16_t>(data, index);
  if (dtype == "uint16") return at<uint16_t>(data, index);
  if (dtype == "int8") return at<int8_t>(data, index);
  return at<uint8_t>(data, index);
}

static int run(const std::string& folder, const std::string& index) {
  const auto cases = read_cases(index);
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "onnxopt");
  Ort::SessionOptions options;
#ifdef _WIN32
  const std::wstring model = std::wstring(folder.begin(), folder.end()) + L"/model.onnx";
#else
  const std::string model = folder + "/model.onnx";
#endif
  Ort::Session session(env, model.c_str(), options);
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  double worst = 0;
  size_t compared = 0;
  for (size_t number = 0; number < cases.size(); ++number) {
    const auto& one = cases[number];
    std::vector<std::vector<char>> bytes;
    std::vector<Ort::Value> inputs;
    std::vector<const char*> input_names, output_names;
    for (const auto& entry : one.inputs) bytes.push_back(read_bytes(folder, entry));
    for (size_t i = 0; i < one.inputs.size(); ++i) {
      const auto& entry = one.inputs[i];
      inputs.push_back(Ort::Value::CreateTensor(memory, bytes[i].data(), bytes[i].size(), entry.shape.data(),
                                                entry.shape.size(), kTypes.at(entry.dtype).first));
      input_names.push_back(entry.name.c_str());
    }
    for (const auto& entry : one.outputs) output_names.push_back(entry.name.c_str());
    const auto results = session.Run(Ort::RunOptions{nullptr}, input_names.data(), inputs.data(), inputs.size(),
                                     output_names.data(), output_names.size());
    for (size_t i = 0; i < one.outputs.size(); ++i) {
      const auto& entry = one.outputs[i];
      const auto expected = read_bytes(folder, entry);
      const auto info = results[i].GetTensorTypeAndShapeInfo();
      if (info.GetShape() != entry.shape || info.GetElementType() != kTypes.at(entry.dtype).first) {
        std::cout << "differs: case " << number << ", output " << entry.name << " has another shape or type\n";
        return 1;
      }
      const char* got = static_cast<const char*>(results[i].GetTensorRawData());
      for (size_t place = 0; place < info.GetElementCount(); ++place) {
        const double a = element(entry.dtype, expected.data(), place), b = element(entry.dtype, got, place);
        if (a == b || (std::isnan(a) && std::isnan(b))) continue;
        const double error = std::fabs(a - b);
        if (!(error <= entry.limit)) {
          std::cout << "differs: case " << number << ", output " << entry.name << " at " << place << " is " << b
                    << ", expected " << a << " within " << entry.limit << "\n";
          return 1;
        }
        worst = std::max(worst, error);
      }
      ++compared;
    }
  }
  std::cout << "equal: " << cases.size() << " cases, " << compared << " outputs, worst absolute error " << worst << "\n";
  return 0;
}

int main(int count, char** arguments) {
  const std::string folder = count > 1 ? arguments[1] : "../..";
  try {
    return run(folder, folder + "/clients/cpp/golden.tsv");
  } catch (const std::exception& error) {
    std::cerr << "unusable: " << error.what() << "\n";
    return 2;
  }
}
