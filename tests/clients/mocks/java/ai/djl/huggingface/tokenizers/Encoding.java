// Stands in for DJL, which cannot be had here.
package ai.djl.huggingface.tokenizers;

public class Encoding {
  private final long[] ids;

  Encoding(long[] ids) {
    this.ids = ids;
  }

  public long[] getIds() {
    return ids;
  }
}
