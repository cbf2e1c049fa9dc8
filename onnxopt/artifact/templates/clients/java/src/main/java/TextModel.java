import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.DoubleStream;
import java.util.stream.LongStream;

/**
 * From text to what the graph gives, by {@code texts.tsv}: the row of tokens, the inputs of the graph, the answer.
 *
 * <p>Pooling, and layers and normalization behind it, lie in the graph and are not done again here.
 */
final class TextModel {
  record Row(long[] ids, long[] types) {}

  record Feed(String name, String meaning, String dtype, long[] axes) {}

  /** A golden text; a bare one is tokenized as it is, without special tokens. */
  record Case(String text, String second, boolean bare, long[] ids, double[] expected, double limit) {}

  final List<Feed> feeds = new ArrayList<>();
  final List<Case> cases = new ArrayList<>();
  private final Map<Integer, String> labels = new HashMap<>();
  private final Map<String, String> settings = new HashMap<>();
  private long[][] single;
  private long[][] pair;
  private long secondType;

  TextModel(Path path) throws IOException {
    for (String line : Files.readString(path).split("\n")) {
      String[] fields = Arrays.stream(line.split("\t", -1)).map(TextModel::unescaped).toArray(String[]::new);
      switch (fields[0]) {
        case "set" -> settings.put(fields[1], fields[2]);
        case "marks" -> takeMarks(fields);
        case "feed" -> feeds.add(new Feed(fields[1], fields[2], fields[3], longs(fields[4])));
        case "label" -> labels.put(Integer.parseInt(fields[1]), fields[2]);
        case "text", "bare" ->
            cases.add(
                new Case(
                    fields[1], fields[2], fields[0].equals("bare"), longs(fields[3]), doubles(fields[4]),
                    Double.parseDouble(fields[5])));
        default -> throw new IllegalArgumentException(path + " is malformed: " + line);
      }
    }
  }

  private void takeMarks(String[] fields) {
    if (fields[1].equals("single")) {
      single = new long[][] {longs(fields[2]), longs(fields[3])};
    } else {
      pair = new long[][] {longs(fields[2]), longs(fields[3]), longs(fields[4])};
      secondType = Long.parseLong(fields[5]);
    }
  }

  String setting(String key) {
    return settings.get(key);
  }

  /** Whether the numbers of an answer have labels. */
  boolean named() {
    return setting("answer").equals("scores") || setting("answer").equals("token_scores");
  }

  /** A label; one that the artifact does not name is called by its place. */
  String label(int place) {
    return labels.getOrDefault(place, "LABEL_" + place);
  }

  private int size(String key) {
    return Integer.parseInt(settings.get(key));
  }

  /** The row of a text, or of two that are read together; {@code tokenize} gives ids without special tokens. */
  Row row(Function<String, long[]> tokenize, String text, String second, boolean bare) {
    if (bare) {
      return typed(tokenize.apply(text));
    }
    if (single == null) {
      throw new IllegalArgumentException("the tokenizer does more than put tokens around a text");
    }
    int limit = size("limit");
    long[] first = tokenize.apply(lowered(setting("prompt") + text));
    if (second.isEmpty()) {
      int room = Math.max(0, limit - single[0].length - single[1].length);
      return typed(joined(single[0], limit > 0 ? cut(first, room) : first, single[1]));
    }
    if (pair == null) {
      throw new IllegalArgumentException("the tokenizer reads no pairs");
    }
    long[] other = tokenize.apply(lowered(second));
    int room = limit > 0 ? Math.max(0, limit - joined(pair).length) : first.length + other.length;
    int[] kept = keptSizes(first.length, other.length, room);
    long[] head = joined(pair[0], cut(first, kept[0]), pair[1]);
    long[] ids = joined(head, cut(other, kept[1]), pair[2]);
    long[] types = new long[ids.length];
    Arrays.fill(types, head.length, ids.length, secondType);
    return new Row(ids, types);
  }

  /** How many tokens of two texts are kept where both may have so many: the longer one is cut first. */
  static int[] keptSizes(int first, int second, int room) {
    if (first + second <= room) {
      return new int[] {first, second};
    }
    int less = Math.min(first, second);
    int more = less > room ? less : Math.max(less, room - less);
    if (less + more > room) {
      less = room / 2;
      more = room / 2 + room % 2;
    }
    return first <= second ? new int[] {less, more} : new int[] {more, less};
  }

  /** Where the tokens of a row begin in what the graph takes, which may be longer. */
  private int start(Row row) {
    return size("width") > 0 && setting("side").equals("left") ? size("width") - row.ids().length : 0;
  }

  /** Shape of an input; an empty cache has no positions. */
  long[] shape(Feed feed, Row row) {
    if (!feed.meaning().equals("past")) {
      return new long[] {Math.max(1, size("rows")), Math.max(size("width"), row.ids().length)};
    }
    long[] shape = feed.axes().clone();
    for (int axis = 0; axis < shape.length; axis++) {
      shape[axis] = shape[axis] >= 0 ? shape[axis] : axis == 0 ? 1 : 0;
    }
    return shape;
  }

  /** Numbers of an input, all rows of the graph alike. */
  long[] values(Feed feed, Row row) {
    if (feed.meaning().equals("past")) {
      return new long[0];
    }
    int begin = start(row);
    int count = row.ids().length;
    long[] one = new long[Math.max(size("width"), count)];
    for (int place = 0; place < one.length; place++) {
      boolean inside = place >= begin && place < begin + count;
      int at = Math.min(Math.max(place - begin, 0), count - 1);
      one[place] =
          switch (feed.meaning()) {
            case "ids" -> inside ? row.ids()[at] : Long.parseLong(setting("pad_id"));
            case "types" -> inside ? row.types()[at] : 0;
            case "mask" -> inside ? 1 : 0;
            case "positions" -> at;
            default -> throw new IllegalArgumentException("input " + feed.name() + " is not made from text");
          };
    }
    long[][] rows = new long[Math.max(1, size("rows"))][];
    Arrays.fill(rows, one);
    return joined(rows);
  }

  /** What the numbers of an output are made into: {@code output} is its first row, its last axis has {@code last}. */
  double[] answer(Row row, double[] output, int last) {
    switch (setting("answer")) {
      case "embedding":
        return output;
      case "scores":
        return scored(output);
      case "next_token":
        int best = output.length - last;
        for (int place = best; place < output.length; place++) {
          best = output[place] > output[best] ? place : best;
        }
        return new double[] {best - (output.length - last)};
      default:
        DoubleStream all = DoubleStream.empty();
        for (int place = start(row); place < start(row) + row.ids().length; place++) {
          all = DoubleStream.concat(all, Arrays.stream(scored(Arrays.copyOfRange(output, place * last, (place + 1) * last))));
        }
        return all.toArray();
    }
  }

  private double[] scored(double[] logits) {
    switch (setting("scores")) {
      case "sigmoid":
        return Arrays.stream(logits).map(value -> 1 / (1 + Math.exp(-value))).toArray();
      case "softmax":
        double most = Arrays.stream(logits).max().orElse(0);
        double sum = Arrays.stream(logits).map(value -> Math.exp(value - most)).sum();
        return Arrays.stream(logits).map(value -> Math.exp(value - most) / sum).toArray();
      default:
        return logits;
    }
  }

  private String lowered(String text) {
    return size("lowercase") == 1 ? text.toLowerCase(java.util.Locale.ROOT) : text;
  }

  private static Row typed(long[] ids) {
    return new Row(ids, new long[ids.length]);
  }

  private static long[] cut(long[] ids, int count) {
    return Arrays.copyOf(ids, Math.min(ids.length, count));
  }

  private static long[] joined(long[]... parts) {
    return Arrays.stream(parts).flatMapToLong(LongStream::of).toArray();
  }

  private static String unescaped(String field) {
    StringBuilder whole = new StringBuilder();
    for (int place = 0; place < field.length(); place++) {
      char letter = field.charAt(place);
      if (letter == '\\' && place + 1 < field.length()) {
        char marked = field.charAt(++place);
        letter = marked == 't' ? '\t' : marked == 'n' ? '\n' : marked == 'r' ? '\r' : marked;
      }
      whole.append(letter);
    }
    return whole.toString();
  }

  private static long[] longs(String field) {
    return field.isEmpty() ? new long[0] : Arrays.stream(field.split(",")).mapToLong(Long::parseLong).toArray();
  }

  private static double[] doubles(String field) {
    return field.isEmpty() ? new double[0] : Arrays.stream(field.split(",")).mapToDouble(Double::parseDouble).toArray();
  }
}
