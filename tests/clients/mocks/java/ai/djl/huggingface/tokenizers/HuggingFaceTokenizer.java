// Stands in for DJL, which cannot be had here: the names and signatures that the client uses, and the ids that Python's
// `tokenizers`, the same library, gives to each text, in the file that TOKENIZED names.
package ai.djl.huggingface.tokenizers;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

public final class HuggingFaceTokenizer implements AutoCloseable {
  private final Map<String, long[]> ids = new HashMap<>();

  public static HuggingFaceTokenizer newInstance(Path path, Map<String, String> options) throws IOException {
    Files.readString(path);
    HuggingFaceTokenizer made = new HuggingFaceTokenizer();
    for (String line : Files.readString(Path.of(System.getenv("TOKENIZED"))).split("\n")) {
      String[] parts = line.split("\t", 2);
      made.ids.put(parts[1].replace("\\n", "\n"), Arrays.stream(parts[0].split(",")).mapToLong(Long::parseLong).toArray());
    }
    return made;
  }

  public Encoding encode(String text, boolean addSpecialTokens, boolean withOverflowingTokens) {
    if (addSpecialTokens || !ids.containsKey(text)) {
      throw new IllegalArgumentException("the test lists no ids of: " + text);
    }
    return new Encoding(ids.get(text));
  }

  @Override
  public void close() {}
}
