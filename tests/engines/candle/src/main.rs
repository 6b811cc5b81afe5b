//! The embedding of one sentence by all-MiniLM-L6-v2, on candle over a mapped file: what the tests run as their engine in Rust.
//!
//! Written against the model's own description (BERT, 6 layers, mean of the tokens, length 1), with nothing that is not needed for
//! one sentence on one processor. Argument: the model's folder. Prints the size, the first numbers and the sum of the embedding.

use std::path::PathBuf;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear, ops};
use tokenizers::Tokenizer;

const SENTENCE: &str = "The quick brown fox jumps over the lazy dog";

// As `config.json` of the model has them.
const WORDS: usize = 30_522;
const POSITIONS: usize = 512;
const KINDS: usize = 2;
const WIDTH: usize = 384;
const WITHIN: usize = 1536;
const LAYERS: usize = 6;
const HEADS: usize = 12;
const EPSILON: f64 = 1e-12;

fn main() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("say where the model is")?);
    let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))?;
    // The file says to fill every sentence up to 128 tokens; one alone needs none, and the mean would count them.
    tokenizer.with_padding(None);
    let tokens = tokenizer.encode(SENTENCE, true)?;
    // SAFETY: a model's file is not written while it is mapped.
    let weights = unsafe {
        VarBuilder::from_mmaped_safetensors(&[folder.join("model.safetensors")], DType::F32, &Device::Cpu)?
    };
    let said = Model::load(&weights)?.embed(tokens.get_ids())?.to_vec1::<f32>()?;
    let first: Vec<String> = said.iter().take(5).map(|number| format!("{number:.6}")).collect();
    let sum: f64 = said.iter().copied().map(f64::from).sum();
    println!("dim={} first5=[{}] sum={sum:.6}", said.len(), first.join(","));
    Ok(())
}

struct Model {
    words: Embedding,
    positions: Embedding,
    kinds: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Model {
    fn load(weights: &VarBuilder) -> Result<Self> {
        let at = weights.pp("embeddings");
        let layers = weights.pp("encoder").pp("layer");
        Ok(Self {
            words: embedding(WORDS, WIDTH, at.pp("word_embeddings"))?,
            positions: embedding(POSITIONS, WIDTH, at.pp("position_embeddings"))?,
            kinds: embedding(KINDS, WIDTH, at.pp("token_type_embeddings"))?,
            norm: layer_norm(WIDTH, EPSILON, at.pp("LayerNorm"))?,
            layers: (0..LAYERS).map(|number| Layer::load(&layers.pp(number))).collect::<Result<_>>()?,
        })
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let places = Tensor::arange(0_u32, tokens.len() as u32, &Device::Cpu)?;
        let known = (self.words.forward(&ids)? + self.positions.forward(&places)?)?;
        let mut state = self.norm.forward(&(known + self.kinds.forward(&ids.zeros_like()?)?)?)?;
        for layer in &self.layers {
            state = layer.forward(&state)?;
        }
        let mean = state.mean(0)?;
        let length = mean.sqr()?.sum_all()?.sqrt()?;
        mean.broadcast_div(&length)
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    mixed: Linear,
    mixed_norm: LayerNorm,
    wide: Linear,
    narrow: Linear,
    norm: LayerNorm,
}

impl Layer {
    fn load(at: &VarBuilder) -> Result<Self> {
        let (own, out) = (at.pp("attention.self"), at.pp("attention.output"));
        Ok(Self {
            query: linear(WIDTH, WIDTH, own.pp("query"))?,
            key: linear(WIDTH, WIDTH, own.pp("key"))?,
            value: linear(WIDTH, WIDTH, own.pp("value"))?,
            mixed: linear(WIDTH, WIDTH, out.pp("dense"))?,
            mixed_norm: layer_norm(WIDTH, EPSILON, out.pp("LayerNorm"))?,
            wide: linear(WIDTH, WITHIN, at.pp("intermediate.dense"))?,
            narrow: linear(WITHIN, WIDTH, at.pp("output.dense"))?,
            norm: layer_norm(WIDTH, EPSILON, at.pp("output.LayerNorm"))?,
        })
    }

    fn forward(&self, state: &Tensor) -> Result<Tensor> {
        let seen = self.mixed.forward(&self.attend(state)?)?;
        let state = self.mixed_norm.forward(&(seen + state)?)?;
        let thought = self.narrow.forward(&self.wide.forward(&state)?.gelu_erf()?)?;
        self.norm.forward(&(thought + state)?)
    }

    fn attend(&self, state: &Tensor) -> Result<Tensor> {
        let split = |by: &Linear| {
            by.forward(state)?.reshape(((), HEADS, WIDTH / HEADS))?.transpose(0, 1)?.contiguous()
        };
        let (query, key, value) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        let scale = ((WIDTH / HEADS) as f64).sqrt();
        let scores = (query.matmul(&key.t()?)? / scale)?;
        let seen = ops::softmax_last_dim(&scores)?.matmul(&value)?;
        seen.transpose(0, 1)?.contiguous()?.reshape(((), WIDTH))
    }
}
