// Stands in for mlc-ai/tokenizers-cpp, whose crates cannot be had here: its names and signatures, and the ids that Python's
// `tokenizers`, the same library, gives to each text. They are read from the file that TOKENIZED names: lines of ids,
// a tab and the text, in which a line break is written \n.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace tokenizers {

class Tokenizer {
 public:
  virtual ~Tokenizer() {}
  virtual std::vector<int32_t> Encode(const std::string& text) = 0;
  static std::unique_ptr<Tokenizer> FromBlobJSON(const std::string& json_blob);
};

class ListedTokenizer : public Tokenizer {
 public:
  std::map<std::string, std::vector<int32_t>> ids;
  std::vector<int32_t> Encode(const std::string& text) override {
    if (!ids.count(text)) throw std::runtime_error("the test lists no ids of: " + text);
    return ids.at(text);
  }
};

inline std::unique_ptr<Tokenizer> Tokenizer::FromBlobJSON(const std::string& json_blob) {
  if (json_blob.find('{') == std::string::npos) throw std::runtime_error("no JSON");
  auto made = std::make_unique<ListedTokenizer>();
  std::ifstream stream(std::getenv("TOKENIZED"));
  for (std::string line; std::getline(stream, line);) {
    const size_t tab = line.find('\t');
    std::string text = line.substr(tab + 1);
    for (size_t at; (at = text.find("\\n")) != std::string::npos;) text.replace(at, 2, "\n");
    std::stringstream numbers(line.substr(0, tab));
    std::vector<int32_t> ids;
    for (std::string one; std::getline(numbers, one, ',');) ids.push_back(std::stoi(one));
    made->ids[text] = ids;
  }
  return made;
}

}  // namespace tokenizers
