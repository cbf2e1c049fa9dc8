// Stands in for ONNX Runtime for Java, which cannot be had here: the names and signatures that the client uses. The graph
// runs in the ONNX Runtime of Python, through a pipe (tests/clients/graph_in_pipe.py).
package ai.onnxruntime;

public class OrtException extends Exception {
  OrtException(String message) {
    super(message);
  }
}
