//! A gzip file, a table of spans and a window from anybody: refused, or every span gives what the pass gave.
//!
//! The input is taken as a file, and as a table for the bytes of that file. The seeds are small files of each kind, and a table.

use weightfs::codec::gzip::{Decoder, Members, Scanner, Spacing, Table};
use weightfs::range::{ContentRange, StoredRange};

/// As much content as one input may lead to: a bomb is no finding.
const LIMIT: usize = 2 << 20;

/// Runs the input, and panics where it shows a fault.
pub fn run(data: &[u8]) {
    let piece = data.last().map_or(1, |byte| usize::from(*byte) * 17 + 1);
    if let Some((table, windows, content)) = scanned(data, piece) {
        assert_eq!(Table::decode(&table.encode()).expect("what was encoded is decoded"), table);
        assert!(members(data, piece).expect("what was scanned is whole members") == content);
        for span in 0..table.len() {
            let range = table.content(span);
            let got = decoded(data, &table, &windows, range, piece).expect("what was scanned is decoded");
            assert!(got == content[range.start() as usize..range.end() as usize]);
        }
    }
    if let Ok(table) = Table::decode(data) {
        assert_eq!(table.encode(), data);
        for span in (0..table.len()).take(20) {
            let start = table.content(span).start();
            let range = ContentRange::new(start, (start + 100_000).min(table.content(span).end()));
            let _any = decoded(data, &table, data, range, piece);
        }
    }
}

fn scanned(stored: &[u8], piece: usize) -> Option<(Table, Vec<u8>, Vec<u8>)> {
    let mut scanner = Scanner::new(Spacing::new(64 << 10).ok()?).ok()?;
    let (mut content, mut windows, mut room) = (Vec::new(), Vec::new(), vec![0; piece * 5]);
    for mut piece in stored.chunks(piece) {
        loop {
            let moved = scanner.step(piece, &mut room).ok()?;
            piece = &piece[moved.read..];
            content.extend(&room[..moved.written]);
            windows.extend(scanner.take_windows().concat());
            if content.len() > LIMIT {
                return None;
            }
            if piece.is_empty() && moved.written < room.len() {
                break;
            }
        }
    }
    Some((scanner.finish().ok()?, windows, content))
}

/// The content of whole members, by the decoder that knows nothing else.
fn members(stored: &[u8], piece: usize) -> Option<Vec<u8>> {
    let mut members = Members::new().ok()?;
    let (mut content, mut room) = (Vec::new(), vec![0; piece * 5]);
    for mut piece in stored.chunks(piece) {
        loop {
            let moved = members.step(piece, &mut room).ok()?;
            piece = &piece[moved.read..];
            content.extend(&room[..moved.written]);
            if piece.is_empty() && moved.written < room.len() {
                break;
            }
        }
    }
    members.finish().ok()?;
    Some(content)
}

fn decoded(
    stored: &[u8],
    table: &Table,
    windows: &[u8],
    range: ContentRange,
    piece: usize,
) -> Option<Vec<u8>> {
    let slice = |bytes: StoredRange, of: usize| {
        let end = usize::try_from(bytes.end()).map_or(of, |end| end.min(of));
        usize::try_from(bytes.start()).map_or(of, |start| start.min(end))..end
    };
    let place = table.span_at(range.start()).and_then(|span| table.window(span));
    let window = place.map(|place| &windows[slice(place.range, windows.len())]);
    let mut decoder = Decoder::new(table, window, range).ok()?;
    let (mut content, mut room) = (Vec::new(), vec![0; piece * 3]);
    for mut piece in stored[slice(decoder.stored(), stored.len())].chunks(piece) {
        while !decoder.is_done() {
            let moved = decoder.step(piece, &mut room).ok()?;
            piece = &piece[moved.read..];
            content.extend(&room[..moved.written]);
            if piece.is_empty() && moved.written < room.len() {
                break;
            }
        }
    }
    decoder.finish().ok()?;
    Some(content)
}
