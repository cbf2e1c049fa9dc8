// Stands in for ONNX Runtime for Java, which cannot be had here: the names and signatures that the client uses. The graph
// runs in the ONNX Runtime of Python, through a pipe (tests/clients/graph_in_pipe.py).
package ai.onnxruntime;

public class TensorInfo {
  public final OnnxJavaType type;
  private final long[] shape;

  TensorInfo(long[] shape, OnnxJavaType type) {
    this.shape = shape;
    this.type = type;
  }

  public long[] getShape() {
    return shape.clone();
  }
}
