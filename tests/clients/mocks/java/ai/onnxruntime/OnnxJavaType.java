// The part of ONNX Runtime for Java that the client uses: enough to compile it, not to run it.
package ai.onnxruntime;

public enum OnnxJavaType { FLOAT, DOUBLE, INT8, INT16, INT32, INT64, BOOL, STRING, UINT8, FLOAT16, BFLOAT16, UNKNOWN }
