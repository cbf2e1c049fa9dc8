//! Repeat the golden cases and golden texts of an artifact with `ort`, ONNX Runtime for Rust, or give it texts.
//!
//!     cargo run --release [-- DIR [TEXT...]]    the artifact; ../.. when not given. A text with a tab in it is a pair.
//!
//! Exit code 0: every case is reproduced; 1: an output differs; 2: the artifact cannot be read or run.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod text;

use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor};
use tokenizers::Tokenizer;

struct Entry {
    name: String,
    dtype: String,
    file: String,
    shape: Vec<i64>,
    limit: f64,
}

#[derive(Default)]
struct Case {
    inputs: Vec<Entry>,
    outputs: Vec<Entry>,
}

fn read_cases(path: &Path) -> Result<Vec<Case>, Box<dyn Error>> {
    let mut cases: Vec<Case> = Vec::new();
    for line in std::fs::read_to_string(path)?.lines() {
        let parts: Vec<&str> = line.split('\t').collect();
        if parts[0] == "case" {
            cases.push(Case::default());
            continue;
        }
        let case = cases.last_mut().ok_or("golden.tsv does not begin with a case")?;
        if parts.len() < 5 {
            return Err(format!("golden.tsv is malformed: {line}").into());
        }
        let shape = parts[4].split(',').filter(|size| !size.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
        let entry = |limit| Entry { name: parts[1].into(), dtype: parts[2].into(), file: parts[3].into(), shape, limit };
        if parts[0] == "output" {
            let limit = parts.get(5).ok_or("an output has no limit")?.parse()?;
            case.outputs.push(entry(limit));
        } else {
            case.inputs.push(entry(0.0));
        }
    }
    if cases.is_empty() {
        return Err("golden.tsv holds no cases".into());
    }
    Ok(cases)
}

fn read_bytes(folder: &Path, entry: &Entry) -> Result<Vec<u8>, Box<dyn Error>> {
    let bytes = std::fs::read(folder.join("golden").join(&entry.file))?;
    let width = match entry.dtype.as_str() {
        "float64" | "int64" | "uint64" => 8,
        "float32" | "int32" | "uint32" => 4,
        "float16" | "int16" | "uint16" => 2,
        _ => 1,
    };
    if bytes.len() as i64 != entry.shape.iter().product::<i64>() * width {
        return Err(format!("{} has another size than its tensor", entry.file).into());
    }
    Ok(bytes)
}

macro_rules! numbers {
    ($bytes:expr, $kind:ty) => {
        $bytes.chunks_exact(std::mem::size_of::<$kind>()).map(|one| <$kind>::from_le_bytes(one.try_into().unwrap()))
    };
}

fn input(entry: &Entry, bytes: &[u8]) -> Result<DynValue, Box<dyn Error>> {
    let shape = entry.shape.clone();
    Ok(match entry.dtype.as_str() {
        "float32" => Tensor::from_array((shape, numbers!(bytes, f32).collect::<Vec<_>>()))?.into_dyn(),
        "float64" => Tensor::from_array((shape, numbers!(bytes, f64).collect::<Vec<_>>()))?.into_dyn(),
        "float16" => Tensor::from_array((shape, numbers!(bytes, half::f16).collect::<Vec<_>>()))?.into_dyn(),
        "int64" => Tensor::from_array((shape, numbers!(bytes, i64).collect::<Vec<_>>()))?.into_dyn(),
        "int32" => Tensor::from_array((shape, numbers!(bytes, i32).collect::<Vec<_>>()))?.into_dyn(),
        "bool" => Tensor::from_array((shape, bytes.iter().map(|one| *one != 0).collect::<Vec<_>>()))?.into_dyn(),
        other => return Err(format!("{}: this client has no tensor of {other}", entry.name).into()),
    })
}

fn expected(entry: &Entry, bytes: &[u8]) -> Result<Vec<f64>, Box<dyn Error>> {
    Ok(match entry.dtype.as_str() {
        "float32" => numbers!(bytes, f32).map(f64::from).collect(),
        "float64" => numbers!(bytes, f64).collect(),
        "float16" => numbers!(bytes, half::f16).map(f64::from).collect(),
        "int64" => numbers!(bytes, i64).map(|one| one as f64).collect(),
        "int32" => numbers!(bytes, i32).map(f64::from).collect(),
        "bool" => bytes.iter().map(|one| f64::from(*one)).collect(),
        other => return Err(format!("{}: this client has no tensor of {other}", entry.name).into()),
    })
}

fn found(dtype: &str, value: &DynValue) -> Result<(Vec<i64>, Vec<f64>), Box<dyn Error>> {
    macro_rules! extract {
        ($kind:ty, $turn:expr) => {{
            let (shape, data) = value.try_extract_tensor::<$kind>()?;
            (shape.to_vec(), data.iter().map($turn).collect())
        }};
    }
    Ok(match dtype {
        "float32" => extract!(f32, |one| f64::from(*one)),
        "float64" => extract!(f64, |one| *one),
        "float16" => extract!(half::f16, |one| f64::from(*one)),
        "int64" => extract!(i64, |one| *one as f64),
        "int32" => extract!(i32, |one| f64::from(*one)),
        _ => extract!(bool, |one| f64::from(u8::from(*one))),
    })
}

fn check_tensors(session: &mut Session, folder: &Path) -> Result<bool, Box<dyn Error>> {
    let cases = read_cases(&folder.join("clients/rust/golden.tsv"))?;
    let (mut worst, mut compared) = (0.0_f64, 0);
    for (number, case) in cases.iter().enumerate() {
        let mut inputs: Vec<(String, SessionInputValue)> = Vec::new();
        for entry in &case.inputs {
            inputs.push((entry.name.clone(), input(entry, &read_bytes(folder, entry)?)?.into()));
        }
        let results = session.run(inputs)?;
        for entry in &case.outputs {
            let (shape, got) = found(&entry.dtype, &results[entry.name.as_str()])?;
            if shape != entry.shape {
                println!("differs: case {number}, output {} has shape {shape:?}", entry.name);
                return Ok(false);
            }
            for (place, (a, b)) in expected(entry, &read_bytes(folder, entry)?)?.into_iter().zip(got).enumerate() {
                if a == b || (a.is_nan() && b.is_nan()) {
                    continue;
                }
                let error = (a - b).abs();
                if error.is_nan() || error > entry.limit {
                    let (name, limit) = (&entry.name, entry.limit);
                    println!("differs: case {number}, output {name} at {place} is {b}, expected {a} within {limit}");
                    return Ok(false);
                }
                worst = worst.max(error);
            }
            compared += 1;
        }
    }
    println!("equal: {} cases, {compared} outputs, worst absolute error {worst:.2e}", cases.len());
    Ok(true)
}

/// A session with what makes rows of text.
struct Reader {
    session: Session,
    model: text::Model,
    tokenizer: Tokenizer,
}

impl Reader {
    fn row(&self, text: &str, second: &str, bare: bool) -> Result<text::Row, Box<dyn Error>> {
        let tokenize = |text: &str| -> Result<Vec<i64>, Box<dyn Error>> {
            let found = self.tokenizer.encode(text, false).map_err(|error| error.to_string())?;
            Ok(found.get_ids().iter().map(|id| i64::from(*id)).collect())
        };
        self.model.row(&tokenize, text, second, bare)
    }

    fn answer(&mut self, row: &text::Row) -> Result<Vec<f64>, Box<dyn Error>> {
        let mut inputs: Vec<(String, SessionInputValue)> = Vec::new();
        for feed in &self.model.feeds {
            let (shape, values) = self.model.input(feed, row)?;
            inputs.push((feed.name.clone(), of_dtype(&feed.dtype, shape, values)?.into()));
        }
        let results = self.session.run(inputs)?;
        let value = &results[self.model.setting("output")];
        let (shape, numbers) = ["float32", "float16", "float64"]
            .iter()
            .find_map(|dtype| found(dtype, value).ok())
            .ok_or("the output is not of float32, float16 or float64")?;
        let last = *shape.last().ok_or("the output has no axis")? as usize;
        Ok(self.model.answer(row, &numbers[..numbers.len() / shape[0] as usize], last))
    }

    fn check(&mut self) -> Result<bool, Box<dyn Error>> {
        let cases = std::mem::take(&mut self.model.cases);
        for (number, case) in cases.iter().enumerate() {
            let row = self.row(&case.text, &case.second, case.bare)?;
            if row.ids != case.ids {
                println!("differs: text {number}: the tokenizer gives {:?}, expected {:?}", row.ids, case.ids);
                return Ok(false);
            }
            let found = if self.model.setting("answer") == "ids" { Vec::new() } else { self.answer(&row)? };
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= case.limit;
            if found.len() != case.expected.len() || !found.iter().zip(&case.expected).all(near) {
                println!("differs: text {number} gives {found:?}, expected {:?} within {}", case.expected, case.limit);
                return Ok(false);
            }
        }
        println!("equal: {} texts, {}", cases.len(), self.model.setting("answer"));
        Ok(true)
    }

    fn show(&mut self, given: &str) -> Result<(), Box<dyn Error>> {
        if self.model.setting("answer") == "ids" {
            return Err("what the graph gives to text is not shown by this client".into());
        }
        let (text, second) = given.split_once('\t').unwrap_or((given, ""));
        let row = self.row(text, second, false)?;
        let found = self.answer(&row)?;
        println!("{given}");
        let tokens = self.model.setting("answer") == "token_scores";
        let width = if tokens { found.len() / row.ids.len().max(1) } else { found.len() }; // numbers per token, or of the text
        for (place, number) in found.iter().enumerate() {
            let label = self.model.label(place % width);
            let token = if tokens { row.ids[place / width].to_string() } else { String::new() };
            println!("  {token} {label} {number}");
        }
        Ok(())
    }
}

fn of_dtype(dtype: &str, shape: Vec<i64>, values: Vec<i64>) -> Result<DynValue, Box<dyn Error>> {
    Ok(match dtype {
        "int64" => Tensor::from_array((shape, values))?.into_dyn(),
        "int32" => Tensor::from_array((shape, values.into_iter().map(|one| one as i32).collect::<Vec<_>>()))?.into_dyn(),
        "float32" => Tensor::from_array((shape, values.into_iter().map(|one| one as f32).collect::<Vec<_>>()))?.into_dyn(),
        "bool" => Tensor::from_array((shape, values.into_iter().map(|one| one != 0).collect::<Vec<_>>()))?.into_dyn(),
        other => return Err(format!("an input of text is {other}").into()),
    })
}

fn run(folder: &Path, texts: &[String]) -> Result<bool, Box<dyn Error>> {
    let mut session = Session::builder()?.commit_from_file(folder.join("model.onnx"))?;
    let lines = folder.join("clients/rust/texts.tsv");
    let equal = texts.is_empty() && check_tensors(&mut session, folder)?;
    if texts.is_empty() && (!equal || !lines.is_file()) {
        return Ok(equal);
    }
    if !lines.is_file() {
        return Err("this client reads no text of the artifact; its README says why".into());
    }
    let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| error.to_string())?;
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?; // it is cut, and padded, by texts.tsv
    tokenizer.with_padding(None);
    let mut reader = Reader { session, model: text::Model::read(&lines)?, tokenizer };
    for text in texts {
        reader.show(text)?;
    }
    if texts.is_empty() { reader.check() } else { Ok(true) }
}

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let folder = given.first().map_or_else(|| PathBuf::from("../.."), PathBuf::from);
    match run(&folder, given.get(1..).unwrap_or_default()) {
        Ok(equal) => ExitCode::from(u8::from(!equal)),
        Err(error) => {
            eprintln!("unusable: {error}");
            ExitCode::from(2)
        }
    }
}
