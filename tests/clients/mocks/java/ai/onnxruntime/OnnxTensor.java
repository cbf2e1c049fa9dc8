// Stands in for ONNX Runtime for Java, which cannot be had here: the names and signatures that the client uses. The graph
// runs in the ONNX Runtime of Python, through a pipe (tests/clients/graph_in_pipe.py).
package ai.onnxruntime;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

public class OnnxTensor implements OnnxTensorLike {
  final byte[] data;
  final TensorInfo info;

  OnnxTensor(byte[] data, TensorInfo info) {
    this.data = data;
    this.info = info;
  }

  public static OnnxTensor createTensor(OrtEnvironment environment, ByteBuffer data, long[] shape, OnnxJavaType type)
      throws OrtException {
    byte[] copy = new byte[data.remaining()];
    data.duplicate().get(copy);
    return new OnnxTensor(copy, new TensorInfo(shape.clone(), type));
  }

  public TensorInfo getInfo() {
    return info;
  }

  public ByteBuffer getByteBuffer() {
    return ByteBuffer.wrap(data).order(ByteOrder.nativeOrder());
  }

  @Override
  public void close() {}
}
