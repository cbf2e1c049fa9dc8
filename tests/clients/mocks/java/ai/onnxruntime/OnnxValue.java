// The part of ONNX Runtime for Java that the client uses: enough to compile it, not to run it.
package ai.onnxruntime;

public interface OnnxValue extends AutoCloseable {
  @Override
  void close();
}
