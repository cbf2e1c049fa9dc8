// The part of ONNX Runtime's C++ interface that the client uses, declared and not defined: enough to compile it, not to run it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
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

namespace Ort {
struct Env { Env(OrtLoggingLevel level, const char* logid); };
struct SessionOptions { SessionOptions(); };
struct RunOptions { explicit RunOptions(std::nullptr_t); };
struct MemoryInfo { static MemoryInfo CreateCpu(OrtAllocatorType type, OrtMemType kind); };
struct TensorTypeAndShapeInfo {
  std::vector<int64_t> GetShape() const;
  ONNXTensorElementDataType GetElementType() const;
  size_t GetElementCount() const;
};
struct Value {
  static Value CreateTensor(const MemoryInfo& info, void* data, size_t bytes, const int64_t* shape, size_t rank,
                            ONNXTensorElementDataType type);
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
  const void* GetTensorRawData() const;
  Value(Value&&) = default;
  Value(const Value&) = delete;
};
struct Session {
  Session(const Env& env, const char* path, const SessionOptions& options);
  std::vector<Value> Run(const RunOptions& options, const char* const* names, const Value* values, size_t count,
                         const char* const* outputs, size_t output_count);
};
}  // namespace Ort
