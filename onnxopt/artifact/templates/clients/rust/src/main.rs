//! Repeat the golden cases of an artifact with `ort`, ONNX Runtime for Rust.
//!
//!     cargo run --release [-- DIR]        the artifact; ../.. when not given
//!
//! Exit code 0: every case is reproduced; 1: an output differs; 2: the artifact cannot be read or run.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor};

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
    Ok(std::fs::read(folder.join("golden").join(&entry.file))?)
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

fn found(entry: &Entry, value: &DynValue) -> Result<(Vec<i64>, Vec<f64>), Box<dyn Error>> {
    macro_rules! extract {
        ($kind:ty, $turn:expr) => {{
            let (shape, data) = value.try_extract_tensor::<$kind>()?;
            (shape.to_vec(), data.iter().map($turn).collect())
        }};
    }
    Ok(match entry.dtype.as_str() {
        "float32" => extract!(f32, |one| f64::from(*one)),
        "float64" => extract!(f64, |one| *one),
        "float16" => extract!(half::f16, |one| f64::from(*one)),
        "int64" => extract!(i64, |one| *one as f64),
        "int32" => extract!(i32, |one| f64::from(*one)),
        _ => extract!(bool, |one| f64::from(u8::from(*one))),
    })
}

fn run(folder: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let cases = read_cases(&folder.join("clients/rust/golden.tsv"))?;
    let mut session = Session::builder()?.commit_from_file(folder.join("model.onnx"))?;
    let (mut worst, mut compared) = (0.0_f64, 0);
    for (number, case) in cases.iter().enumerate() {
        let mut inputs: Vec<(String, SessionInputValue)> = Vec::new();
        for entry in &case.inputs {
            inputs.push((entry.name.clone(), input(entry, &read_bytes(folder, entry)?)?.into()));
        }
        let results = session.run(inputs)?;
        for entry in &case.outputs {
            let (shape, got) = found(entry, &results[entry.name.as_str()])?;
            if shape != entry.shape {
                println!("differs: case {number}, output {} has shape {shape:?}", entry.name);
                return Ok(ExitCode::from(1));
            }
            for (place, (a, b)) in expected(entry, &read_bytes(folder, entry)?)?.into_iter().zip(got).enumerate() {
                if a == b || (a.is_nan() && b.is_nan()) {
                    continue;
                }
                let error = (a - b).abs();
                if error.is_nan() || error > entry.limit {
                    let (name, limit) = (&entry.name, entry.limit);
                    println!("differs: case {number}, output {name} at {place} is {b}, expected {a} within {limit}");
                    return Ok(ExitCode::from(1));
                }
                worst = worst.max(error);
            }
            compared += 1;
        }
    }
    println!("equal: {} cases, {compared} outputs, worst absolute error {worst:.2e}", cases.len());
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let folder = std::env::args().nth(1).map_or_else(|| PathBuf::from("../.."), PathBuf::from);
    run(&folder).unwrap_or_else(|error| {
        eprintln!("unusable: {error}");
        ExitCode::from(2)
    })
}
