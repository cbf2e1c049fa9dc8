// The part of ONNX Runtime for Java that the client uses: enough to compile it, not to run it.
package ai.onnxruntime;

import java.util.Map;
import java.util.Optional;

public class OrtSession implements AutoCloseable {
  public Result run(Map<String, ? extends OnnxTensorLike> inputs) throws OrtException {
    throw new UnsupportedOperationException();
  }

  @Override
  public void close() throws OrtException {}

  public static class Result implements AutoCloseable {
    public Optional<OnnxValue> get(String name) {
      throw new UnsupportedOperationException();
    }

    @Override
    public void close() {}
  }
}
