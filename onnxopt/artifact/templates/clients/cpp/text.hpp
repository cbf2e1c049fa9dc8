// From text to what the graph gives, by texts.tsv: the row of tokens, the inputs of the graph, the answer. Pooling, and
// layers and normalization behind it, lie in the graph and are not done again here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace text {

using Ids = std::vector<int64_t>;
// ids of a text without special tokens around it
using Tokenize = std::function<Ids(const std::string&)>;

struct Row {
  Ids ids, types;
};

struct Feed {
  std::string name, meaning, dtype;
  Ids axes;
};

struct Case {
  std::string text, second;
  bool bare;  // the text is tokenized as it is, without special tokens
  Ids ids;
  std::vector<double> expected;
  double limit;
};

inline std::string unescaped(const std::string& field) {
  static const std::map<char, char> letters = {{'t', '\t'}, {'n', '\n'}, {'r', '\r'}, {'\\', '\\'}};
  std::string whole;
  for (size_t place = 0; place < field.size(); ++place) {
    const bool mark = field[place] == '\\' && place + 1 < field.size();
    whole += mark ? letters.at(field[++place]) : field[place];
  }
  return whole;
}

inline std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> fields(1);
  for (const char letter : line) {
    if (letter == '\t')
      fields.emplace_back();
    else
      fields.back() += letter;
  }
  for (auto& field : fields) field = unescaped(field);
  return fields;
}

// A number of a list; std::stod would throw at one so small that a double holds it with fewer digits.
template <typename T>
T number_of(const std::string& part) {
  if constexpr (std::is_integral_v<T>) return static_cast<T>(std::stoll(part));
  char* end = nullptr;
  const double number = std::strtod(part.c_str(), &end);
  if (part.empty() || end != part.c_str() + part.size()) throw std::runtime_error("no number: " + part);
  return static_cast<T>(number);
}

template <typename T>
std::vector<T> numbers_of(const std::string& field) {
  std::vector<T> numbers;
  std::stringstream stream(field);
  for (std::string part; std::getline(stream, part, ',');) numbers.push_back(number_of<T>(part));
  return numbers;
}

// How many tokens of two texts are kept where both may have so many: the longer one is cut first.
inline std::pair<size_t, size_t> kept_sizes(size_t first, size_t second, size_t room) {
  if (first + second <= room) return {first, second};
  size_t less = std::min(first, second), more = std::max(first, second);
  more = less > room ? less : std::max(less, room - less);
  if (less + more > room) {
    less = room / 2;
    more = room / 2 + room % 2;
  }
  return first <= second ? std::make_pair(less, more) : std::make_pair(more, less);
}

class Model {
 public:
  std::vector<Feed> feeds;
  std::vector<Case> cases;

  explicit Model(const std::string& path) {
    std::ifstream stream(path);
    if (!stream) throw std::runtime_error("this client reads no text of the artifact; its README says why");
    for (std::string line; std::getline(stream, line);) take(fields_of(line), path);
  }

  const std::string& setting(const std::string& key) const { return settings_.at(key); }
  size_t size(const std::string& key) const { return std::stoul(setting(key)); }

  // Whether the numbers of an answer have labels; one that the artifact does not name is called by its place.
  bool named() const { return setting("answer") == "scores" || setting("answer") == "token_scores"; }
  std::string label(size_t place) const {
    const auto found = labels_.find(place);
    return found == labels_.end() ? "LABEL_" + std::to_string(place) : found->second;
  }

  Row row(const Tokenize& tokenize, const std::string& text, const std::string& second, bool bare) const {
    if (bare) return typed(tokenize(text));
    if (marks_.size() != 2) throw std::runtime_error("the tokenizer does more than put tokens around a text");
    const size_t limit = size("limit");
    Ids first = tokenize(lowered(setting("prompt") + text));
    if (second.empty()) {
      const size_t around = marks_[0].size() + marks_[1].size();
      if (limit) first.resize(std::min(first.size(), limit > around ? limit - around : 0));
      return typed(joined({marks_[0], first, marks_[1]}));
    }
    if (pair_.size() != 3) throw std::runtime_error("the tokenizer reads no pairs");
    Ids other = tokenize(lowered(second));
    const size_t around = pair_[0].size() + pair_[1].size() + pair_[2].size();
    const auto kept = limit ? kept_sizes(first.size(), other.size(), limit > around ? limit - around : 0) : std::make_pair(first.size(), other.size());
    first.resize(kept.first);
    other.resize(kept.second);
    Row made = typed(joined({pair_[0], first, pair_[1]}));
    const Ids tail = joined({other, pair_[2]});
    made.ids.insert(made.ids.end(), tail.begin(), tail.end());
    made.types.resize(made.ids.size(), second_type_);
    return made;
  }

  // Where the tokens of a row begin in what the graph takes, which may be longer.
  size_t start(const Row& row) const {
    const size_t width = size("width");
    return width && setting("side") == "left" ? width - row.ids.size() : 0;
  }

  // Shape of an input: an empty cache has no positions.
  Ids shape(const Feed& feed, const Row& row) const {
    if (feed.meaning != "past") return {static_cast<int64_t>(std::max<size_t>(1, size("rows"))), width(row)};
    Ids shape = feed.axes;
    for (size_t axis = 0; axis < shape.size(); ++axis)
      if (shape[axis] < 0) shape[axis] = axis == 0 ? 1 : 0;
    return shape;
  }

  // Numbers of an input, all rows of the graph alike.
  Ids values(const Feed& feed, const Row& row) const {
    if (feed.meaning == "past") return {};
    const size_t begin = start(row), count = row.ids.size();
    Ids made(static_cast<size_t>(width(row)), feed.meaning == "ids" ? std::stoll(setting("pad_id")) : 0);
    for (size_t place = 0; place < made.size(); ++place) {
      const bool inside = place >= begin && place < begin + count;
      const size_t at = place < begin ? 0 : std::min(place - begin, count - 1);
      if (feed.meaning == "positions") made[place] = static_cast<int64_t>(at);
      if (feed.meaning == "mask") made[place] = inside;
      if (inside && feed.meaning == "ids") made[place] = row.ids[at];
      if (inside && feed.meaning == "types") made[place] = row.types[at];
    }
    if (feed.meaning.empty()) throw std::runtime_error("input " + feed.name + " is not made from text");
    Ids all;
    for (size_t time = 0; time < std::max<size_t>(1, size("rows")); ++time) all.insert(all.end(), made.begin(), made.end());
    return all;
  }

  // What the numbers of an output are made into: `output` is its first row, its last axis has `last` entries.
  std::vector<double> answer(const Row& row, const std::vector<double>& output, size_t last) const {
    const std::string& kind = setting("answer");
    if (kind == "embedding") return output;
    if (kind == "scores") return scored(output);
    const auto vector_at = [&](size_t place) {
      return std::vector<double>(output.begin() + place * last, output.begin() + (place + 1) * last);
    };
    if (kind == "next_token") {
      const auto final = vector_at(output.size() / last - 1);
      return {static_cast<double>(std::max_element(final.begin(), final.end()) - final.begin())};
    }
    std::vector<double> all;
    for (size_t place = 0; place < row.ids.size(); ++place) {
      const auto scores = scored(vector_at(start(row) + place));
      all.insert(all.end(), scores.begin(), scores.end());
    }
    return all;
  }

 private:
  std::map<std::string, std::string> settings_;
  std::map<size_t, std::string> labels_;
  std::vector<Ids> marks_, pair_;
  int64_t second_type_ = 0;

  void take(const std::vector<std::string>& fields, const std::string& path) {
    const auto& kind = fields[0];
    if (kind == "set") settings_[fields.at(1)] = fields.at(2);
    else if (kind == "marks" && fields.at(1) == "single") marks_ = {numbers_of<int64_t>(fields.at(2)), numbers_of<int64_t>(fields.at(3))};
    else if (kind == "marks") take_pair(fields);
    else if (kind == "feed") feeds.push_back({fields.at(1), fields.at(2), fields.at(3), numbers_of<int64_t>(fields.at(4))});
    else if (kind == "label") labels_[std::stoul(fields.at(1))] = fields.at(2);
    else if (kind == "text" || kind == "bare")
      cases.push_back({fields.at(1), fields.at(2), kind == "bare", numbers_of<int64_t>(fields.at(3)),
                       numbers_of<double>(fields.at(4)), number_of<double>(fields.at(5))});
    else throw std::runtime_error(path + " is malformed: " + kind);
  }

  void take_pair(const std::vector<std::string>& fields) {
    for (size_t part = 2; part < 5; ++part) pair_.push_back(numbers_of<int64_t>(fields.at(part)));
    second_type_ = std::stoll(fields.at(5));
  }

  int64_t width(const Row& row) const { return static_cast<int64_t>(size("width") ? size("width") : row.ids.size()); }

  static Ids joined(const std::vector<Ids>& parts) {
    Ids whole;
    for (const auto& part : parts) whole.insert(whole.end(), part.begin(), part.end());
    return whole;
  }

  static Row typed(Ids ids) {
    Ids types(ids.size(), 0);
    return {std::move(ids), std::move(types)};
  }

  // Letters beyond ASCII are left as they are: a checkpoint that asks for this has a tokenizer that lowers them too.
  std::string lowered(std::string text) const {
    if (size("lowercase"))
      for (auto& letter : text)
        if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
    return text;
  }

  std::vector<double> scored(std::vector<double> logits) const {
    const std::string& how = setting("scores");
    if (how == "none") return logits;
    const double most = how == "softmax" ? *std::max_element(logits.begin(), logits.end()) : 0;
    double sum = 0;
    for (auto& value : logits) {
      value = how == "sigmoid" ? 1 / (1 + std::exp(-value)) : std::exp(value - most);
      sum += value;
    }
    if (how == "softmax")
      for (auto& value : logits) value /= sum;
    return logits;
  }
};

}  // namespace text
