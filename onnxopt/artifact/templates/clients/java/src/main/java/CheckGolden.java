import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
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
import java.util.function.Function;

/**
 * Repeat the golden cases and golden texts of an artifact in ONNX Runtime for Java, or give it texts.
 *
 * <p>{@code CheckGolden [DIR [TEXT...]]}: the artifact; {@code ../..} when not given. A text with a tab in it is a pair.
 * Exit code 0: every case is reproduced; 1: an output differs; 2: the artifact cannot be read or run.
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
      List<String> texts = Arrays.asList(arguments).subList(Math.min(1, arguments.length), arguments.length);
      System.exit(run(folder, texts));
    } catch (IOException | OrtException | RuntimeException error) {
      System.err.println("unusable: " + (error.getMessage() == null ? error : error.getMessage()));
      System.exit(2);
    }
  }

  private static int run(Path folder, List<String> texts) throws IOException, OrtException {
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    Path lines = folder.resolve("clients/java/texts.tsv");
    try (OrtSession session = environment.createSession(folder.resolve("model.onnx").toString())) {
      int code = texts.isEmpty() ? checkTensors(environment, session, folder) : 0;
      if (code != 0 || (texts.isEmpty() && !Files.exists(lines))) {
        return code;
      }
      if (!Files.exists(lines)) {
        throw new IOException("this client reads no text of the artifact; its README says why");
      }
      TextModel model = new TextModel(lines);
      Map<String, String> plain = Map.of("addSpecialTokens", "false", "padding", "false", "truncation", "false");
      try (HuggingFaceTokenizer tokenizer =
          HuggingFaceTokenizer.newInstance(folder.resolve("clients/java/tokenizer.json"), plain)) {
        Function<String, long[]> tokenize = text -> tokenizer.encode(text, false, false).getIds();
        for (String text : texts) {
          show(environment, session, model, tokenize, text);
        }
        return texts.isEmpty() ? checkTexts(environment, session, model, tokenize) : 0;
      }
    }
  }

  private static int checkTensors(OrtEnvironment environment, OrtSession session, Path folder)
      throws IOException, OrtException {
    List<Case> cases = readCases(folder.resolve("clients/java/golden.tsv"));
    double worst = 0;
    int compared = 0;
    for (int number = 0; number < cases.size(); number++) {
      Map<String, OnnxTensor> inputs = new HashMap<>();
      for (Entry entry : cases.get(number).inputs()) {
        inputs.put(entry.name(), OnnxTensor.createTensor(environment, read(folder, entry), entry.shape(), type(entry.dtype())));
      }
      try (OrtSession.Result results = session.run(inputs)) {
        for (Entry entry : cases.get(number).outputs()) {
          OnnxTensor found = (OnnxTensor) results.get(entry.name()).orElseThrow();
          if (!Arrays.equals(found.getInfo().getShape(), entry.shape()) || found.getInfo().type != type(entry.dtype())) {
            System.out.printf("differs: case %d, output %s has another shape or type%n", number, entry.name());
            return 1;
          }
          double error = worstError(entry, read(folder, entry), found.getByteBuffer().order(ByteOrder.nativeOrder()), number);
          if (error < 0) {
            return 1;
          }
          worst = Math.max(worst, error);
          compared++;
        }
      }
      inputs.values().forEach(OnnxTensor::close);
    }
    System.out.printf("equal: %d cases, %d outputs, worst absolute error %.2e%n", cases.size(), compared, worst);
    return 0;
  }

  /** The worst error of an output; below 0, and said, where one is beyond the limit. */
  private static double worstError(Entry entry, ByteBuffer expected, ByteBuffer got, int number) {
    double worst = 0;
    int count = expected.capacity() / width(entry.dtype());
    for (int place = 0; place < count; place++) {
      double a = element(entry.dtype(), expected, place);
      double b = element(entry.dtype(), got, place);
      if (a == b || (Double.isNaN(a) && Double.isNaN(b))) {
        continue;
      }
      if (!(Math.abs(a - b) <= entry.limit())) {
        System.out.printf(
            "differs: case %d, output %s at %d is %s, expected %s within %s%n", number, entry.name(), place, b, a, entry.limit());
        return -1;
      }
      worst = Math.max(worst, Math.abs(a - b));
    }
    return worst;
  }

  private static double[] answer(OrtEnvironment environment, OrtSession session, TextModel model, TextModel.Row row)
      throws OrtException {
    Map<String, OnnxTensor> inputs = new HashMap<>();
    for (TextModel.Feed feed : model.feeds) {
      ByteBuffer data = bytes(feed.dtype(), model.values(feed, row));
      inputs.put(feed.name(), OnnxTensor.createTensor(environment, data, model.shape(feed, row), type(feed.dtype())));
    }
    try (OrtSession.Result results = session.run(inputs)) {
      OnnxTensor found = (OnnxTensor) results.get(model.setting("output")).orElseThrow();
      long[] shape = found.getInfo().getShape();
      String dtype = nameOf(found.getInfo().type);
      ByteBuffer data = found.getByteBuffer().order(ByteOrder.nativeOrder());
      double[] first = new double[(int) (data.capacity() / width(dtype) / shape[0])];
      for (int place = 0; place < first.length; place++) {
        first[place] = element(dtype, data, place);
      }
      return model.answer(row, first, (int) shape[shape.length - 1]);
    } finally {
      inputs.values().forEach(OnnxTensor::close);
    }
  }

  private static int checkTexts(
      OrtEnvironment environment, OrtSession session, TextModel model, Function<String, long[]> tokenize)
      throws OrtException {
    for (int number = 0; number < model.cases.size(); number++) {
      TextModel.Case one = model.cases.get(number);
      TextModel.Row row = model.row(tokenize, one.text(), one.second(), one.bare());
      if (!Arrays.equals(row.ids(), one.ids())) {
        System.out.printf(
            "differs: text %d: the tokenizer gives %s, expected %s%n",
            number, Arrays.toString(row.ids()), Arrays.toString(one.ids()));
        return 1;
      }
      double[] found = model.setting("answer").equals("ids") ? new double[0] : answer(environment, session, model, row);
      boolean near = found.length == one.expected().length;
      for (int place = 0; near && place < found.length; place++) {
        near = Math.abs(found[place] - one.expected()[place]) <= one.limit();
      }
      if (!near) {
        System.out.printf(
            "differs: text %d gives %s, expected %s within %s%n",
            number, Arrays.toString(found), Arrays.toString(one.expected()), one.limit());
        return 1;
      }
    }
    System.out.printf("equal: %d texts, %s%n", model.cases.size(), model.setting("answer"));
    return 0;
  }

  private static void show(
      OrtEnvironment environment, OrtSession session, TextModel model, Function<String, long[]> tokenize, String given)
      throws OrtException {
    if (model.setting("answer").equals("ids")) {
      throw new IllegalArgumentException("what the graph gives to text is not shown by this client");
    }
    String[] parts = given.split("\t", 2);
    TextModel.Row row = model.row(tokenize, parts[0], parts.length > 1 ? parts[1] : "", false);
    double[] found = answer(environment, session, model, row);
    System.out.println(given);
    boolean tokens = model.setting("answer").equals("token_scores");
    int width = tokens ? found.length / Math.max(1, row.ids().length) : found.length; // numbers per token, or of the text
    for (int place = 0; place < found.length; place++) {
      String token = tokens ? row.ids()[place / width] + " " : "";
      String label = model.named() ? model.label(place % width) + " " : "";
      System.out.println("  " + token + label + found[place]);
    }
  }

  private static ByteBuffer bytes(String dtype, long[] values) {
    ByteBuffer buffer = ByteBuffer.allocateDirect(values.length * width(dtype)).order(ByteOrder.nativeOrder());
    for (long value : values) {
      switch (dtype) {
        case "int64" -> buffer.putLong(value);
        case "int32" -> buffer.putInt((int) value);
        case "float32" -> buffer.putFloat(value);
        case "bool" -> buffer.put((byte) value);
        default -> throw new IllegalArgumentException("an input of text is " + dtype);
      }
    }
    return buffer.rewind();
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

  private static OnnxJavaType type(String dtype) {
    OnnxJavaType type = TYPES.get(dtype);
    if (type == null) {
      throw new IllegalArgumentException("Java has no tensor of " + dtype);
    }
    return type;
  }

  private static String nameOf(OnnxJavaType type) {
    return TYPES.entrySet().stream()
        .filter(entry -> entry.getValue() == type)
        .map(Map.Entry::getKey)
        .findFirst()
        .orElseThrow(() -> new IllegalArgumentException("the output is of " + type + ", which is not read as numbers"));
  }

  private static int width(String dtype) {
    return switch (dtype) {
      case "float64", "int64" -> 8;
      case "float32", "int32" -> 4;
      case "float16", "int16" -> 2;
      default -> 1;
    };
  }

  private static ByteBuffer read(Path folder, Entry entry) throws IOException {
    byte[] bytes = Files.readAllBytes(folder.resolve("golden").resolve(entry.file()));
    long count = Arrays.stream(entry.shape()).reduce(1, (a, b) -> a * b);
    if (bytes.length != count * width(entry.dtype())) {
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
