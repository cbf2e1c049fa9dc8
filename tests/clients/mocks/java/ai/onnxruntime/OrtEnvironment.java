// The part of ONNX Runtime for Java that the client uses: enough to compile it, not to run it.
package ai.onnxruntime;

public final class OrtEnvironment {
  public static OrtEnvironment getEnvironment() {
    throw new UnsupportedOperationException();
  }

  public OrtSession createSession(String path) throws OrtException {
    throw new UnsupportedOperationException();
  }
}
