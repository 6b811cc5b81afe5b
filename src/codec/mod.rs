//! Floor 0: archive and compression formats. Bytes in, bytes or values out; no input or output, no OCI.

pub mod estargz;
pub mod foreign;
pub mod gzip;
pub mod tar;
pub mod tar_header;
pub mod toc;
pub mod zstd;
