//! The files of the store that are open in this process: few, whatever an artifact has, and none for long unused.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::kept::KeptFile;

/// How many stay open for nobody: four descriptors each. What somebody uses is open besides.
const OPEN: usize = 48;

/// The open files, each also held by whoever uses it.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(Mutex<Vec<Arc<KeptFile>>>);

impl OpenFiles {
    /// Opens the files at `stem`, or gives those that are open there and still in their folder.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn open(&self, stem: &Path, len: u64) -> io::Result<Arc<KeptFile>> {
        let mut files = self.0.lock();
        files.retain(|file| file.stem() != stem || !file.removed());
        if let Some(file) = files.iter().find(|file| file.stem() == stem) {
            file.touch();
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(KeptFile::open(stem, len)?);
        if files.len() >= OPEN {
            let unused = files.iter().enumerate().max_by_key(|(_, file)| file.unused_for());
            if let Some((longest, _)) = unused {
                files.swap_remove(longest);
            }
        }
        files.push(Arc::clone(&file));
        Ok(file)
    }

    /// Closes what nobody uses and nobody has used for `idle`.
    pub(super) fn release_idle(&self, idle: Duration) {
        self.0.lock().retain(|file| Arc::strong_count(file) > 1 || file.unused_for() < idle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_files_stay_open_and_none_that_is_idle() {
        let dir = tempfile::tempdir().unwrap();
        let open = OpenFiles::default();
        let used = open.open(&dir.path().join("used"), 10).unwrap();
        for number in 0..3 * OPEN {
            open.open(&dir.path().join(number.to_string()), 10).unwrap();
        }
        assert!(open.0.lock().len() <= OPEN);
        let again = open.open(&dir.path().join("used"), 10).unwrap();
        open.release_idle(Duration::ZERO);
        assert_eq!(open.0.lock().len(), 1, "what somebody uses");
        drop((used, again));
        open.release_idle(Duration::ZERO);
        assert!(open.0.lock().is_empty());
    }
}
