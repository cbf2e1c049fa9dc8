// Stands in for ONNX Runtime for Java, which cannot be had here: the names and signatures that the client uses. The graph
// runs in the ONNX Runtime of Python, through a pipe (tests/clients/graph_in_pipe.py).
package ai.onnxruntime;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;

public class OrtSession implements AutoCloseable {
  private final Process process;
  private final DataOutputStream to;
  private final DataInputStream from;

  OrtSession(String path) throws OrtException {
    try {
      process =
          new ProcessBuilder(System.getenv("GRAPH_PYTHON"), System.getenv("GRAPH_IN_PIPE"), path)
              .redirectError(ProcessBuilder.Redirect.INHERIT)
              .start();
    } catch (IOException error) {
      throw new OrtException(error.getMessage());
    }
    to = new DataOutputStream(process.getOutputStream());
    from = new DataInputStream(process.getInputStream());
  }

  public Result run(Map<String, ? extends OnnxTensorLike> inputs) throws OrtException {
    try {
      to.writeInt(inputs.size());
      for (Map.Entry<String, ? extends OnnxTensorLike> input : inputs.entrySet()) {
        OnnxTensor tensor = (OnnxTensor) input.getValue();
        to.writeUTF(input.getKey());
        to.writeUTF(tensor.info.type.name());
        long[] shape = tensor.info.getShape();
        to.writeInt(shape.length);
        for (long size : shape) {
          to.writeLong(size);
        }
        to.writeInt(tensor.data.length);
        to.write(tensor.data);
      }
      to.flush();
      Map<String, OnnxValue> found = new HashMap<>();
      for (int left = from.readInt(); left > 0; left--) {
        String name = from.readUTF();
        OnnxJavaType type = OnnxJavaType.valueOf(from.readUTF());
        long[] shape = new long[from.readInt()];
        for (int axis = 0; axis < shape.length; axis++) {
          shape[axis] = from.readLong();
        }
        found.put(name, new OnnxTensor(from.readNBytes(from.readInt()), new TensorInfo(shape, type)));
      }
      return new Result(found);
    } catch (IOException error) {
      throw new OrtException("the pipe broke: " + error.getMessage());
    }
  }

  @Override
  public void close() throws OrtException {
    process.destroy();
  }

  public static class Result implements AutoCloseable {
    private final Map<String, OnnxValue> found;

    Result(Map<String, OnnxValue> found) {
      this.found = found;
    }

    public Optional<OnnxValue> get(String name) {
      return Optional.ofNullable(found.get(name));
    }

    @Override
    public void close() {}
  }
}
