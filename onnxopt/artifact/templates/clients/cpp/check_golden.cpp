// Repeat the golden cases and golden texts of an artifact with the C++ interface of ONNX Runtime, or give it texts.
//
//     check_golden [DIR [TEXT...]]    the artifact; ../.. when not given. A text with a tab in it is a pair.
//
// Exit code 0: every case is reproduced; 1: an output differs; 2: the artifact cannot be read or run.

#include <onnxruntime_cxx_api.h>
#ifdef WITH_TEXT
#include <tokenizers_cpp.h>

#include "text.hpp"
#endif

#include <algorithm>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
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

static Ort::Session opened(const Ort::Env& env, const std::string& folder) {
#ifdef _WIN32
  const std::wstring model = std::wstring(folder.begin(), folder.end()) + L"/model.onnx";
#else
  const std::string model = folder + "/model.onnx";
#endif
  return Ort::Session(env, model.c_str(), Ort::SessionOptions{});
}

// Inputs of a run: the bytes of each tensor, which must live as long as the run does.
struct Inputs {
  std::vector<std::vector<char>> bytes;
  std::vector<Ort::Value> values;
  std::vector<const char*> names;

  void add(const std::string& name, const std::string& dtype, std::vector<char> data, const std::vector<int64_t>& shape) {
    static const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    bytes.push_back(std::move(data));
    values.push_back(Ort::Value::CreateTensor(memory, bytes.back().data(), bytes.back().size(), shape.data(), shape.size(),
                                              kTypes.at(dtype).first));
    names.push_back(name.c_str());
  }

  std::vector<Ort::Value> run(Ort::Session& session, const std::vector<const char*>& outputs) const {
    return session.Run(Ort::RunOptions{nullptr}, names.data(), values.data(), values.size(), outputs.data(), outputs.size());
  }
};

// Compare one output; what differs in words, or nothing, and the worst error.
static std::string difference(const Entry& entry, const std::vector<char>& expected, const Ort::Value& found, double* worst) {
  const auto info = found.GetTensorTypeAndShapeInfo();
  if (info.GetShape() != entry.shape || info.GetElementType() != kTypes.at(entry.dtype).first) return " has another shape or type";
  const char* got = static_cast<const char*>(found.GetTensorRawData());
  for (size_t place = 0; place < info.GetElementCount(); ++place) {
    const double a = element(entry.dtype, expected.data(), place), b = element(entry.dtype, got, place);
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    const double error = std::fabs(a - b);
    if (!(error <= entry.limit)) {
      std::ostringstream said;
      said << " at " << place << " is " << b << ", expected " << a << " within " << entry.limit;
      return said.str();
    }
    *worst = std::max(*worst, error);
  }
  return "";
}

static int check_tensors(Ort::Session& session, const std::string& folder) {
  const auto cases = read_cases(folder + "/clients/cpp/golden.tsv");
  double worst = 0;
  size_t compared = 0;
  for (size_t number = 0; number < cases.size(); ++number) {
    Inputs inputs;
    std::vector<const char*> outputs;
    for (const auto& entry : cases[number].inputs) inputs.add(entry.name, entry.dtype, read_bytes(folder, entry), entry.shape);
    for (const auto& entry : cases[number].outputs) outputs.push_back(entry.name.c_str());
    const auto results = inputs.run(session, outputs);
    for (size_t i = 0; i < outputs.size(); ++i, ++compared) {
      const auto& entry = cases[number].outputs[i];
      const std::string said = difference(entry, read_bytes(folder, entry), results[i], &worst);
      if (!said.empty()) {
        std::cout << "differs: case " << number << ", output " << entry.name << said << "\n";
        return 1;
      }
    }
  }
  std::cout << "equal: " << cases.size() << " cases, " << compared << " outputs, worst absolute error " << worst << "\n";
  return 0;
}

#ifdef WITH_TEXT

static text::Tokenize open_tokenizer(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  const std::string json((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const std::shared_ptr<tokenizers::Tokenizer> tokenizer = tokenizers::Tokenizer::FromBlobJSON(json);
  return [tokenizer](const std::string& text) {
    const auto ids = tokenizer->Encode(text);  // without special tokens
    return text::Ids(ids.begin(), ids.end());
  };
}

static std::vector<char> as_bytes(const std::string& dtype, const text::Ids& values) {
  std::vector<char> bytes(values.size() * kTypes.at(dtype).second);
  for (size_t place = 0; place < values.size(); ++place) {
    const int32_t narrow = static_cast<int32_t>(values[place]);
    const float real = static_cast<float>(values[place]);
    if (dtype == "int64") std::memcpy(&bytes[place * 8], &values[place], 8);
    else if (dtype == "int32") std::memcpy(&bytes[place * 4], &narrow, 4);
    else if (dtype == "float32") std::memcpy(&bytes[place * 4], &real, 4);
    else if (dtype == "bool") bytes[place] = values[place] != 0;
    else throw std::runtime_error("an input of text is " + dtype);
  }
  return bytes;
}

static std::vector<double> answered(Ort::Session& session, const text::Model& model, const text::Row& row) {
  Inputs inputs;
  for (const auto& feed : model.feeds) inputs.add(feed.name, feed.dtype, as_bytes(feed.dtype, model.values(feed, row)), model.shape(feed, row));
  const auto results = inputs.run(session, {model.setting("output").c_str()});
  const auto info = results[0].GetTensorTypeAndShapeInfo();
  const auto shape = info.GetShape();
  const auto dtype = std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& type) { return type.second.first == info.GetElementType(); });
  if (dtype == kTypes.end()) throw std::runtime_error("the output has an unknown type");
  std::vector<double> first(info.GetElementCount() / static_cast<size_t>(shape.at(0)));
  for (size_t place = 0; place < first.size(); ++place)
    first[place] = element(dtype->first, static_cast<const char*>(results[0].GetTensorRawData()), place);
  return model.answer(row, first, static_cast<size_t>(shape.back()));
}

static std::string listed(const text::Ids& ids) {
  std::string whole;
  for (const auto id : ids) whole += (whole.empty() ? "" : ",") + std::to_string(id);
  return whole;
}

static int check_texts(Ort::Session& session, const text::Model& model, const text::Tokenize& tokenize) {
  for (size_t number = 0; number < model.cases.size(); ++number) {
    const auto& one = model.cases[number];
    const auto row = model.row(tokenize, one.text, one.second, one.bare);
    if (row.ids != one.ids) {
      std::cout << "differs: text " << number << ": the tokenizer gives [" << listed(row.ids) << "], expected [" << listed(one.ids) << "]\n";
      return 1;
    }
    if (model.setting("answer") == "ids") continue;
    const auto found = answered(session, model, row);
    for (size_t place = 0; place < one.expected.size(); ++place) {
      if (found.size() == one.expected.size() && std::fabs(found[place] - one.expected[place]) <= one.limit) continue;
      std::cout << "differs: text " << number << " at " << place << " is " << (place < found.size() ? found[place] : NAN)
                << ", expected " << one.expected[place] << " within " << one.limit << "\n";
      return 1;
    }
  }
  std::cout << "equal: " << model.cases.size() << " texts, " << model.setting("answer") << "\n";
  return 0;
}

static void show(Ort::Session& session, const text::Model& model, const text::Tokenize& tokenize, const std::string& given) {
  const size_t tab = given.find('\t');
  const std::string second = tab == std::string::npos ? "" : given.substr(tab + 1);
  const auto row = model.row(tokenize, given.substr(0, tab), second, false);
  if (model.setting("answer") == "ids") throw std::runtime_error("what the graph gives to text is not shown by this client");
  const auto found = answered(session, model, row);
  const bool tokens = model.setting("answer") == "token_scores";
  const size_t width = tokens ? found.size() / std::max<size_t>(1, row.ids.size()) : found.size();  // numbers per token, or of the text
  std::cout << given << "\n";
  for (size_t place = 0; place < found.size(); ++place) {
    const std::string token = tokens ? std::to_string(row.ids[place / width]) + " " : "";
    const std::string label = model.named() ? model.label(place % width) + " " : "";
    std::cout << "  " << token << label << found[place] << "\n";
  }
}

#endif

static int run(const std::string& folder, const std::vector<std::string>& texts) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "onnxopt");
  Ort::Session session = opened(env, folder);
#ifdef WITH_TEXT
  const std::string path = folder + "/clients/cpp/texts.tsv";
  if (!texts.empty() || std::ifstream(path)) {
    const text::Model model(path);
    const auto tokenize = open_tokenizer(folder + "/clients/cpp/tokenizer.json");
    for (const auto& text : texts) show(session, model, tokenize, text);
    if (!texts.empty()) return 0;
    const int code = check_tensors(session, folder);
    return code ? code : check_texts(session, model, tokenize);
  }
#else
  if (!texts.empty()) throw std::runtime_error("this was built without text (-DWITH_TEXT=OFF)");
#endif
  return check_tensors(session, folder);
}

int main(int count, char** arguments) {
  const std::vector<std::string> given(arguments + 1, arguments + count);
  try {
    return run(given.empty() ? "../.." : given[0], {given.begin() + (given.empty() ? 0 : 1), given.end()});
  } catch (const std::exception& error) {
    std::cerr << "unusable: " << error.what() << "\n";
    return 2;
  }
}
