// Where transformers.js finds the graph of an artifact.

import { existsSync } from "node:fs";
import { join } from "node:path";

// the graph lies beside config.json; "fp32" is the file name without a suffix, whatever precision is inside
export function modelPlace(artifact) {
  return { subfolder: "", dtype: "fp32", use_external_data_format: existsSync(join(artifact, "model.onnx_data")) };
}
