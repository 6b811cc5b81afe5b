//! What benches of compressed layers share: bytes as weights have them, and other programs that write and read them.
#![allow(dead_code, reason = "each bench takes what it needs")]

use std::io::Write;
use std::process::{Command, Stdio};

/// Numbers that look random, the same each time.
fn random() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// 16-bit brain floats, normally distributed about 0 as weights are: sign and mantissa random, few exponents.
pub(crate) fn weights(len: usize) -> Vec<u8> {
    let (mut next, mut bytes) = (random(), Vec::with_capacity(len + 2));
    while bytes.len() < len {
        let mut sum = 0.0_f32;
        for _ in 0..4 {
            let number = next().to_le_bytes();
            sum += f32::from(u16::from_le_bytes([number[3], number[5]])) / 65536.0 - 0.5;
        }
        bytes.extend(&(sum * 0.035).to_le_bytes()[2..]);
    }
    bytes.truncate(len);
    bytes
}

/// The same with exponents that are halved one after the other, which is quicker made.
pub(crate) fn halving(len: usize) -> Vec<u8> {
    let mut next = random();
    let numbers = (0..len / 2).map(|_| {
        let random = next();
        let exponent = 126 - (random >> 32).trailing_zeros().min(20);
        ((random & 0x8000) | (u64::from(exponent) << 7) | (random & 0x7f)).to_le_bytes()
    });
    numbers.flat_map(|bytes| bytes.into_iter().take(2)).collect()
}

/// What a program writes that is given `content`.
pub(crate) fn through(program: &str, arguments: &[&str], content: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, content) = (child.stdin.take().unwrap(), content.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&content));
    let written = child.wait_with_output().unwrap().stdout;
    writer.join().unwrap().unwrap();
    written
}
