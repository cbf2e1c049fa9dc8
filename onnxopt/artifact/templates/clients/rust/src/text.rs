//! From text to what the graph gives, by `texts.tsv`: the row of tokens, the inputs of the graph, the answer. Pooling,
//! and layers and normalization behind it, lie in the graph and are not done again here.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

/// Ids of a text without special tokens around it.
pub type Tokenize<'a> = &'a dyn Fn(&str) -> Result<Vec<i64>, Box<dyn Error>>;

pub struct Row {
    pub ids: Vec<i64>,
    pub types: Vec<i64>,
}

pub struct Feed {
    pub name: String,
    pub meaning: String,
    pub dtype: String,
    pub axes: Vec<i64>,
}

pub struct Case {
    pub text: String,
    pub second: String,
    /// The text is tokenized as it is, without special tokens.
    pub bare: bool,
    pub ids: Vec<i64>,
    pub expected: Vec<f64>,
    pub limit: f64,
}

#[derive(Default)]
pub struct Model {
    pub feeds: Vec<Feed>,
    pub cases: Vec<Case>,
    labels: HashMap<usize, String>,
    settings: HashMap<String, String>,
    single: Vec<Vec<i64>>,
    pair: Vec<Vec<i64>>,
    second_type: i64,
}

fn unescaped(field: &str) -> String {
    let mut whole = String::new();
    let mut letters = field.chars();
    while let Some(letter) = letters.next() {
        whole.push(match letter {
            '\\' => match letters.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                other => other.unwrap_or('\\'),
            },
            plain => plain,
        });
    }
    whole
}

fn numbers<T: std::str::FromStr>(field: &str) -> Result<Vec<T>, T::Err> {
    field.split(',').filter(|part| !part.is_empty()).map(str::parse).collect()
}

/// How many tokens of two texts are kept where both may have so many: the longer one is cut first.
fn kept_sizes(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    let mut less = first.min(second);
    let mut more = if less > room { less } else { less.max(room - less) };
    if less + more > room {
        (less, more) = (room / 2, room / 2 + room % 2);
    }
    if first <= second { (less, more) } else { (more, less) }
}

fn typed(ids: Vec<i64>) -> Row {
    let types = vec![0; ids.len()];
    Row { ids, types }
}

impl Model {
    pub fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut model = Self::default();
        for line in std::fs::read_to_string(path)?.split('\n').filter(|line| !line.is_empty()) {
            let fields: Vec<String> = line.split('\t').map(unescaped).collect();
            model.take(&fields).map_err(|error| format!("texts.tsv is malformed ({error}): {line}"))?;
        }
        Ok(model)
    }

    fn take(&mut self, fields: &[String]) -> Result<(), Box<dyn Error>> {
        let at = |place: usize| fields.get(place).map(String::as_str).ok_or("a field is missing");
        match at(0)? {
            "set" => {
                self.settings.insert(at(1)?.into(), at(2)?.into());
            }
            "marks" if at(1)? == "single" => self.single = vec![numbers(at(2)?)?, numbers(at(3)?)?],
            "marks" => {
                self.pair = vec![numbers(at(2)?)?, numbers(at(3)?)?, numbers(at(4)?)?];
                self.second_type = at(5)?.parse()?;
            }
            "feed" => self.feeds.push(Feed {
                name: at(1)?.into(),
                meaning: at(2)?.into(),
                dtype: at(3)?.into(),
                axes: numbers(at(4)?)?,
            }),
            "label" => {
                self.labels.insert(at(1)?.parse()?, at(2)?.into());
            }
            kind @ ("text" | "bare") => self.cases.push(Case {
                text: at(1)?.into(),
                second: at(2)?.into(),
                bare: kind == "bare",
                ids: numbers(at(3)?)?,
                expected: numbers(at(4)?)?,
                limit: at(5)?.parse()?,
            }),
            other => return Err(format!("unknown line {other}").into()),
        }
        Ok(())
    }

    pub fn setting(&self, key: &str) -> &str {
        self.settings.get(key).map_or("", String::as_str)
    }

    /// The label of a number of an answer; one that the artifact does not name is called by its place.
    pub fn label(&self, place: usize) -> String {
        if !matches!(self.setting("answer"), "scores" | "token_scores") {
            return String::new();
        }
        self.labels.get(&place).cloned().unwrap_or_else(|| format!("LABEL_{place}"))
    }

    fn size(&self, key: &str) -> usize {
        self.setting(key).parse().unwrap_or(0)
    }

    pub fn row(&self, tokenize: Tokenize, text: &str, second: &str, bare: bool) -> Result<Row, Box<dyn Error>> {
        if bare {
            return Ok(typed(tokenize(text)?));
        }
        let [before, after] = self.single.as_slice() else {
            return Err("the tokenizer does more than put tokens around a text".into());
        };
        let limit = self.size("limit");
        let lowered = |text: String| if self.size("lowercase") == 1 { text.to_lowercase() } else { text };
        let mut first = tokenize(&lowered(format!("{}{text}", self.setting("prompt"))))?;
        if second.is_empty() {
            if limit > 0 {
                first.truncate(limit.saturating_sub(before.len() + after.len()));
            }
            return Ok(typed([before.as_slice(), first.as_slice(), after.as_slice()].concat()));
        }
        let [start, between, end] = self.pair.as_slice() else {
            return Err("the tokenizer reads no pairs".into());
        };
        let mut other = tokenize(&lowered(second.into()))?;
        let around = start.len() + between.len() + end.len();
        let room = if limit > 0 { limit.saturating_sub(around) } else { usize::MAX };
        let kept = kept_sizes(first.len(), other.len(), room);
        first.truncate(kept.0);
        other.truncate(kept.1);
        let mut row = typed([start.as_slice(), first.as_slice(), between.as_slice()].concat());
        row.ids.extend(other.iter().chain(end));
        row.types.resize(row.ids.len(), self.second_type);
        Ok(row)
    }

    /// Where the tokens of a row begin in what the graph takes, which may be longer.
    fn start(&self, row: &Row) -> usize {
        let left = self.setting("side") == "left";
        if left { self.size("width").saturating_sub(row.ids.len()) } else { 0 }
    }

    /// Shape and numbers of an input; an empty cache has no positions.
    pub fn input(&self, feed: &Feed, row: &Row) -> Result<(Vec<i64>, Vec<i64>), Box<dyn Error>> {
        if feed.meaning == "past" {
            let open = |(place, size): (usize, &i64)| if *size >= 0 { *size } else { i64::from(place == 0) };
            return Ok((feed.axes.iter().enumerate().map(open).collect(), Vec::new()));
        }
        let (begin, count) = (self.start(row), row.ids.len());
        let (width, rows) = (self.size("width").max(count), self.size("rows").max(1));
        let one = (0..width).map(|place| {
            let inside = (begin..begin + count).contains(&place);
            let at = place.saturating_sub(begin).min(count - 1);
            Ok(match feed.meaning.as_str() {
                "ids" => if inside { row.ids[at] } else { self.setting("pad_id").parse()? },
                "types" => if inside { row.types[at] } else { 0 },
                "mask" => i64::from(inside),
                "positions" => at as i64,
                _ => return Err(format!("input {} is not made from text", feed.name).into()),
            })
        });
        let one = one.collect::<Result<Vec<i64>, Box<dyn Error>>>()?;
        Ok((vec![rows as i64, width as i64], one.repeat(rows)))
    }

    /// What the numbers of an output are made into: `output` is its first row, its last axis has `last` entries.
    pub fn answer(&self, row: &Row, output: &[f64], last: usize) -> Vec<f64> {
        match self.setting("answer") {
            "embedding" => output.to_vec(),
            "scores" => self.scored(output),
            "next_token" => {
                let last_row = &output[output.len() - last..];
                let best = (1..last).fold(0, |best, place| if last_row[place] > last_row[best] { place } else { best });
                vec![best as f64]
            }
            _ => {
                let own = output.chunks(last).skip(self.start(row)).take(row.ids.len());
                own.flat_map(|logits| self.scored(logits)).collect()
            }
        }
    }

    fn scored(&self, logits: &[f64]) -> Vec<f64> {
        match self.setting("scores") {
            "sigmoid" => logits.iter().map(|value| 1.0 / (1.0 + (-value).exp())).collect(),
            "softmax" => {
                let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let powers: Vec<f64> = logits.iter().map(|value| (value - most).exp()).collect();
                let sum: f64 = powers.iter().sum();
                powers.into_iter().map(|value| value / sum).collect()
            }
            _ => logits.to_vec(),
        }
    }
}
