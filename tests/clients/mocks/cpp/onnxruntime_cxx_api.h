// The part of ONNX Runtime's C++ interface that the client uses, over the table of functions that the library hands out.
//
// The real header comes with a release of ONNX Runtime and in no package of PyPI or npm. The names and signatures here are
// its own, so the client compiles as it would with it; the library that it is linked with is the real one. The places in
// the table are those of OrtApi, which is only ever added to (onnxruntime_c_api.h: "DO NOT MODIFY" what has shipped).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
};
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtDeviceAllocator = 0, OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

struct OrtApiBase {
  const void* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};
extern "C" const OrtApiBase* OrtGetApiBase();

namespace Ort {

namespace table {
enum Place {
  GetErrorMessage = 2, CreateEnv = 3, CreateSession = 7, Run = 9, CreateSessionOptions = 10,
  CreateTensorWithDataAsOrtValue = 49, GetTensorMutableData = 51, GetTensorElementType = 60, GetDimensionsCount = 61,
  GetDimensions = 62, GetTensorShapeElementCount = 64, GetTensorTypeAndShape = 65, CreateCpuMemoryInfo = 69,
  ReleaseEnv = 92, ReleaseStatus = 93, ReleaseMemoryInfo = 94, ReleaseSession = 95, ReleaseValue = 96,
  ReleaseTensorTypeAndShapeInfo = 99, ReleaseSessionOptions = 100,
};

inline void* at(Place place) {
  static const auto entries = static_cast<void* const*>(OrtGetApiBase()->GetApi(1));
  return entries[place];
}

template <typename... Given>
void call(Place place, Given... given) {
  void* status = reinterpret_cast<void* (*)(Given...)>(at(place))(given...);
  if (!status) return;
  const std::string said = reinterpret_cast<const char* (*)(const void*)>(at(GetErrorMessage))(status);
  reinterpret_cast<void (*)(void*)>(at(ReleaseStatus))(status);
  throw std::runtime_error(said);
}

using Owned = std::unique_ptr<void, void (*)(void*)>;
inline Owned own(void* held, Place release) { return Owned(held, reinterpret_cast<void (*)(void*)>(at(release))); }

template <typename... Given>
Owned made(Place place, Place release, Given... given) {
  void* held = nullptr;
  call(place, given..., &held);
  return own(held, release);
}
}  // namespace table

struct Env {
  table::Owned held;
  Env(OrtLoggingLevel level, const char* logid)
      : held(table::made(table::CreateEnv, table::ReleaseEnv, static_cast<int>(level), logid)) {}
};

struct SessionOptions {
  table::Owned held = table::made(table::CreateSessionOptions, table::ReleaseSessionOptions);
};

struct RunOptions {
  explicit RunOptions(std::nullptr_t) {}
};

struct MemoryInfo {
  table::Owned held;
  static MemoryInfo CreateCpu(OrtAllocatorType type, OrtMemType kind) {
    return {table::made(table::CreateCpuMemoryInfo, table::ReleaseMemoryInfo, static_cast<int>(type), static_cast<int>(kind))};
  }
};

struct TensorTypeAndShapeInfo {
  table::Owned held;
  std::vector<int64_t> GetShape() const {
    size_t rank = 0;
    table::call(table::GetDimensionsCount, held.get(), &rank);
    std::vector<int64_t> shape(rank);
    table::call(table::GetDimensions, held.get(), shape.data(), rank);
    return shape;
  }
  ONNXTensorElementDataType GetElementType() const {
    int type = 0;
    table::call(table::GetTensorElementType, held.get(), &type);
    return static_cast<ONNXTensorElementDataType>(type);
  }
  size_t GetElementCount() const {
    size_t count = 0;
    table::call(table::GetTensorShapeElementCount, held.get(), &count);
    return count;
  }
};

struct Value {
  table::Owned held;
  static Value CreateTensor(const MemoryInfo& info, void* data, size_t bytes, const int64_t* shape, size_t rank,
                            ONNXTensorElementDataType type) {
    return {table::made(table::CreateTensorWithDataAsOrtValue, table::ReleaseValue, info.held.get(), data, bytes, shape, rank,
                        static_cast<int>(type))};
  }
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const {
    return {table::made(table::GetTensorTypeAndShape, table::ReleaseTensorTypeAndShapeInfo, held.get())};
  }
  const void* GetTensorRawData() const {
    void* data = nullptr;
    table::call(table::GetTensorMutableData, held.get(), &data);
    return data;
  }
};

struct Session {
  table::Owned held;
  Session(const Env& env, const char* path, const SessionOptions& options)
      : held(table::made(table::CreateSession, table::ReleaseSession, env.held.get(), path, options.held.get())) {}
  std::vector<Value> Run(const RunOptions&, const char* const* names, const Value* values, size_t count,
                         const char* const* outputs, size_t output_count) {
    std::vector<const void*> given;
    for (size_t place = 0; place < count; ++place) given.push_back(values[place].held.get());
    std::vector<void*> found(output_count, nullptr);
    table::call(table::Run, held.get(), static_cast<const void*>(nullptr), names, given.data(), count, outputs, output_count,
                found.data());
    std::vector<Value> results;
    for (void* one : found) results.push_back({table::own(one, table::ReleaseValue)});
    return results;
  }
};

}  // namespace Ort
