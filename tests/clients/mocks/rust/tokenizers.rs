//! Stands in for the crate `tokenizers`, which cannot be had here: its names and signatures, and the ids that Python's
//! `tokenizers`, the same library, gives to each text, in the file that TOKENIZED names.

use std::collections::HashMap;
use std::path::Path;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
pub struct TruncationParams;
pub struct PaddingParams;
pub struct Encoding(Vec<u32>);

impl Encoding {
    pub fn get_ids(&self) -> &[u32] {
        &self.0
    }
}

pub struct Tokenizer(HashMap<String, Vec<u32>>);

impl Tokenizer {
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        std::fs::read_to_string(path)?;
        let lines = std::fs::read_to_string(std::env::var("TOKENIZED")?)?;
        let pairs = lines.lines().filter_map(|line| line.split_once('\t'));
        Ok(Self(pairs.map(|(ids, text)| (text.replace("\\n", "\n"), ids.split(',').flat_map(str::parse).collect())).collect()))
    }

    pub fn with_truncation(&mut self, _: Option<TruncationParams>) -> Result<&mut Self> {
        Ok(self)
    }

    pub fn with_padding(&mut self, _: Option<PaddingParams>) -> &mut Self {
        self
    }

    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoding> {
        assert!(!add_special_tokens);
        self.0.get(text).cloned().map(Encoding).ok_or_else(|| format!("the test lists no ids of: {text}").into())
    }
}
