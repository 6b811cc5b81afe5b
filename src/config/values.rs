//! What a setting's text means: text in, value or why not out. Used by the table of settings alone.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;

use crate::content::{Integrity, Warm};
use crate::index::{Proof, View};
use crate::mount::{Modes, Passthrough, ReadAround};
use crate::repository::{PlainHttp, RedirectTo};

pub(super) fn folder(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| format!("{text:?} is no path: {error}"))
}

/// A size in bytes as people write it: `1048576`, `50GiB`, `1.5 TB`.
pub(super) fn size(text: &str, least: u64) -> Result<u64, String> {
    let form = || format!("{text:?} is no size; write it as 512MiB, 50GiB or 1TB");
    let bytes = text.parse::<ByteSize>().map_err(|_| form())?.as_u64();
    if bytes < least {
        return Err(format!("{text:?} is too small; at least {} is needed", ByteSize::b(least)));
    }
    Ok(bytes)
}

pub(super) fn read_ahead(text: &str) -> Result<u64, String> {
    let bytes = size(text, 0)?;
    if bytes > 1 << 30 { Err(format!("{text:?} is too much; at most 1GiB")) } else { Ok(bytes) }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let form = || format!("{text:?} is no duration; write it as 500ms, 60s or 2m");
    let value = humantime::parse_duration(text).map_err(|_| form())?;
    let day = Duration::from_secs(24 * 60 * 60);
    if value.is_zero() || value > day {
        return Err(format!("{text:?} is not between nothing and a day"));
    }
    Ok(value)
}

pub(super) fn requests(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=64).contains(number));
    number.ok_or_else(|| format!("{text:?} is no number from 1 to 64"))
}

pub(super) fn mounts(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=65536).contains(number));
    number.ok_or_else(|| format!("{text:?} is no number from 1 to 65536"))
}

/// Without TLS: the collector is on this machine, or in a network that is trusted.
pub(super) fn traces(text: &str) -> Result<String, String> {
    let is_plain = |url: &url::Url| url.scheme() == "http" && url.has_host() && url.username().is_empty();
    let url = text.parse().ok().filter(is_plain);
    url.map(String::from)
        .ok_or_else(|| "it is no collector's address; write it as http://127.0.0.1:4317".to_owned())
}

pub(super) fn redirect_to(text: &str) -> Result<Vec<RedirectTo>, String> {
    text.split(',').map(str::trim).filter(|place| !place.is_empty()).map(str::parse).collect()
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

pub(super) fn plain_http(text: &str) -> Result<PlainHttp, String> {
    match text {
        "auto" => Ok(PlainHttp::OnThisMachine),
        "true" | "1" => Ok(PlainHttp::Allowed),
        "false" | "0" => Ok(PlainHttp::Never),
        _ => Err(format!("{text:?} is none of auto, true, false")),
    }
}

/// A folder that somebody names has to be there: it is not looked for again.
pub(super) fn existing_folder(text: &str) -> Result<PathBuf, String> {
    let path = folder(text)?;
    if path.is_dir() { Ok(path) } else { Err(format!("{text:?} is no folder")) }
}

pub(super) fn integrity(text: &str) -> Result<Integrity, String> {
    match text {
        "auto" => Ok(Integrity::Auto),
        "deferred" => Ok(Integrity::Deferred),
        "strict" => Ok(Integrity::Strict),
        _ => Err(format!("{text:?} is none of auto, deferred, strict")),
    }
}

pub(super) fn warm(text: &str) -> Result<Warm, String> {
    match text {
        "none" => Ok(Warm::None),
        "auto" => Ok(Warm::Auto),
        "all" => Ok(Warm::All),
        _ => Err(format!("{text:?} is none of none, auto, all")),
    }
}

pub(super) fn proof(text: &str) -> Result<Proof, String> {
    match text {
        "index" => Ok(Proof::Index),
        "layer" => Ok(Proof::Layer),
        _ => Err(format!("{text:?} is neither index nor layer")),
    }
}

pub(super) fn view(text: &str) -> Result<View, String> {
    match text {
        "files" => Ok(View::Files),
        "blobs" => Ok(View::Blobs),
        _ => Err(format!("{text:?} is neither files nor blobs")),
    }
}

pub(super) fn passthrough(text: &str) -> Result<Passthrough, String> {
    match text {
        "auto" => Ok(Passthrough::Auto),
        "swap" => Ok(Passthrough::Swap),
        "off" => Ok(Passthrough::Off),
        _ => Err(format!("{text:?} is none of auto, swap, off")),
    }
}

pub(super) fn read_around(text: &str) -> Result<ReadAround, String> {
    match text {
        "auto" => Ok(ReadAround::Auto),
        "always" => Ok(ReadAround::Always),
        _ => Err(format!("{text:?} is neither auto nor always")),
    }
}

pub(super) fn modes(text: &str) -> Result<Modes, String> {
    match text {
        "read" => Ok(Modes::Read),
        "image" => Ok(Modes::Image),
        _ => Err(format!("{text:?} is neither read nor image")),
    }
}

pub(super) fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is no number of a user or group"))
}

pub(super) fn umask(text: &str) -> Result<u32, String> {
    let value = u32::from_str_radix(text, 8).ok().filter(|value| *value <= 0o777);
    value.ok_or_else(|| format!("{text:?} is no octal number up to 777"))
}
