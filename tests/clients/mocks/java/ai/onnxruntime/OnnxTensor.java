// The part of ONNX Runtime for Java that the client uses: enough to compile it, not to run it.
package ai.onnxruntime;

import java.nio.ByteBuffer;

public class OnnxTensor implements OnnxTensorLike {
  public static OnnxTensor createTensor(OrtEnvironment environment, ByteBuffer data, long[] shape, OnnxJavaType type)
      throws OrtException {
    throw new UnsupportedOperationException();
  }

  public TensorInfo getInfo() {
    throw new UnsupportedOperationException();
  }

  public ByteBuffer getByteBuffer() {
    throw new UnsupportedOperationException();
  }

  @Override
  public void close() {}
}
