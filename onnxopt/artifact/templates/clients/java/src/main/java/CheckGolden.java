import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Repeat the golden cases of an artifact in ONNX Runtime for Java.
 *
 * <p>{@code CheckGolden [DIR]}: the artifact; {@code ../..} when not given. Exit code 0: every case is reproduced; 1: an
 * output differs; 2: the artifact cannot be read or run.
 */
public final class CheckGolden {
  private record Entry(String name, String dtype, String file, long[] shape, double limit) {}

  private record Case(List<Entry> inputs, List<Entry> outputs) {}

  private static final Map<String, OnnxJavaType> TYPES =
      Map.of(
          "float32", OnnxJavaType.FLOAT, "float64", OnnxJavaType.DOUBLE, "float16", OnnxJavaType.FLOAT16,
          "int8", OnnxJavaType.INT8, "uint8", OnnxJavaType.UINT8, "int16", OnnxJavaType.INT16,
          "int32", OnnxJavaType.INT32, "int64", OnnxJavaType.INT64, "bool", OnnxJavaType.BOOL);

  private CheckGolden() {}

  public static void main(String[] arguments) {
    Path folder = Path.of(arguments.length > 0 ? arguments[0] : "../..");
    try {
      System.exit(run(folder));
    } catch (IOException | OrtException | IllegalArgumentException error) {
      System.err.println("unusable: " + error.getMessage());
      System.exit(2);
    }
  }

  private static int run(Path folder) throws IOException, OrtException {
    List<Case> cases = readCases(folder.resolve("clients/java/golden.tsv"));
    double worst = 0;
    int compared = 0;
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OrtSession session = environment.createSession(folder.resolve("model.onnx").toString())) {
      for (int number = 0; number < cases.size(); number++) {
        Map<String, OnnxTensor> inputs = new HashMap<>();
        for (Entry entry : cases.get(number).inputs()) {
          inputs.put(entry.name(), OnnxTensor.createTensor(environment, read(folder, entry), entry.shape(), type(entry)));
        }
        try (OrtSession.Result results = session.run(inputs)) {
          for (Entry entry : cases.get(number).outputs()) {
            OnnxTensor found = (OnnxTensor) results.get(entry.name()).orElseThrow();
            if (!Arrays.equals(found.getInfo().getShape(), entry.shape()) || found.getInfo().type != type(entry)) {
              System.out.printf("differs: case %d, output %s has another shape or type%n", number, entry.name());
              return 1;
            }
            ByteBuffer expected = read(folder, entry);
            ByteBuffer got = found.getByteBuffer().order(ByteOrder.nativeOrder());
            int count = expected.capacity() / width(entry);
            for (int place = 0; place < count; place++) {
              double a = element(entry.dtype(), expected, place);
              double b = element(entry.dtype(), got, place);
              if (a == b || (Double.isNaN(a) && Double.isNaN(b))) {
                continue;
              }
              if (!(Math.abs(a - b) <= entry.limit())) {
                System.out.printf(
                    "differs: case %d, output %s at %d is %s, expected %s within %s%n",
                    number, entry.name(), place, b, a, entry.limit());
                return 1;
              }
              worst = Math.max(worst, Math.abs(a - b));
            }
            compared++;
          }
        }
        for (OnnxTensor tensor : inputs.values()) {
          tensor.close();
        }
      }
    }
    System.out.printf("equal: %d cases, %d outputs, worst absolute error %.2e%n", cases.size(), compared, worst);
    return 0;
  }

  private static List<Case> readCases(Path index) throws IOException {
    List<Case> cases = new ArrayList<>();
    for (String line : Files.readAllLines(index)) {
      String[] parts = line.split("\t", -1);
      if (parts[0].equals("case")) {
        cases.add(new Case(new ArrayList<>(), new ArrayList<>()));
        continue;
      }
      if (parts.length < 5 || cases.isEmpty()) {
        throw new IllegalArgumentException(index + " is malformed: " + line);
      }
      long[] shape =
          parts[4].isEmpty() ? new long[0] : Arrays.stream(parts[4].split(",")).mapToLong(Long::parseLong).toArray();
      boolean output = parts[0].equals("output");
      Entry entry = new Entry(parts[1], parts[2], parts[3], shape, output ? Double.parseDouble(parts[5]) : 0);
      Case last = cases.get(cases.size() - 1);
      (output ? last.outputs() : last.inputs()).add(entry);
    }
    if (cases.isEmpty()) {
      throw new IllegalArgumentException(index + " holds no cases");
    }
    return cases;
  }

  private static OnnxJavaType type(Entry entry) {
    OnnxJavaType type = TYPES.get(entry.dtype());
    if (type == null) {
      throw new IllegalArgumentException(entry.name() + ": Java has no tensor of " + entry.dtype());
    }
    return type;
  }

  private static int width(Entry entry) {
    return switch (entry.dtype()) {
      case "float64", "int64" -> 8;
      case "float32", "int32" -> 4;
      case "float16", "int16" -> 2;
      default -> 1;
    };
  }

  private static ByteBuffer read(Path folder, Entry entry) throws IOException {
    byte[] bytes = Files.readAllBytes(folder.resolve("golden").resolve(entry.file()));
    long count = Arrays.stream(entry.shape()).reduce(1, (a, b) -> a * b);
    if (bytes.length != count * width(entry)) {
      throw new IllegalArgumentException(entry.file() + " has another size than its tensor");
    }
    ByteBuffer buffer = ByteBuffer.allocateDirect(bytes.length).order(ByteOrder.LITTLE_ENDIAN);
    buffer.put(bytes).rewind();
    return buffer;
  }

  private static double element(String dtype, ByteBuffer data, int place) {
    return switch (dtype) {
      case "float32" -> data.getFloat(4 * place);
      case "float64" -> data.getDouble(8 * place);
      case "float16" -> half(data.getShort(2 * place));
      case "int64" -> data.getLong(8 * place);
      case "int32" -> data.getInt(4 * place);
      case "int16" -> data.getShort(2 * place);
      case "int8" -> data.get(place);
      default -> data.get(place) & 0xff;
    };
  }

  private static double half(short bits) {
    int exponent = (bits >> 10) & 0x1f;
    int fraction = bits & 0x3ff;
    double sign = bits < 0 ? -1 : 1;
    if (exponent == 0x1f) {
      return fraction == 0 ? sign * Double.POSITIVE_INFINITY : Double.NaN;
    }
    return exponent == 0 ? sign * Math.scalb((double) fraction, -24) : sign * Math.scalb(1024.0 + fraction, exponent - 25);
  }
}
