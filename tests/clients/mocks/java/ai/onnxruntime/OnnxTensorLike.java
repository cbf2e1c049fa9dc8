// Stands in for ONNX Runtime for Java, which cannot be had here: the names that the client uses.
package ai.onnxruntime;

public interface OnnxTensorLike extends OnnxValue {}
