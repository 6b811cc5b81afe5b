//! What a model's own files say of it: family, architecture, precision, quantization, size, format.
//!
//! From `config.json` and from the headers of weight files. Nothing is guessed: what the files do not say, or say
//! differently, is left out. A file that can't be understood says nothing; it is packed as it is all the same.
//! [`plan`](super::plan()) asks once; what a person typed overrules what is found.

mod gguf;
mod safetensors;

use std::collections::BTreeSet;
use std::io::{BufReader, Read};

use serde::Serialize;
use serde_json::Value;

use super::walk::File;
use crate::oci::artifact::LayerKind;

/// The largest `config.json` or index of shards that is read, in bytes.
const JSON_LIMIT: u64 = 16 << 20;

/// The description of a model, as the config of the specification has it (config.md); `None` and empty for what is
/// not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "each field is the property of that name in the specification's config.md")]
pub struct Described {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub param_size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    #[serde(rename = "sourceURL", skip_serializing_if = "Option::is_none")]
    pub source_url: Option<String>,
    #[serde(rename = "docURL", skip_serializing_if = "Option::is_none")]
    pub doc_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub licenses: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authors: Vec<String>,
}

impl Described {
    /// This, and where it says nothing what `other` says.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let all = |own: Vec<String>, other: Vec<String>| if own.is_empty() { other } else { own };
        Self {
            name: self.name.or(other.name),
            version: self.version.or(other.version),
            family: self.family.or(other.family),
            architecture: self.architecture.or(other.architecture),
            format: self.format.or(other.format),
            param_size: self.param_size.or(other.param_size),
            precision: self.precision.or(other.precision),
            quantization: self.quantization.or(other.quantization),
            title: self.title.or(other.title),
            description: self.description.or(other.description),
            vendor: self.vendor.or(other.vendor),
            source_url: self.source_url.or(other.source_url),
            doc_url: self.doc_url.or(other.doc_url),
            revision: self.revision.or(other.revision),
            licenses: all(self.licenses, other.licenses),
            authors: all(self.authors, other.authors),
        }
    }
}

/// What the files say. Reads `config.json` and the headers of weights; costs no more than their sizes.
#[must_use]
pub fn describe(files: &[(LayerKind, &File)]) -> Described {
    let all: Vec<&File> = files.iter().map(|(_, file)| *file).collect();
    let weights = files.iter().filter(|(kind, _)| *kind == LayerKind::Weight).map(|(_, file)| *file);
    let weights: Vec<&File> = weights.collect();
    let format = agreed(weights.iter().map(|file| format_of(&file.path)));
    let config = json(&all, "config.json").map(|json| of_config(&json)).unwrap_or_default();
    let is_quantized = config.quantization.is_some();
    config
        .or(of_safetensors(&all, is_quantized))
        .or(of_gguf(&weights))
        .or(Described { format, ..Described::default() })
}

/// The one value that all give; `None` where one gives none or they differ, and where there is none at all.
fn agreed<T: PartialEq>(values: impl Iterator<Item = Option<T>>) -> Option<T> {
    let mut values = values;
    let first = values.next().flatten()?;
    values.all(|value| value.as_ref() == Some(&first)).then_some(first)
}

fn format_of(path: &str) -> Option<String> {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let ending = name.rsplit_once('.')?.1;
    let format = match ending {
        "safetensors" | "gguf" | "ggml" | "tflite" | "ckpt" | "h5" | "keras" | "msgpack" | "npz"
        | "mlmodel" | "llamafile" => ending,
        "onnx" | "onnx_data" => "onnx",
        "pt" | "pth" => "pt",
        "bin" if name.starts_with("pytorch_model") => "pt",
        "data" if name.ends_with(".onnx.data") => "onnx",
        _ if name.contains(".onnx_data") => "onnx",
        _ => return None,
    };
    Some(format.to_owned())
}

/// The JSON file at `path` of the model, if it is there and can be read.
fn json(files: &[&File], path: &str) -> Option<Value> {
    let file = files.iter().find(|file| file.path == path && file.size <= JSON_LIMIT)?;
    let reader = file.open().ok()?.take(JSON_LIMIT);
    serde_json::from_reader(BufReader::new(reader)).ok()
}

/// What a `config.json` of Hugging Face's transformers says; of a model of several parts, what it says of the text's.
fn of_config(json: &Value) -> Described {
    let text = |places: &[&str]| {
        let found = places.iter().find_map(|place| json.pointer(place)?.as_str());
        found.filter(|text| !text.trim().is_empty()).map(str::to_owned)
    };
    Described {
        family: text(&["/model_type"]),
        architecture: text(&["/architectures/0"]),
        precision: text(&["/torch_dtype", "/dtype", "/text_config/torch_dtype", "/text_config/dtype"])
            .map(|dtype| dtype.strip_prefix("torch.").unwrap_or(&dtype).to_owned()),
        quantization: text(&[
            "/quantization_config/quant_method",
            "/text_config/quantization_config/quant_method",
        ]),
        ..Described::default()
    }
}

/// Size and precision, over the tensors of the one set of shards at the top of the folder.
fn of_safetensors(files: &[&File], is_quantized: bool) -> Described {
    let Some(shards) = shards(files) else { return Described::default() };
    let mut counts = safetensors::Counts::new();
    for shard in shards {
        let Some(some) = shard.open().ok().and_then(|file| safetensors::counts(BufReader::new(file))) else {
            return Described::default();
        };
        for (dtype, count) in some {
            let sum = counts.entry(dtype).or_default();
            *sum = sum.saturating_add(count);
        }
    }
    let Some(dominant) = counts.iter().max_by_key(|(_, count)| **count).map(|(dtype, _)| dtype.as_str())
    else {
        return Described::default();
    };
    let total = counts.values().fold(0, |sum: u64, count| sum.saturating_add(*count));
    // Quantizers put several numbers into one integer: the shapes then say nothing of how many there are.
    let is_packed = is_quantized && precision(dominant).is_none_or(|name| name.contains("int"));
    let param_size = (!is_packed).then(|| short(total));
    let precision = precision(dominant).filter(|_| !is_packed).map(str::to_owned);
    Described { param_size, precision, ..Described::default() }
}

/// The safetensors files that are the model once: those that the index of shards names, or else the only one, or the
/// only set of numbered ones; `None` where it can't be told, as for a model and the same again in another form.
fn shards<'a>(files: &[&'a File]) -> Option<Vec<&'a File>> {
    let at_top = |file: &&&File| file.path.ends_with(".safetensors") && !file.path.contains('/');
    if let Some(json) = json(files, "model.safetensors.index.json") {
        let names = json.get("weight_map")?.as_object()?.values().filter_map(Value::as_str);
        let names: BTreeSet<&str> = names.collect();
        return names.into_iter().map(|name| files.iter().find(|file| file.path == name).copied()).collect();
    }
    let found: Vec<&File> = files.iter().filter(at_top).copied().collect();
    let set = |file: &&File| numbered(&file.path).map(|(set, count)| (set.to_owned(), count));
    match found.as_slice() {
        [] => None,
        [_] => Some(found),
        several => {
            let (_, count) = agreed(several.iter().map(set))?;
            (count == several.len()).then_some(found)
        }
    }
}

/// The name of the set and how many there are of it, of `NAME-00001-of-00003.ENDING`.
fn numbered(path: &str) -> Option<(&str, usize)> {
    let (before, after) = path.split_once("-of-")?;
    let (set, number) = before.rsplit_once('-')?;
    let count = after.split('.').next()?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && digits(count)).then(|| Some((set, count.parse().ok()?))).flatten()
}

/// The type's name as `config.json` spells it; `None` for one that is no number of a model.
fn precision(dtype: &str) -> Option<&'static str> {
    Some(match dtype {
        "BF16" => "bfloat16",
        "F16" => "float16",
        "F32" => "float32",
        "F64" => "float64",
        "F8_E4M3" => "float8_e4m3fn",
        "F8_E5M2" => "float8_e5m2",
        "I8" => "int8",
        "U8" => "uint8",
        "I16" => "int16",
        "I32" => "int32",
        "I64" => "int64",
        _ => return None,
    })
}

/// What the GGUF files say: all of them, since a folder may hold one model in several quantizations.
fn of_gguf(weights: &[&File]) -> Described {
    let files = weights.iter().filter(|file| file.path.ends_with(".gguf"));
    let read = |file: &&&File| file.open().ok().and_then(gguf::Facts::read);
    let Some(facts) = files.map(|file| read(&file)).collect::<Option<Vec<_>>>() else {
        return Described::default();
    };
    match as_one(&facts) {
        Some(one) => of_facts(&one),
        None => {
            let each: Vec<Described> = facts.iter().map(of_facts).collect();
            let field = |of: fn(&Described) -> Option<String>| agreed(each.iter().map(of));
            Described {
                family: field(|one| one.family.clone()),
                architecture: field(|one| one.architecture.clone()),
                param_size: field(|one| one.param_size.clone()),
                precision: field(|one| one.precision.clone()),
                quantization: field(|one| one.quantization.clone()),
                ..Described::default()
            }
        }
    }
}

/// The parts of one split model as if they were one file, and one file as itself; `None` where they are not one model.
fn as_one(facts: &[gguf::Facts]) -> Option<gguf::Facts> {
    if let [one] = facts {
        return Some(one.clone());
    }
    let shards = u64::try_from(facts.len()).ok()?;
    let first = facts.iter().find(|facts| facts.shard == Some(0))?;
    let numbers = facts.iter().fold(0_u64, |sum, facts| sum.saturating_add(facts.numbers));
    let is_whole = facts.iter().all(|facts| facts.shards == Some(shards));
    is_whole.then(|| gguf::Facts { numbers, shards: None, ..first.clone() })
}

fn of_facts(facts: &gguf::Facts) -> Described {
    let kind = facts.file_type.and_then(gguf::file_type);
    let precision = kind.and_then(|kind| precision(kind).map(str::to_owned));
    let label = facts.size_label.as_ref().map(|label| label.to_ascii_lowercase());
    let is_part = facts.shards.is_some_and(|shards| shards > 1);
    let counted = (facts.numbers > 0 && !is_part).then(|| short(facts.numbers));
    Described {
        name: facts.name.clone(),
        family: facts.architecture.clone(),
        architecture: facts.architecture.clone(),
        param_size: facts.parameters.filter(|count| *count > 0).map(short).or(label).or(counted),
        quantization: kind.filter(|_| precision.is_none()).map(str::to_owned),
        precision,
        licenses: facts.license.clone().into_iter().collect(),
        ..Described::default()
    }
}

/// A number of parameters as people write it: `135m`, `8b`, `7.2b`.
fn short(count: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "t"), (1_000_000_000, "b"), (1_000_000, "m"), (1_000, "k")];
    // What would round up to a thousand is one of the next unit.
    let unit = UNITS.into_iter().find(|(size, _)| count >= size - size / 2_000);
    let Some((size, unit)) = unit else { return count.to_string() };
    let tenths = (u128::from(count) * 10 + u128::from(size) / 2) / u128::from(size);
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if tenth == 0 {
        format!("{whole}{unit}")
    } else if whole < 10 || size >= 1_000_000_000 {
        format!("{whole}.{tenth}{unit}")
    } else {
        format!("{}{unit}", (u128::from(count) + u128::from(size) / 2) / u128::from(size))
    }
}

#[cfg(test)]
#[path = "../describe_tests.rs"]
mod tests;
